"""`ilis-guard score` and `ilis-guard policy simulate` on real files."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilis_guard.lab import metrics
from ilis_guard.lab.attempt_schema import AttemptManifest, AttemptTier
from ilis_guard.lab.attempts import AttemptTable, read_attempts, write_attempts
from ilis_guard.lab.fit import fit
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.questions import Question
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.testing import fake_guard
from ilis_guard.types import Fingerprint, Generation, Message, Statistics

pytestmark = pytest.mark.usefixtures("fitted_model")

HOSTILE = "<script>alert(1)</script> [red]\x1b]0;owned\x07"
POLICY = "version: 1\nname: {name}\nrules:\n  - {{id: sure, when: uncertainty < {limit}, do: answer}}\n{rest}"


def policy(path: Path, name: str, limit: float, rest: str = "  - {id: person, do: escalate}\n") -> str:
    path.write_text(POLICY.format(name=name, limit=limit, rest=rest))
    return str(path)


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = [
        {
            "id": HOSTILE if number == 0 else f"q{number}",
            "tier": "small",
            "dataset": "",
            "split": "train" if number >= 80 else "test",
            "stage": "answer",
            "uncertainty": 0.3 if number == 0 else float(random.random()),
            "tokens": 3,
            "finish_reason": "stop",
            "error": "",
            "labels": "{}",
            "wrong": bool(random.random() < 0.3),
        }
        for number in range(100)
    ]
    manifest = AttemptManifest(origin="harvest", tiers=(AttemptTier(name="small"), AttemptTier(name="large")))
    write_attempts(tmp_path / "scored.parquet", AttemptTable.of_rows(manifest, rows))
    return tmp_path / "scored.parquet"


class Page(HTMLParser):
    """What a page would fetch or run, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[tuple[str, str, str | None]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        outside = {"src", "href", "xlink:href", "data", "action", "poster", "srcset"}
        self.fetched += [
            (tag, name, value) for name, value in attrs if name in outside and not (value or "").startswith("#")
        ]
        self.fetched += [(tag, name, value) for name, value in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_both_policies_are_shown_in_the_terminal_and_on_one_page(
    run: Callable[..., Any], tmp_path: Path, scored: Path
) -> None:
    old = policy(tmp_path / "old.yaml", "loose", 0.5)
    new = policy(
        tmp_path / "new.yaml",
        "strict",
        0.2,
        "  - {id: larger, when: uncertainty > 0.9, do: retry}\n  - {id: person, do: escalate}\n",
    )
    page, changed = tmp_path / "page.html", tmp_path / "changed.jsonl"
    options = ("--on", str(scored), "--requests-per-hour", "40", "--html", str(page), "--changed", str(changed))
    result = run("policy", "simulate", old, new, *options)
    assert result.status == 0
    assert "80 requests, 95 % bootstrap intervals" in result.out
    assert "reviews per hour of 40 requests" in result.out
    assert (
        "20 requests are left out, because a score flatters itself on rows that it has seen: 20 trained a bundle."
        in result.flat
    )
    assert re.search(
        r"The new policy leaves \d+ of 80 requests undecided .*: the tier 'large' was never run", result.flat
    )
    assert "old policy, n: the new one" in result.out
    assert "\x1b]0" not in result.out
    rows = [json.loads(line) for line in changed.read_text().splitlines()]
    table = read_attempts(scored)
    held_out = {row["id"]: row["uncertainty"] for row in table.rows() if row["split"] == "test"}
    expected = {id_ for id_, uncertainty in held_out.items() if 0.2 <= uncertainty < 0.5 or uncertainty > 0.9}
    assert {row["id"] for row in rows} == expected
    assert {(row["old"], row["new"]) for row in rows} == {("answer", "escalate"), ("escalate", None)}
    shown = Page(page.read_text(encoding="utf-8"))
    assert shown.fetched == []
    assert "script" not in shown.tags
    assert HOSTILE.replace("\x07", "") in shown.text.replace("\x07", "")
    assert {"svg", "main", "caption", "th"} <= set(shown.tags)
    assert "prefers-color-scheme: dark" in page.read_text(encoding="utf-8")


def test_the_same_policies_change_nothing_and_say_so(run: Callable[..., Any], tmp_path: Path, scored: Path) -> None:
    same = policy(tmp_path / "p.yaml", "same", 0.5)
    result = run("policy", "simulate", same, same, "--on", str(scored), "--all-rows")
    assert result.status == 0
    assert "100 requests, 95 % bootstrap intervals" in result.out
    assert "no request's action changes" in result.out
    assert "The two policies are the same." in result.out
    assert "20 of the 100 requests flatter the score" in result.flat


@pytest.mark.parametrize(
    ("rest", "complaint"),
    [
        (
            "  - {id: person, do: escalate}\nguarantee: {max_error: 0.1}\n",
            "gives a guarantee, which becomes thresholds only",
        ),
        (
            "  - {id: to, do: retry, to: huge}\n  - {id: person, do: escalate}\n",
            "retries on the tier 'huge', which doesn't exist",
        ),
        ("  - {id: p, stage: prompt, when: uncertainty > 0.9, do: abstain}\n", "no tier has a `prompt_bundle`"),
    ],
)
def test_a_policy_that_cant_be_simulated_is_refused_in_words(
    run: Callable[..., Any], tmp_path: Path, scored: Path, rest: str, complaint: str
) -> None:
    old, new = policy(tmp_path / "old.yaml", "old", 0.5), policy(tmp_path / "new.yaml", "new", 0.5, rest)
    result = run("policy", "simulate", old, new, "--on", str(scored))
    assert (result.status, result.out) == (2, "")
    assert complaint in " ".join(result.err.split())


FINGERPRINT = Fingerprint(
    weights="ab", precision="full", dtype="float32", layers=4, hidden=9, site="mlp", taps="layers.*.mlp",
    temperature=1.0, decoding="greedy", prompt="cd",
)  # fmt: skip


class Tapped:
    """A model whose maps tell whether it is right; every seventh answer is empty."""

    fingerprint = FINGERPRINT
    prompt = "{question}"
    max_new_tokens = 64

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation]:
        return [self._answer(number(turns[-1].content.split()[-1])) for turns in conversations]

    def _answer(self, number: int) -> Generation:
        random = np.random.default_rng(number)
        right, empty = number % 2 == 0, number % 7 == 0

        def maps() -> np.ndarray:
            return np.asarray(np.exp(random.normal(size=(4, 4)) + right) * (1 - np.eye(4)), dtype=np.float32)

        if empty:
            return Generation(
                text="", tokens=0, prompt_tokens=3, finish_reason="stop", seconds=0.1, signatures={"prompt": maps()}
            )
        return Generation(
            text="yes" if right else "no",
            tokens=1,
            prompt_tokens=3,
            finish_reason="stop",
            seconds=0.1,
            signatures={"prompt": maps(), "last": maps(), "mean": maps()},
            statistics=Statistics(
                logprob_sum=-1.0, logprob_mean=-1.0, entropy_mean=0.5, margin_min=float(random.random())
            ),
        )


def word(number: int) -> str:
    """Its digits as letters: questions that differ in a number alone are taken for one."""
    return str(number).translate(str.maketrans("0123456789", "abcdefghij"))


def number(word: str) -> int:
    return int(word.translate(str.maketrans("abcdefghij", "0123456789")))


def questions(count: int, start: int = 0) -> list[Question]:
    return [
        Question(id=f"q{n}", dataset="d", kind="open", question=f"Is this right: {word(n)}", answers=("yes",))
        for n in range(start, start + count)
    ]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a harvest, and bundles that were fitted to its answers and prompts."""
    folder = tmp_path_factory.mktemp("fitted")
    harvest(Tapped(), questions(600), folder / "h.parquet", name="fake")
    answers = read_attempts(folder / "h.parquet").answers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "RESAMPLES", 60)  # the metadata's intervals aren't looked at
        fit(answers, folder / "bundle")
        fit(answers, folder / "prompts", stage="prompt")
    return folder


@pytest.fixture
def bundled(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the harvest and its bundle, and a guard.yaml that names the bundle."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    (tmp_path / "guard.yaml").write_text(
        "version: 1\npolicy: default\ntiers: [{name: small, model: m, bundle: bundle}]\n"
        "review: {storage: 'sqlite:///tickets.db'}\n"
    )
    return tmp_path


def splits(path: Path) -> dict[str, str]:
    return {row["id"]: row["split"] for row in read_attempts(path).rows()}


def test_a_scored_harvest_holds_scores_and_the_splits_of_the_fit(run: Callable[..., Any], bundled: Path) -> None:
    result = run("score", "h.parquet", "--tier", "small", "--to", "scored.parquet")
    assert (result.status, result.out) == (0, "600 rows in scored.parquet\n")
    table = read_attempts(bundled / "scored.parquet")
    bundle = read_bundle(str(bundled / "bundle"))
    assert table.manifest.tiers[0].bundle == bundle.digest
    rows = {row["id"]: row for row in table.rows()}
    scorer, answer = LightGBMScorer(bundle), Tapped()._answer(5)
    score = scorer.score(answer)
    assert (rows["q5"]["uncertainty"], rows["q5"]["typicality"]) == (score.uncertainty, score.typicality)
    assert (rows["q5"]["wrong"], rows["q5"]["text_length"]) == (True, 2)
    assert rows["q7"]["error"] == "ScoringError"
    counts = {
        split: sum(row["split"] == split for row in rows.values() if not row["error"]) for split in bundle.metadata.rows
    }
    assert {**counts, "unanswered": 86} == dict(bundle.metadata.rows)
    # Those without an answer are as rare among held-out rows as they are among all.
    empty = [row["split"] for row in rows.values() if row["error"]]
    assert 0.05 < empty.count("test") / len(empty) < 0.4
    simulated = run("policy", "simulate", "default", "default", "--on", "scored.parquet")
    assert simulated.status == 0


def test_rows_that_a_recalibrated_bundle_knows_are_left_out(run: Callable[..., Any], bundled: Path) -> None:
    assert run("recalibrate", "bundle", "h.parquet", "--to", "recalibrated").status == 0
    guard = bundled / "guard.yaml"
    guard.write_text(guard.read_text().replace("bundle: bundle", "bundle: recalibrated"))
    assert run("score", "h.parquet", "--tier", "small", "--to", "scored.parquet").status == 0
    rows = read_attempts(bundled / "scored.parquet").rows()
    assert {row["split"] for row in rows if not row["error"]} == {"train", "validation", "calibration"}


def test_questions_that_a_fit_didnt_see_are_unseen_in_any_harvest(run: Callable[..., Any], bundled: Path) -> None:
    harvest(Tapped(), questions(200, start=500), bundled / "other.parquet", name="fake")
    run("score", "other.parquet", "--tier", "small", "--to", "scored.parquet")
    known = splits(bundled / "scored.parquet")
    assert {known[f"q{n}"] for n in range(600, 700) if n % 7} == {"unseen"}
    assert "unseen" not in {known[f"q{n}"] for n in range(500, 600)}


def test_inputs_that_do_not_go_together_are_refused(run: Callable[..., Any], bundled: Path) -> None:
    refused = {
        ("--to", "s.parquet"): "there is nothing to make a table from",
        ("h.parquet", "--to", "s.parquet"): "each harvest goes with a tier of its own: got 1 files and the tiers []",
        ("h.parquet", "--tier", "huge", "--to", "s.parquet"): "there is no tier 'huge'",
        ("h.parquet", "--tier", "small", "--verdicts", "v", "--to", "s.parquet"): "leave one out",
        ("guard.yaml", "--tier", "small", "--to", "s.parquet"): "isn't a Parquet file",
    }
    for arguments, complaint in refused.items():
        result = run("score", *arguments)
        assert result.status == 2
        assert complaint in " ".join(result.err.split())
        assert not (bundled / "s.parquet").exists()


def test_logged_decisions_become_a_table_labelled_by_verdicts(run: Callable[..., Any], config: Path) -> None:
    config.write_text(
        config.read_text().replace("[{name: small, model: m}]", "[{name: small, model: m}, {name: large, model: m}]")
    )
    with fake_guard("default", {"small": 0.6, "large": 0.4}) as guard:
        made = [guard.decide(f"question {number}") for number in range(3)]
        review = guard.review
        assert made[0].ticket is not None
        review.resolve(made[0].ticket.id, "accept")  # type: ignore[union-attr]
        review.resolve(made[1].ticket.id, "reject")  # type: ignore[union-attr]
        review.export(Path("verdicts.jsonl"))  # type: ignore[union-attr]
    Path("decisions.jsonl").write_text("".join(json.dumps(one.to_dict()) + "\n" for one in made))
    result = run("score", "--decisions", "decisions.jsonl", "--verdicts", "verdicts.jsonl", "--to", "scored.parquet")
    assert (result.status, result.out) == (0, "6 rows in scored.parquet\n")
    rows = read_attempts(Path("scored.parquet")).rows()
    told = {(row["id"], row["tier"]): row for row in rows}
    assert [told[one.id, "large"]["wrong"] for one in made] == [False, True, None]
    assert [told[one.id, "small"]["wrong"] for one in made] == [None] * 3
    assert {row["split"] for row in rows} == {"unseen"}
    assert told[made[0].id, "small"]["seconds"] == made[0].attempts[0].seconds
    simulated = run("policy", "simulate", "default", "default", "--on", "scored.parquet")
    assert simulated.status == 0
    alone = run("score", "--verdicts", "verdicts.jsonl", "--to", "verdicts.parquet")
    assert (alone.status, alone.out) == (0, "2 rows in verdicts.parquet\n")
    assert [row["wrong"] for row in read_attempts(Path("verdicts.parquet")).rows()] == [False, True]


def test_a_guarantee_on_scores_of_unknown_bundles_has_a_caveat(run: Callable[..., Any], bundled: Path) -> None:
    (bundled / "p.yaml").write_text(
        "version: 1\nname: p\nguarantee: {max_error: 0.4}\nrules:\n"
        "  - {id: covered, when: certified, do: answer}\n  - {id: no, do: abstain}\n"
    )
    run("score", "h.parquet", "--tier", "small", "--to", "harvested.parquet")
    table = read_attempts(bundled / "harvested.parquet")
    digest = table.manifest.tiers[0].bundle
    for bundle, is_doubted in ((digest, False), (None, True)):
        tier = AttemptTier(name="small", bundle=bundle, prompt_bundle="logged")
        decided = AttemptManifest(origin="decisions", tiers=(tier,))
        write_attempts(bundled / "s.parquet", AttemptTable(manifest=decided, table=table.table))
        told = run("policy", "simulate", "p.yaml", "p.yaml", "--on", "s.parquet", "-c", "guard.yaml")
        assert told.status == 0, told.err
        assert ("Which bundle scored the tiers ['small'] isn't on record" in told.flat) is is_doubted


def test_the_prompts_cost_is_that_of_the_live_guard(run: Callable[..., Any], bundled: Path) -> None:
    prices = "{per_request: 1, per_million_prompt_tokens: 1000000, per_million_tokens: 1000000}"
    guard = bundled / "guard.yaml"
    guard.write_text(guard.read_text().replace("bundle: bundle", f"bundle: bundle, cost: {prices}"))
    assert run("score", "h.parquet", "--tier", "small", "--to", "s.parquet").status == 0
    # Without a prompt bundle, rules of stage `prompt` are asked before the model is called.
    rows = {row["id"]: row for row in read_attempts(bundled / "s.parquet").rows()}
    assert (rows["q5"]["prompt_cost"], rows["q5"]["cost"]) == (0.0, 5.0)
    guard.write_text(guard.read_text().replace("bundle: bundle,", "bundle: bundle, prompt_bundle: prompts,"))
    assert run("score", "h.parquet", "--tier", "small", "--to", "s.parquet").status == 0
    rows = {row["id"]: row for row in read_attempts(bundled / "s.parquet").rows()}
    assert (rows["q5"]["prompt_cost"], rows["q5"]["cost"]) == (4.0, 5.0)


def test_a_wrong_line_is_named_without_its_content(run: Callable[..., Any], config: Path) -> None:
    (config.parent / "decisions.jsonl").write_text(
        '\n{"id": "d1", "attempts": [{"tier": "small", "text": ["secret"]}]}\n'
    )
    result = run("score", "--decisions", "decisions.jsonl", "--to", "s.parquet")
    assert result.status == 2
    assert "decisions.jsonl:2: not a line of `ilis-guard ask --json`" in " ".join(result.err.split())
    assert "secret" not in result.err
