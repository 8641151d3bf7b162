"""Rows that depend on one another: they forge no figure, no guarantee and no typicality."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilis_guard.errors import FitError, UnacceptedFindingsError
from ilis_guard.lab import metrics
from ilis_guard.lab.attempts import Answers, read_attempts
from ilis_guard.lab.calibration_rows import read_calibration_rows, verdict_groups
from ilis_guard.lab.fit import fit
from ilis_guard.lab.grouping import answer_groups
from ilis_guard.lab.recalibrate import recalibrate
from ilis_guard.lab.splits import split
from ilis_guard.policy.records import VerdictJson
from ilis_guard.scoring import Bundle, LightGBMScorer, certify, read_bundle
from tests.lab.synthetic import synthetic_answers, write_harvest
from tests.lab.test_fit import generation, made
from tests.lab.test_recalibrate import VERDICT, written
from tests.lab.test_remote_fit import ROWS as REMOTE_ROWS

pytestmark = pytest.mark.usefixtures("fitted_model", "few_resamples")


def repeated(rows: Answers, times: int) -> Answers:
    """Each row so many times, under other ids."""
    again = rows.take(np.tile(np.arange(len(rows)), times))
    return replace(again, ids=np.array([f"copy-{number}" for number in range(len(again))], dtype=object))


def named(rows: Answers, times: int, groups: list[str]) -> Answers:
    """As `repeated`, told by the table alone: the maps of copies differ a little, and so do the statistics."""
    again = repeated(rows, times)
    random = np.random.default_rng(1)
    return replace(
        again,
        signatures={
            name: (maps * np.exp(0.2 * random.normal(size=maps.shape))).astype(np.float32)
            for name, maps in again.signatures.items()
        },
        statistics=again.statistics + 0.1 * random.normal(size=again.statistics.shape),
        groups=np.array(groups * times, dtype=object),
    )


def test_noise_that_is_repeated_gives_no_bundle(tmp_path: Path) -> None:
    """500 rows, each four times: without groups, AUROC .99, and a certificate of 10 % with every other answer wrong."""
    with pytest.raises((UnacceptedFindingsError, FitError)) as refused:
        fit(repeated(made(500, 3), 4), tmp_path / "bundle")
    assert "AUROC" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["by their maps", "by the table"])
def test_an_accepted_bundle_of_repeated_noise_promises_nothing_false(how: str, tmp_path: Path) -> None:
    base = made(500, 3)
    rows = repeated(base, 4) if how == "by their maps" else named(base, 4, [f"group {row}" for row in range(500)])
    metadata = fit(rows, tmp_path / "bundle", accept=True)
    assert metadata.groups == {"train": 250, "validation": 50, "calibration": 100, "test": 100}
    rows_of = {"train": 1000, "validation": 200, "calibration": 400, "test": 400, "unanswered": 7, "rare_wordings": 0}
    assert metadata.rows == rows_of
    assert metadata.held_out.auroc.low < 0.5
    assert {finding.kind for finding in metadata.findings if finding.is_error} >= {"by_chance"}
    bundle = read_bundle(str(tmp_path / "bundle"))
    known = bundle.calibration_set
    assert len(known.uncertainty) == len(known.wrong) == len(known.typicality.distances) == 100
    for max_error in (0.1, 0.2, 0.3):
        assert certify(known.uncertainty, known.wrong, max_error=max_error).threshold is None
    fresh = made(300, 77)
    scores = [LightGBMScorer(bundle).score(generation(fresh, row)) for row in range(300)]
    assert 0.02 < np.mean([score.typicality <= 0.1 for score in scores]) < 0.25


def test_a_group_is_on_one_side_of_every_split_and_gives_one_calibration_row(tmp_path: Path) -> None:
    rows = named(made(300, signal=1.0), 3, [f"group {row // 2}" for row in range(300)])
    splits = split(rows.datasets, 0, answer_groups(rows))
    assert rows.groups is not None
    sides = [{name for name, mask in splits.items() if mask[rows.groups == group].any()} for group in set(rows.groups)]
    assert all(len(side) == 1 for side in sides)
    metadata = fit(rows, tmp_path / "bundle")
    assert sum(metadata.groups.values()) == 150
    assert sum(metadata.rows[name] for name in metadata.groups) == 900
    assert len(read_bundle(str(tmp_path / "bundle")).calibration_set.wrong) == metadata.groups["calibration"] == 30


def test_rows_that_depend_on_none_are_split_as_they_would_be_without_groups() -> None:
    datasets = np.array(["a", "b"] * 50)
    for name, mask in split(datasets, 3).items():
        assert (mask == split(datasets, 3, np.arange(100))[name]).all()


def test_too_few_different_rows_are_refused_however_often_they_are_repeated(tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"of 80 scored answers 40 are right and 40 wrong \(720 more depend on them"):
        fit(repeated(made(80, signal=2.0), 10), tmp_path / "bundle")


def test_intervals_are_over_groups() -> None:
    random = np.random.default_rng(0)
    wrong = random.random(100) < 0.5
    uncertainty = random.random(100) + 0.3 * wrong
    uncertainty /= uncertainty.max()
    datasets = np.full(100, "a")
    alone = metrics.held_out(wrong, uncertainty, datasets)
    copied = (np.tile(wrong, 9), np.tile(uncertainty, 9), np.tile(datasets, 9))
    grouped = metrics.held_out(*copied, np.tile(np.arange(100), 9))
    naive = metrics.held_out(*copied)
    assert (grouped.rows, grouped.groups, alone.groups) == (900, 100, 100)
    width = {name: held.auroc.high - held.auroc.low for name, held in vars_of(alone, grouped, naive).items()}
    assert width["grouped"] == pytest.approx(width["alone"], rel=0.35)
    assert width["naive"] < 0.6 * width["alone"]


def vars_of(alone: Any, grouped: Any, naive: Any) -> dict[str, Any]:
    return {"alone": alone, "grouped": grouped, "naive": naive}


def test_remote_rows_that_are_repeated_are_one_row(tmp_path: Path) -> None:
    fitted = fit(repeated(REMOTE_ROWS, 3), tmp_path / "bundle", accept=True)
    alone = fit(REMOTE_ROWS, tmp_path / "alone", accept=True)
    assert fitted.groups == alone.groups
    assert fitted.rows["train"] == 3 * alone.rows["train"]


def test_answers_of_which_a_remote_model_is_certain_are_no_copies_of_one_another() -> None:
    statistics = REMOTE_ROWS.statistics.copy()
    statistics[:50] = [0.0, 0.0, 20.0]
    assert len(set(answer_groups(replace(REMOTE_ROWS, statistics=statistics))[:50].tolist())) == 50


def test_a_column_of_the_table_groups_rows(tmp_path: Path) -> None:
    rows = synthetic_answers({"a": 30, "b": 40, "c": 50})
    table = read_attempts(write_harvest(rows, tmp_path / "rows.parquet"))
    assert len(set(answer_groups(table.answers()).tolist())) == 120
    by_dataset = table.answers("dataset")
    assert (by_dataset.group_by, len(set(answer_groups(by_dataset).tolist()))) == ("dataset", 3)
    with pytest.raises(FitError, match=r"no column 'document' of texts to group by.*harvest --group-by document"):
        table.answers("document")
    with pytest.raises(FitError, match="the column 'error' is empty in 120 of 120 rows"):
        table.answers("error")


# Recalibration.


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("dependent") / "bundle"
    fit(made(600, signal=0.6), folder)
    return read_bundle(str(folder))


def export(bundle: Bundle, count: int, times: int, seed: int = 0) -> list[dict[str, Any]]:
    """Verdicts on `count` questions, each asked by so many users in their own words."""
    random = np.random.default_rng(seed)
    raw = random.random(count)
    wrong = random.random(count) < raw
    uncertainty = bundle.metadata.calibration.apply(raw)
    asked = ("What is item {}?", "what is item {}", "What  is ITEM {} ?!", "Whta is item {}?", "“What is item {}?”")
    return [
        VERDICT
        | {
            "id": f"ticket-{place}-{user}",
            "messages": [
                {"role": "system", "content": f"You talk to user {user}."},
                {"role": "user", "content": asked[user % len(asked)].format(place)},
            ],
            "labels": {"user": f"user {place % 7}"},
            "text": f"It is {place}.",
            "uncertainty": float(uncertainty[place]),
            "correct": not wrong[place],
        }
        for place in range(count)
        for user in range(times)
    ]


def test_one_question_of_many_users_is_one_row(bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", export(bundle, 200, 5))
    rows = read_calibration_rows(bundle, path)
    metadata = recalibrate(bundle, rows, tmp_path / "new")
    assert metadata.recalibrated is not None
    assert (metadata.recalibrated.rows, metadata.recalibrated.groups) == (1000, 200)
    assert len(read_bundle(str(tmp_path / "new")).calibration_set.wrong) == 200
    alone = recalibrate(
        bundle, read_calibration_rows(bundle, written(path, export(bundle, 200, 1))), tmp_path / "alone"
    )
    assert metadata.calibration.apply(rows.raw) == pytest.approx(alone.calibration.apply(rows.raw), abs=1e-6)


def test_rows_of_one_user_are_one_row_where_users_are_named(bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", export(bundle, 100, 2))
    rows = read_calibration_rows(bundle, path, group_by="labels.user")
    assert (len(set(rows.groups.tolist())), rows.group_by) == (7, "labels.user")


@pytest.mark.parametrize("column", ["labels.document", "nothing", "labels", "correct"])
def test_a_column_that_lines_do_not_have_is_refused_with_its_place(column: str, bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", export(bundle, 3, 1))
    with pytest.raises(Exception, match=rf"rows\.jsonl:1: there is no '{column}' to group by"):
        read_calibration_rows(bundle, path, group_by=column)


def test_follow_up_questions_of_other_conversations_are_others() -> None:
    def verdict(before: str, question: str, **changes: Any) -> VerdictJson:
        messages = [
            {"role": "user", "content": before},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": question},
        ]
        return VerdictJson.model_validate_json(json.dumps(VERDICT | {"messages": messages} | changes))

    verdicts = [
        verdict("Is it cold in Norway?", "Why?"),
        verdict("Is it hot in Kenya?", "Why?"),
        verdict("is it cold in norway", "why"),
        verdict("[redacted]", "[redacted]", redacted=True, typicality=0.25, logprob_sum=-1.5),
        verdict("[redacted]", "[redacted]", redacted=True, typicality=0.5, logprob_sum=-2.5),
        verdict("[redacted]", "[redacted]", redacted=True, typicality=0.25, logprob_sum=-1.5),
    ]
    assert verdict_groups(verdicts, [None] * 6).tolist() == [0, 1, 0, 3, 4, 3]


def test_rows_that_a_bundle_was_fitted_to_recalibrate_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """Its score knows their outcomes: a certificate on them would be forged. Copies of them are no better."""
    known, fresh = made(600, signal=0.6), made(200, seed=9, signal=0.6)
    fresh = replace(fresh, ids=np.array([f"new-{row}" for row in range(200)], dtype=object))
    rows = read_calibration_rows(bundle, write_harvest_of(joined(known, fresh), tmp_path / "rows.parquet"))
    assert (rows.fitted_to, len(rows)) == (360, 440)
    recalibrate(bundle, rows, tmp_path / "new")
    again = read_calibration_rows(read_bundle(str(tmp_path / "new")), tmp_path / "rows.parquet")
    assert (again.fitted_to, len(again)) == (360, 440)
    copies = replace(known, ids=np.array([f"other-{row}" for row in range(600)], dtype=object))
    both = write_harvest_of(joined(copies, known), tmp_path / "mixed.parquet")
    assert read_calibration_rows(bundle, both).fitted_to == 720


def joined(one: Answers, other: Answers) -> Answers:
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("ids", "datasets", "wrong", "statistics")
    }
    maps = {name: np.concatenate([one.signatures[name], other.signatures[name]]) for name in one.signatures}
    return replace(one, signatures=maps, **columns)


def write_harvest_of(rows: Answers, path: Path) -> Path:
    return write_harvest(rows, path, rows.manifest.tapped().precision)


# Certificates.


def test_a_certificate_on_repeated_rows_keeps_its_promise_only_with_their_groups() -> None:
    """400 requests that are wrong a little too often everywhere, each nine times: any threshold breaks the promise."""
    random = np.random.default_rng(0)
    draws, broken = 300, {"grouped": 0, "naive": 0}
    for _ in range(draws):
        wrong = np.repeat(random.random(400) < 0.105, 9)
        uncertainty = np.repeat(random.random(400), 9) + 1e-6 * random.random(3600)
        uncertainty = np.clip(uncertainty, 0, 1)
        groups = np.repeat(np.arange(400), 9)
        found = certify(uncertainty, wrong, max_error=0.1, confidence=0.9, groups=groups)
        assert (found.rows, found.dependent) == (400, 3200)
        broken["grouped"] += found.threshold is not None
        broken["naive"] += certify(uncertainty, wrong, max_error=0.1, confidence=0.9).threshold is not None
    # 30 of 300 are expected at most; 54 come in one case of 100,000.
    assert broken["grouped"] <= 53
    assert broken["naive"] > 150


def test_which_row_of_a_group_counts_depends_on_no_outcome() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    uncertainty = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    right = certify(uncertainty, [False] * 6, min_coverage=0.3, groups=groups)
    wrong = certify(uncertainty, [True] * 6, min_coverage=0.3, groups=groups)
    assert right.rows == wrong.rows == 3
    assert right.threshold == wrong.threshold
