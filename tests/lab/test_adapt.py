"""Traffic profiles: a bundle scores its own traffic in units of it, without a label."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilis_guard.errors import AttemptsError, ModelError, ProfileError
from ilis_guard.lab.adapt import Traffic, adapt, asked_traffic, harvested_traffic, read_requests, write_profile
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.fit import fit
from ilis_guard.lab.splits import split
from ilis_guard.scoring import Bundle, LightGBMScorer, read_bundle
from ilis_guard.scoring.columns import columns_of
from ilis_guard.scoring.profile import AdaptedProfile, read_profile
from ilis_guard.scoring.traffic import Moments
from ilis_guard.types import STATISTICS, Fingerprint, Generation, Message, Request, Wording
from tests.lab.synthetic import synthetic_answers, write_harvest
from tests.lab.test_fit import generation

pytestmark = pytest.mark.usefixtures("fitted_model")

ROWS = synthetic_answers({"a": 200, "b": 200})
OWN = synthetic_answers({"c": 60}, seed=4)
SPREAD = [place / 50 for place in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapt") / "bundle"
    fit(ROWS, path)
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return read_bundle(str(folder))


def answered(rows: Answers) -> list[Generation]:
    return [dataclasses.replace(generation(rows, row), text="Oslo") for row in range(len(rows.ids))]


def traffic_of(rows: Answers) -> Traffic:
    """With the dataset for a label."""
    labels = [{"dataset": str(name)} for name in rows.datasets]
    return Traffic(answers=list(zip(labels, answered(rows), strict=True)))


def at_home(bundle: Bundle) -> AdaptedProfile:
    """A profile that equals the bundle's own traffic."""
    return AdaptedProfile(
        bundle=bundle.digest,
        model=bundle.metadata.model,
        wordings=bundle.metadata.wordings,
        traffic=bundle.traffic,
        uncertainties=tuple(SPREAD),
    )


def test_a_profile_has_mean_and_spread_of_every_column_of_its_answers(bundle: Bundle) -> None:
    profile = adapt(bundle, traffic_of(OWN))
    columns = columns_of(bundle.metadata.features, "answer", OWN.signatures, OWN.statistics, STATISTICS)
    (kind,) = profile.traffic.kinds
    assert (kind.name, kind.rows, profile.traffic.label) == ("all", 60, None)
    assert kind.moments.keys() == columns.blocks.keys()
    known = [(kind.moments[block], columns.blocks[block]) for block in columns.blocks]
    for moments, values in [*known, (profile.traffic.prompts, columns.prompt)]:
        np.testing.assert_allclose(moments.mean, values.mean(axis=0), atol=1e-5 * values.std(axis=0).max())
        np.testing.assert_allclose(moments.spread, values.std(axis=0), rtol=1e-5)
    assert (profile.bundle, profile.model) == (bundle.digest, bundle.metadata.model)


def of_other_traffic(bundle: Bundle) -> Bundle:
    """A bundle whose own traffic is another than its trees were fitted to: it weighs as one does under a profile."""
    blending = bundle.metadata.blending.model_copy(update={"adapted": True})
    return dataclasses.replace(bundle, metadata=bundle.metadata.model_copy(update={"blending": blending}))


def test_scores_by_a_profile_are_in_its_units_and_have_a_rank_in_it(bundle: Bundle, tmp_path: Path) -> None:
    write_profile(adapt(bundle, traffic_of(OWN)), tmp_path / "deep" / "mine.json")
    profile = read_profile(tmp_path / "deep" / "mine.json")
    plain, adapted = LightGBMScorer(bundle), LightGBMScorer(bundle, profile)
    in_its_units = LightGBMScorer(dataclasses.replace(of_other_traffic(bundle), traffic=profile.traffic))
    scores = [adapted.score(answer) for answer in answered(OWN)]
    assert sorted(score.uncertainty for score in scores) == pytest.approx(profile.uncertainties, rel=1e-12)
    moved = 0
    for answer, score in zip(answered(OWN), scores, strict=True):
        before, same = plain.score(answer), in_its_units.score(answer)
        assert (score.uncertainty, score.typicality) == (same.uncertainty, same.typicality)
        assert score.rank == sum(one < score.uncertainty for one in profile.uncertainties) / 60
        assert (score.departures, score.calibrated) == (("traffic",), False)
        assert (math.isnan(before.rank), before.departures, before.calibrated) == (True, (), True)
        moved += score.uncertainty != before.uncertainty
    assert moved > 30


def test_under_a_profile_that_equals_the_homes_traffic_numbers_are_the_homes(bundle: Bundle) -> None:
    plain, adapted = LightGBMScorer(of_other_traffic(bundle)), LightGBMScorer(bundle, at_home(bundle))
    for answer in answered(ROWS)[:50]:
        before, after = plain.score(answer), adapted.score(answer)
        assert (after.uncertainty, after.typicality) == (before.uncertainty, before.typicality)
        assert after.rank == sum(one < after.uncertainty for one in SPREAD) / len(SPREAD)
        assert (after.departures, after.calibrated) == (("traffic",), False)


def test_the_training_rows_as_traffic_have_the_homes_profile(bundle: Bundle) -> None:
    rows = ROWS.take(split(ROWS.datasets, 0)["train"])
    found, home = adapt(bundle, traffic_of(rows)).traffic, bundle.traffic
    assert (len(found.kinds), found.widths) == (len(home.kinds), home.widths) == (1, home.widths)
    for block, moments in home.kinds[0].moments.items():
        np.testing.assert_allclose(found.kinds[0].moments[block].mean, moments.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.kinds[0].moments[block].spread, moments.spread, rtol=2e-6)


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        (answered(OWN)[:3], r"needs 20 scored answers, got 3: give more of them"),
        ([], r"needs 20 scored answers, got 0"),
        (answered(OWN)[:1] * 40, r"all 40 answers have the same numbers: they are one answer, repeated"),
        ([dataclasses.replace(answer, text=" \n") for answer in answered(OWN)], r"scored answers, got 0"),
        (
            [dataclasses.replace(answer, signatures={}) for answer in answered(OWN)[:41]] + answered(OWN)[41:],
            r"scored answers, got 19",
        ),
    ],
    ids=["three", "none", "one repeated", "empty", "most without a map"],
)
def test_traffic_that_says_nothing_is_refused(bundle: Bundle, answers: list[Generation], what: str) -> None:
    with pytest.raises(ProfileError, match=what):
        adapt(bundle, Traffic(answers=[({}, answer) for answer in answers]))


def test_what_cannot_be_scored_is_left_out(bundle: Bundle) -> None:
    blank = dataclasses.replace(answered(OWN)[0], text="")
    unmapped = dataclasses.replace(answered(OWN)[1], signatures={})
    unknown = dataclasses.replace(answered(OWN)[2], statistics=None)
    more = Traffic(answers=[({}, answer) for answer in (blank, *answered(OWN), unmapped, unknown)])
    assert adapt(bundle, more) == adapt(bundle, traffic_of(OWN))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("mean", math.nan), r"answer 5 can't be measured: .*'mean' holds a value that isn't a finite divergence"),
        (("prompt", math.inf), r"answer 5 can't be measured: .*'prompt'"),
        (("logprob_sum", math.nan), r"answer 5 can't be measured: the output statistics aren't all finite"),
        (("logprob_sum", -1e200), r"an answer holds a number beyond 1e\+100"),
        (("layers", 3), r"answer 5 can't be measured: .* has the shape \(3, 3\)"),
    ],
    ids=lambda change: str(change[0])[:12],
)
def test_a_number_that_is_none_is_refused_with_the_answers_place(
    bundle: Bundle, change: tuple[str, float], what: str
) -> None:
    answers, (place, value) = answered(OWN), change
    known = answers[4].statistics
    assert known is not None
    if place == "logprob_sum":
        answers[4] = dataclasses.replace(answers[4], statistics=dataclasses.replace(known, logprob_sum=value))
    else:
        maps = {position: each.copy() for position, each in answers[4].signatures.items()}
        if place == "layers":
            maps = {position: each[: int(value), : int(value)] for position, each in maps.items()}
        else:
            maps[place][1, 2] = value  # type: ignore[index]
        answers[4] = dataclasses.replace(answers[4], signatures=maps)
    with pytest.raises(ProfileError, match=what):
        adapt(bundle, Traffic(answers=[({}, answer) for answer in answers]))


def test_answers_that_all_get_one_uncertainty_have_no_ranks(bundle: Bundle) -> None:
    """All would be among the surest, however few were wanted."""
    calibration = bundle.metadata.calibration.model_copy(update={"a": 0.0, "b": 0.0, "c": 0.5})
    flat = dataclasses.replace(bundle, metadata=bundle.metadata.model_copy(update={"calibration": calibration}))
    with pytest.raises(ProfileError, match=r"all 60 answers got the same uncertainty, 0\.622"):
        adapt(flat, traffic_of(OWN))


def test_kinds_by_a_label_have_each_their_own_units(bundle: Bundle) -> None:
    rows = synthetic_answers({"c": 40, "d": 30}, seed=4, unlike=["d"])
    profile = adapt(bundle, traffic_of(rows), by="dataset")
    assert [(kind.name, kind.rows, kind.centre) for kind in profile.traffic.kinds] == [("c", 40, ()), ("d", 30, ())]
    assert profile.traffic.label == "dataset"
    columns = columns_of(bundle.metadata.features, "answer", rows.signatures, rows.statistics, STATISTICS)
    for kind in profile.traffic.kinds:
        known = columns.take(rows.datasets == kind.name)
        assert all(kind.moments[block] == Moments.of(known.blocks[block]) for block in columns.blocks)
    scorer = LightGBMScorer(bundle, profile)
    found = [scorer.score(answer, labels=labels).uncertainty for labels, answer in traffic_of(rows).answers]
    assert sorted(found) == pytest.approx(profile.uncertainties, rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "by", "what"),
    [
        ({"topic": "x"}, "dataset", r"request 31 has no label 'dataset'; it has \['topic'\]"),
        ({"dataset": "c"}, "topic", r"request 1 has no label 'topic'; it has \['dataset'\]"),
        ({"dataset": "rare"}, "dataset", r"'rare' \(label 'dataset'\) has 1 answers, and a kind needs 20: add answers"),
    ],
)
def test_a_kind_that_is_not_named_or_too_rare_is_refused(
    bundle: Bundle, labels: dict[str, str], by: str, what: str
) -> None:
    answers = list(traffic_of(OWN).answers)
    answers[30] = (labels, answers[30][1])
    with pytest.raises(ProfileError, match=what):
        adapt(bundle, Traffic(answers=answers), by=by)


def test_a_profile_belongs_to_the_bundle_that_it_was_made_with(bundle: Bundle) -> None:
    profile = adapt(dataclasses.replace(bundle, digest="0" * 16), traffic_of(OWN))
    with pytest.raises(ProfileError, match=rf"made with the bundle '0{{16}}'.* this one is '{bundle.digest}'"):
        LightGBMScorer(bundle, profile)


@pytest.mark.parametrize("block", ["features", "typicality", "logprobs", "prompts"])
def test_a_profile_of_other_columns_is_refused_whatever_bundle_it_names(bundle: Bundle, block: str) -> None:
    known = at_home(bundle).model_dump()
    moments = known["traffic"]["prompts"] if block == "prompts" else known["traffic"]["kinds"][0]["moments"][block]
    moments |= {"mean": moments["mean"][1:], "spread": moments["spread"][1:]}
    with pytest.raises(ProfileError, match=r"the profile has the columns .*: it is damaged; make it again"):
        LightGBMScorer(bundle, AdaptedProfile.model_validate(known))


def test_harvested_answers_are_traffic_whatever_they_are_labelled(bundle: Bundle, tmp_path: Path) -> None:
    rows = synthetic_answers({"a": 30, "c": 30}, seed=5)
    path = write_harvest(rows, tmp_path / "rows.parquet")
    traffic = harvested_traffic(bundle, path)
    assert traffic.wordings == frozenset(rows.row_wordings().tolist()) == frozenset(bundle.metadata.wordings)
    assert [labels for labels, _ in traffic.answers] == [{"dataset": name} for name in rows.datasets.tolist()]
    profile, known = adapt(bundle, traffic), adapt(bundle, traffic_of(rows))
    assert profile == known
    turned = dataclasses.replace(rows, wrong=~rows.wrong)
    assert adapt(bundle, harvested_traffic(bundle, write_harvest(turned, tmp_path / "turned.parquet"))) == profile
    by_dataset = adapt(bundle, traffic, by="dataset")
    assert [(kind.name, kind.rows) for kind in by_dataset.traffic.kinds] == [("a", 30), ("c", 30)]
    with pytest.raises(ProfileError, match=r"rows\.parquet has another model .* precision differ"):
        harvested_traffic(bundle, write_harvest(rows, path, "nf4"))


class Answering:
    """A model that gives these answers in turn; None fails."""

    prompt, max_new_tokens = "{question}", 8

    def __init__(self, bundle: Bundle, answers: Sequence[Generation | None]) -> None:
        self.fingerprint = bundle.metadata.fingerprint
        self._answers = iter(answers)

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation | ModelError]:
        return [next(self._answers) or ModelError("it is out") for _ in conversations]


def test_requests_put_to_the_model_are_traffic_with_their_labels(bundle: Bundle) -> None:
    failing = [None if row % 3 == 0 else answer for row, answer in enumerate(answered(OWN))]
    requests = [Request.of(f"Who is {row}?", {"row": row}) for row in range(60)]
    done: list[tuple[int, int]] = []
    traffic = asked_traffic(bundle, Answering(bundle, failing), requests, progress=lambda *counts: done.append(counts))
    assert [labels["row"] for labels, _ in traffic.answers] == [row for row in range(60) if row % 3]
    assert [answer for _, answer in traffic.answers] == [answer for answer in failing if answer is not None]
    assert traffic.wordings == frozenset({Wording(prompt="cd")})
    assert done == [(0, 60), (32, 60), (60, 60)]
    assert adapt(bundle, traffic).traffic.kinds[0].rows == 40
    with pytest.raises(ModelError, match="it is out"):
        asked_traffic(bundle, Answering(bundle, [None] * 60), requests)
    fitted = bundle.metadata.fingerprint
    assert isinstance(fitted, Fingerprint)
    other = dataclasses.replace(fitted, weights="ef")
    model = Answering(bundle, answered(OWN))
    model.fingerprint = other
    with pytest.raises(ProfileError, match=r"the tier has another model than the bundle .* weights differ"):
        asked_traffic(bundle, model, requests)


def test_requests_are_conversations_or_questions_with_labels_and_without_answers(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    system = {"role": "system", "content": "Be brief."}
    path.write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in (
                {"question": "Who?", "context": "Ada wrote it."},
                {"id": "7", "question": "Which?", "choices": ["a", "b"], "answers": ["a"], "dataset": "letters"},
                {"messages": [system, {"role": "user", "content": "Why?"}], "labels": {"topic": "x", "urgent": True}},
            )
        )
    )
    known = read_requests(path)
    user = [(Message(role="user", content=text),) for text in ("Ada wrote it.\n\nWho?", "Which?\nA) a\nB) b")]
    talk = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
    assert [request.messages for request in known] == [*user, talk]
    assert [dict(request.labels) for request in known] == [{}, {"dataset": "letters"}, {"topic": "x", "urgent": True}]
    for wrong, what in (
        ('{"id": "1"}', r":2: there is neither `messages` nor `question`"),
        ("{", r":2: "),
        ('{"question": 5}', r":2: question: "),
        ('{"messages": [{"role": "user"}]}', r":2: "),
        ('{"question": " "}', r":2: the prompt is empty"),
        ('{"question": "Who?", "labels": ["x"]}', r":2: labels: "),
        ('{"question": "Who?", "labels": {"a b": 1}}', r":2: the label name 'a b' isn't an identifier"),
    ):
        path.write_text('{"question": "Who?"}\n' + wrong)
        with pytest.raises(AttemptsError, match=r"q\.jsonl" + what):
            read_requests(path)
    path.write_text("\n")
    with pytest.raises(AttemptsError, match="there are no requests in it"):
        read_requests(path)


def wrong_number(known: dict[str, Any], number: float | None) -> None:
    known["traffic"]["kinds"][0]["moments"]["features"]["mean"][2] = number


@pytest.mark.parametrize(
    "change",
    [
        lambda known: known.update(uncertainties=[0.1] * 3),
        lambda known: known.update(uncertainties=[*SPREAD[::-1]]),
        lambda known: known.update(uncertainties=[*SPREAD, 1.5]),
        lambda known: known.update(uncertainties=[*SPREAD, None]),
        lambda known: known.update(uncertainties=["0.1"] * 30),
        lambda known: known.update(version=2),
        lambda known: known.update(extra=1),
        lambda known: known.update(bundle=None),
        lambda known: known.update(wordings=[{"prompt": 7}]),
        lambda known: known.pop("traffic"),
        lambda known: known["traffic"].update(kinds=[]),
        lambda known: known["traffic"].update(kinds=known["traffic"]["kinds"] * 2),
        lambda known: known["traffic"]["kinds"][0]["moments"]["features"]["spread"].pop(),
        lambda known: known["traffic"]["kinds"][0]["moments"]["features"].update(spread=[-1.0]),
        lambda known: wrong_number(known, math.nan),
        lambda known: wrong_number(known, math.inf),
        lambda known: wrong_number(known, None),
        lambda known: wrong_number(known, 1e200),
    ],
)
def test_a_file_that_is_no_profile_is_named(bundle: Bundle, change: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    write_profile(at_home(bundle), path)
    assert read_profile(path) == at_home(bundle)
    known = json.loads(path.read_text())
    change(known)
    path.write_text(json.dumps(known))
    with pytest.raises(ProfileError, match=r"mine\.json"):
        read_profile(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"version": NaN}'])
def test_any_file_is_a_profile_or_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ProfileError, match=r"mine\.json"):
        read_profile(tmp_path / "mine.json")
    with pytest.raises(ProfileError, match=r"none\.json.*make a profile with `ilis-guard adapt`"):
        read_profile(tmp_path / "none.json")
