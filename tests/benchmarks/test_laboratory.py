"""The laboratory's command, from questions to what is committed, on tiny random models."""

import csv
import random
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks.laboratory import __main__ as laboratory
from benchmarks.laboratory.answers import Sets, answer
from benchmarks.laboratory.tables import MANIFESTS, OF_EACH_SET, TARGETS
from benchmarks.laboratory.targets import PROBES
from ilis_guard.config.tiers import TierConfig
from ilis_guard.errors import ConfigError, FitError, QuestionError
from ilis_guard.lab.baselines.methods import methods
from ilis_guard.lab.evaluation.tables import DIFFERENCES, METRICS, SETS
from ilis_guard.lab.questions import Question, write_questions
from ilis_guard.models.local import LocalModel
from tests.lab.tiny_models import make

pytestmark = pytest.mark.usefixtures("real_model")

COUNTS, HOPELESS = "heard-of", "never-right"
ROWS, NEVER = 160, 60


def made_sets() -> Sets:
    """Two sets that the model is right on about half of the time, by chance, and one that it never is."""
    draw = random.Random(0)

    def asked(name: str, number: int, *answers: str) -> Question:
        text = " ".join(f"w{draw.randrange(53)}" for _ in range(draw.randrange(2, 12)))
        return Question(id=f"{name}-{number}", dataset=name, question=f"{text} {name}-{number}", answers=answers)

    def heard(name: str) -> list[Question]:
        some = (draw.sample(range(53), 6) for _ in range(ROWS))
        return [asked(name, number, *(f"w{word}" for word in words)) for number, words in enumerate(some)]

    return {
        COUNTS: heard(COUNTS),
        f"{COUNTS}-too": heard(f"{COUNTS}-too"),
        HOPELESS: [asked(HOPELESS, number, "nothing of the kind") for number in range(NEVER)],
    }


def tier(model: Path, precision: Any = "full") -> TierConfig:
    return TierConfig(
        name=f"tiny-{precision}", model=str(model), precision=precision, prompt="{question} w1", max_new_tokens=7
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"), "llama", seed=1)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run left: questions, answers at two precisions, and results."""
    to = tmp_path_factory.mktemp("whole")
    run(model, to)
    return to


def run(model: Path, to: Path) -> None:
    laboratory.run(tier(model), made_sets(), to=to, results=to / "results", applied_to=tier(model, "nf4"), seeds=1)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_sets_are_harvested_and_counting_ones_observed(whole: Path) -> None:
    files = {str(path.relative_to(whole)) for path in whole.rglob("*.*") if "results" not in path.parts}
    sets = made_sets()
    assert files == {
        *(f"questions/{name}.jsonl" for name in sets),
        *(f"tiny-{precision}/{name}.parquet" for precision in ("full", "nf4") for name in sets),
        *(
            f"tiny-{precision}/{name}.observations.parquet"
            for precision in ("full", "nf4")
            for name in (COUNTS, f"{COUNTS}-too")
        ),
        *(
            f"tiny-full/evaluation/{name}.csv"
            for name in ("sets", "metrics", "differences", "typicality", "importance")
        ),
        "tiny-full/evaluation/report.html",
    }
    for name, questions in sets.items():
        for precision in ("full", "nf4"):
            ids = pq.read_table(whole / f"tiny-{precision}" / f"{name}.parquet", columns=["id"])["id"].to_pylist()
            assert ids == [question.id for question in questions]


def test_the_results_name_the_sets_that_count_and_reasons(whole: Path) -> None:
    counts = {row["dataset"]: (row["counts"], row["why_left_out"]) for row in table(whole / "results" / SETS)}
    assert counts[COUNTS] == counts[f"{COUNTS}-too"] == ("True", "")
    assert counts[HOPELESS][0] == "False"
    assert counts[HOPELESS][1].startswith("right 0.0% of the time")


def test_the_results_are_a_part_of_the_evaluation(whole: Path) -> None:
    kept, every = (table(folder / METRICS) for folder in (whole / "results", whole / "tiny-full" / "evaluation"))
    lines = {tuple(row.items()) for row in kept}
    assert [row for row in every if tuple(row.items()) in lines] == kept
    assert len(kept) < len(every) / 2
    sets = made_sets()
    of_sets = [row for row in kept if row["tested_on"] in sets]
    protocols = Counter(row["protocol"] for row in of_sets if row["metric"] == "auroc")
    assert {row["method"] for row in kept} == {method.name for method in methods()}
    each = 2 * len(methods())
    assert protocols == {
        "in-distribution": each,
        "leave-one-set-out": each,
        "refitted": each,
        "applied": each,
        "one-to-one": 2,
    }
    assert {row["metric"] for row in of_sets} == set(OF_EACH_SET)
    assert HOPELESS not in {row["tested_on"] for row in of_sets}


def test_no_text_is_committed(whole: Path) -> None:
    said = set(pq.read_table(whole / "tiny-full" / f"{COUNTS}.parquet", columns=["text"])["text"].to_pylist())
    words = {word for text in said for word in text.split() if word.startswith("w")}
    assert len(words) > 20
    for path in (whole / "results").iterdir():
        assert words.isdisjoint(path.read_text().replace(",", " ").split()), path.name


def test_targets_stand_beside_results(whole: Path) -> None:
    rows = {row["what"]: row for row in table(whole / "results" / TARGETS)}
    means = {
        (row["protocol"], row["method"]): float(row["value"])
        for row in table(whole / "results" / METRICS)
        if (row["metric"], row["tested_on"]) == ("auroc", "mean over sets")
    }
    for protocol, what, points in (
        ("in-distribution", "in-distribution, AUROC over the best probe", 4),
        ("leave-one-set-out", "leave-one-set-out, AUROC over the best probe", 10),
    ):
        found = rows[what]["found"]
        probes = {name: means[protocol, name] for name in PROBES}
        best = max(probes, key=lambda name: probes[name])
        ahead = 100 * (means[protocol, "fused"] - probes[best])
        assert found == f"{ahead:+.1f} ({best})"
        assert rows[what]["is_reached"] == str(ahead >= points)
    sets = rows["sets that count, of at least 800 rows"]
    assert (sets["found"], sets["is_reached"]) == ("0", "False")
    worst = [
        float(row["worst"])
        for row in table(whole / "results" / DIFFERENCES)
        if row["protocol"] == "in-distribution" and row["metric"].startswith("auprc") and row["method"] in probes
    ]
    found = rows["in-distribution, AUPRC over the best probe, on the worst set"]["found"]
    assert found.startswith(f"{100 * min(worst):+.1f} (")
    carried = rows["applied at the other precision, AUROC less that of a refit"]
    assert (carried["wanted"], carried["is_reached"]) == ("measured", "")
    assert carried["found"] == f"{100 * (means['applied', 'fused'] - means['refitted', 'fused']):+.1f}"


def test_every_harvest_has_its_manifest_in_the_results(whole: Path) -> None:
    rows = table(whole / "results" / MANIFESTS)
    assert [row["precision"] for row in rows] == ["full"] * 3 + ["nf4"] * 3
    assert len({row["questions_sha256"] for row in rows}) == 3
    assert all(row["torch"] and row["transformers"] and row["fingerprint"] for row in rows)


@pytest.mark.usefixtures("process")
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(
    whole: Path, model: Path, tmp_path: Path
) -> None:
    """Real processes: one is killed while it asks the second set, the next while it observes the first."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from ilis_guard.lab.baselines.forward import ForwardRunner
from ilis_guard.models.local import LocalModel
from tests.benchmarks import test_laboratory

def killed_at(owner, name, last):
    known, calls = getattr(owner, name), 0
    def counted(self, batch):
        nonlocal calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        with open({str(tmp_path / "batches.log")!r}, "a") as file:
            file.write(f"{{name}} {{len(batch)}}\\n")
        return known(self, batch)
    setattr(owner, name, counted)

killed_at(LocalModel, "generate_batch", 9)
killed_at(ForwardRunner, "run", 5 if sys.argv[1] == "observing" else None)
test_laboratory.run(Path({str(model)!r}), Path({str(tmp_path / "to")!r}))
"""
    for when in ("asking", "observing"):
        killed = subprocess.run([sys.executable, "-c", code, when], check=False, capture_output=True)
        assert killed.returncode == -9, killed.stderr.decode()
        assert list((tmp_path / "to").rglob("*.unfinished")), when
    asked = [line.split() for line in (tmp_path / "batches.log").read_text().splitlines()]
    assert sum(int(size) for what, size in asked if what == "generate_batch") == 2 * ROWS + NEVER, "each question once"
    run(model, tmp_path / "to")
    assert not list((tmp_path / "to").rglob("*.unfinished"))
    for path in (whole / "results").iterdir():
        assert (tmp_path / "to" / "results" / path.name).read_text() == path.read_text(), path.name


def test_where_all_is_there_nothing_is_loaded(whole: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: object, **_options: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(LocalModel, "load", load)
    source = answer(tier(model), made_sets(), whole / "tiny-full")
    assert [path.stem for path in source.harvests] == list(made_sets())


def changed(sets: Sets) -> Sets:
    first, *others = sets[COUNTS]
    return {**sets, COUNTS: [first.model_copy(update={"answers": ("w0",)}), *others]}


def test_questions_that_are_not_those_that_were_asked_are_refused(whole: Path, model: Path) -> None:
    with pytest.raises(QuestionError, match=rf"{COUNTS}\.jsonl' holds other questions than are made now"):
        laboratory.run(tier(model), changed(made_sets()), to=whole, results=whole / "other")
    assert not (whole / "other").exists()


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"max_new_tokens": 8}, "max_new_tokens"),
        ({"precision": "nf4"}, "precision"),
        ({"decoding": {"do_sample": True}}, "decoding"),
        ({"prompt": "{question}"}, "prompt"),
    ],
)
def test_answers_that_were_made_otherwise_are_not_taken_for_this_tiers(
    change: dict[str, Any], differs: str, whole: Path, model: Path
) -> None:
    other = tier(model).model_copy(update=change)
    with pytest.raises(FitError, match=rf"{COUNTS}\.parquet' isn't what 'tiny-full' .* differs in {differs};"):
        answer(other, made_sets(), whole / "tiny-full")


def test_answers_to_other_questions_are_not_taken_for_these(whole: Path, model: Path) -> None:
    with pytest.raises(FitError, match="differs in questions"):
        answer(tier(model), changed(made_sets()), whole / "tiny-full")


def test_observations_of_another_harvest_are_named(whole: Path, model: Path, tmp_path: Path) -> None:
    for part in ("parquet", "observations.parquet"):
        of = "tiny-nf4" if part == "observations.parquet" else "tiny-full"
        (tmp_path / f"{COUNTS}.{part}").write_bytes((whole / of / f"{COUNTS}.{part}").read_bytes())
    sets = {COUNTS: made_sets()[COUNTS]}
    with pytest.raises(FitError, match=r"observations\.parquet' was observed of another harvest"):
        answer(tier(model), sets, tmp_path)
    (tmp_path / f"{COUNTS}.observations.parquet").write_bytes(b"something else")
    with pytest.raises(FitError, match=r"observations\.parquet' isn't a file of observations"):
        answer(tier(model), sets, tmp_path)
    (tmp_path / f"{COUNTS}.parquet").unlink()
    with pytest.raises(FitError, match=r"observations\.parquet' was observed of another harvest"):
        answer(tier(model), sets, tmp_path)


def test_tiers_that_are_not_a_precision_pair_are_refused_first(model: Path, tmp_path: Path) -> None:
    for other in (tier(model), tier(model, "nf4").model_copy(update={"prompt": "{question}"})):
        with pytest.raises(ConfigError, match="must differ in `precision` and in nothing else"):
            laboratory.run(tier(model), made_sets(), to=tmp_path, results=tmp_path, applied_to=other)
    assert list(tmp_path.iterdir()) == []


def config_of(model: Path, folder: Path) -> Path:
    """A file with one tier: `tier(model)`."""
    config = folder / "tiers.yaml"
    config.write_text(
        f"version: 1\npolicy: default\ntiers:\n- name: tiny-full\n  model: {model}\n"
        "  prompt: '{question} w1'\n  max_new_tokens: 7\n"
    )
    return config


def test_the_command_names_missing_sets_and_prints_results(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(laboratory, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(laboratory, "question_sets", lambda _family, _folder: made_sets())
    monkeypatch.setattr(laboratory, "run", partial(laboratory.run, seeds=1))
    config = config_of(model, tmp_path)
    laboratory.main("tiny-full", to=whole, config=config)
    shown = " ".join(capsys.readouterr().out.split())
    assert "without --data, these sets are missing: squad_xquad" in shown
    assert COUNTS in shown
    assert "counts" in shown
    assert "leave-one-set-out" in shown
    assert (tmp_path / "results" / "tiny-full" / METRICS).exists()
    with pytest.raises(SystemExit, match="there is no tier 'huge'"):
        laboratory.main("huge", to=whole, config=config)


def test_answers_alone_are_those_that_the_whole_run_makes_and_nothing_is_evaluated(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(laboratory, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(laboratory, "question_sets", lambda _family, _folder: made_sets())
    laboratory.main("tiny-full", to=tmp_path / "to", config=config_of(model, tmp_path), answers_only=True)
    shown = "".join(capsys.readouterr().out.split())
    assert f"harvestsandobservationsin{tmp_path}/to" in shown
    assert "leave-one-set-out" not in shown
    answers = {path.name: path for path in (whole / "tiny-full").iterdir() if path.suffix == ".parquet"}
    assert {path.name for path in (tmp_path / "to" / "tiny-full").iterdir()} == answers.keys()
    for name in (COUNTS, f"{COUNTS}-too", HOPELESS):
        made, known = (
            pq.read_table(path, columns=["id", "text"])
            for path in (tmp_path / "to" / "tiny-full" / f"{name}.parquet", answers[f"{name}.parquet"])
        )
        assert made == known
    assert not (tmp_path / "results").exists()


def test_tiers_come_from_the_bundles_file_unless_another_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TierConfig] = []
    monkeypatch.setattr(laboratory, "question_sets", lambda _family, _folder: made_sets())
    monkeypatch.setattr(laboratory, "answer_all", lambda tier, _sets, **_options: asked.append(tier))
    laboratory.main("smollm2-135m-instruct-full", to=tmp_path, answers_only=True)
    laboratory.main("tiny-full", to=tmp_path, config=config_of(model, tmp_path), answers_only=True)
    assert [str(tier.model) for tier in asked] == ["packaged:smollm2-135m-instruct", str(model)]
    with pytest.raises(SystemExit, match="there is no tier 'tiny-full'"):
        laboratory.main("tiny-full", to=tmp_path, answers_only=True)


def test_a_manifest_names_a_models_folder_and_not_where_it_lies(whole: Path, model: Path) -> None:
    assert {row["model"] for row in table(whole / "results" / MANIFESTS)} == {model.name}
    assert not model.name.startswith("/")


def test_a_missing_folder_of_questions_ends_the_command(tmp_path: Path) -> None:
    write_questions(tmp_path / "other.jsonl", made_sets()[COUNTS])
    with pytest.raises(SystemExit, match=r"squad_xquad\.jsonl:1: can't be read"):
        laboratory.main("smollm2-135m-instruct-full", data=tmp_path, to=tmp_path)
