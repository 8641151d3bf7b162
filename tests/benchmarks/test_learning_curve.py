"""The learning curve's figures, on synthetic harvests of which it is known what they must be."""

import csv
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.learning_curve.__main__ import RESULTS, SIZES, measure, run
from benchmarks.learning_curve.figures import HEADINGS, curve_figures, find
from benchmarks.learning_curve.left_out import LeftOut, harvests_in, leave_out, sources_in, take
from benchmarks.learning_curve.rivals import OUTPUT_STATISTICS
from benchmarks.learning_curve.trials import BUNDLE, Setting, Sizes, Trial
from ilis_guard.errors import FitError
from ilis_guard.lab.adapt import Traffic, adapt
from ilis_guard.lab.calibration_rows import read_calibration_rows
from ilis_guard.lab.evaluation.bootstrap import MEAN, POOLED
from ilis_guard.lab.recalibrate import KEPT, correct
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.scoring.bundle import row_digest
from ilis_guard.scoring.profile import AdaptedProfile
from ilis_guard.types import STATISTICS
from tests.lab.synthetic import synthetic_answers, write_harvest
from tests.lab.test_fit import generation

ROOT = Path(__file__).parents[2]
TINY = Sizes(profiles=(0, 20), labels=(25,), sampled=(25,), pool=60, tested=60)
SETS = {name: synthetic_answers({name: 120}, seed=seed) for seed, name in enumerate(("alpha", "beta", "gamma"))}
SMALL = synthetic_answers({"small": 100}, seed=9)
"""Too few rows to be left out."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curve")
    for name, rows in (*SETS.items(), ("small", SMALL)):
        write_harvest(rows, folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def alpha(folder: Path, bundles: Path) -> LeftOut:
    return leave_out("alpha", sources_in(folder), bundles)


@pytest.fixture(scope="module")
def table(folder: Path, bundles: Path) -> list[dict[str, str]]:
    mpl.use("Agg")
    run(folder, folder / "to" / "curve.csv", bundles, TINY, draws=2, samplers=True)
    with (folder / "to" / "curve.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cell(table: list[dict[str, str]], figure: str, left_out: str, **setting: object) -> float:
    wanted = {"labels": 0, "kept": 0.0, "profile": 0, "sampler": "random"} | setting
    named = {**{name: str(value) for name, value in wanted.items()}, "figure": figure, "set": left_out}
    (row,) = [row for row in table if all(row[name] == value for name, value in named.items())]
    return float(row["value"])


def test_a_bundle_has_seen_nothing_of_the_set_that_is_left_out(alpha: LeftOut) -> None:
    splits = alpha.bundle.calibration_set.splits
    assert splits is not None
    seen = {digest for digests in splits.values() for digest in digests}
    assert len(seen) == 120 + 120 + 100
    assert seen.isdisjoint(map(row_digest, SETS["alpha"].ids.tolist()))
    assert alpha.rows.ids == SETS["alpha"].ids.tolist()


def test_figures_without_a_label_are_those_of_the_tested_rows(alpha: LeftOut, table: list[dict[str, str]]) -> None:
    rows = SETS["alpha"]
    tested = [np.random.default_rng(seed).permutation(120)[60:] for seed in (0, 1)]
    perplexity = -rows.statistics[:, STATISTICS.index("logprob_mean")]
    wanted = np.mean([roc_auc_score(rows.wrong[one], perplexity[one]) for one in tested])
    assert cell(table, "auroc", "alpha", method="perplexity") == pytest.approx(wanted, abs=1e-4)
    scorer = LightGBMScorer(alpha.bundle)
    scores = np.array([scorer.score(generation(rows, row)).uncertainty for row in range(120)])
    wanted = np.mean([roc_auc_score(rows.wrong[one], scores[one]) for one in tested])
    assert cell(table, "auroc", "alpha", method=BUNDLE) == pytest.approx(wanted, abs=1e-4)
    together = np.concatenate(tested)
    bins = np.array_split(np.argsort(scores[together], kind="stable"), 10)
    off = sum(abs(float((scores[together][one] - rows.wrong[together][one]).sum())) for one in bins) / 120
    # A row that is tested in both draws may lie on either side of an edge.
    assert cell(table, "ece", "alpha", method=BUNDLE) == pytest.approx(off, abs=0.02)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The pool and the tested rows."""
    order = np.random.default_rng(seed).permutation(120)
    return order[:60], order[60:]


def auroc_of(scorer: LightGBMScorer, tested: np.ndarray) -> float:
    rows = SETS["alpha"]
    scores = [scorer.score(generation(rows, row)).uncertainty for row in tested]
    return float(roc_auc_score(rows.wrong[tested], scores))


def profile_of(alpha: LeftOut, rows: np.ndarray) -> AdaptedProfile:
    answers = [replace(generation(SETS["alpha"], row), text="an answer") for row in rows]
    return adapt(alpha.bundle, Traffic(answers=[({}, answer) for answer in answers]))


def test_with_a_profile_a_set_is_scored_as_a_guard_scores_it(alpha: LeftOut, table: list[dict[str, str]]) -> None:
    wanted = np.mean(
        [
            auroc_of(LightGBMScorer(alpha.bundle, profile_of(alpha, pool[:20])), tested)
            for pool, tested in map(drawn, (0, 1))
        ]
    )
    assert cell(table, "auroc", "alpha", method=BUNDLE, profile=20) == pytest.approx(wanted, abs=1e-4)


def test_with_labels_a_set_is_scored_as_a_guard_scores_it_by_the_new_bundle(
    alpha: LeftOut, table: list[dict[str, str]], folder: Path, tmp_path: Path
) -> None:
    found = []
    for seed in (0, 1):
        pool, tested = drawn(seed)
        rows = read_calibration_rows(alpha.bundle, folder / "alpha.parquet", profile=profile_of(alpha, pool))
        correct(alpha.bundle, take(rows, pool[:25]), tmp_path / str(seed), kept=0.0, accept=True)
        learned = read_bundle(str(tmp_path / str(seed)))
        assert learned.metadata.blending.adapted
        found.append(auroc_of(LightGBMScorer(learned), tested))
    in_table = cell(table, "auroc", "alpha", method=BUNDLE, labels=25, profile=60)
    assert in_table == pytest.approx(np.mean(found), abs=1e-4)


def test_means_are_over_the_sets_with_enough_rows(table: list[dict[str, str]]) -> None:
    assert {row["set"] for row in table} == {*SETS, MEAN, POOLED}
    setting = {"method": BUNDLE, "labels": 25, "profile": 60}
    of_sets = [cell(table, "auroc", name, **setting) for name in SETS]
    assert cell(table, "auroc", MEAN, **setting) == pytest.approx(np.mean(of_sets), abs=1e-4)
    (row,) = [row for row in table if row["set"] == MEAN and row["method"] == "perplexity" and row["figure"] == "auroc"]
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


def test_nothing_is_certified_by_rows_that_were_learned_from(table: list[dict[str, str]]) -> None:
    for method in (BUNDLE, OUTPUT_STATISTICS):
        assert cell(table, "certified coverage", MEAN, method=method, labels=25, profile=60) == 0
        # Of 10 rows none is certified: it takes 14.
        assert cell(table, "certified coverage", MEAN, method=method, labels=25, profile=60, kept=KEPT) == 0
    assert not [row for row in table if row["labels"] == "0" and row["figure"] == "certified coverage"]


def test_samplers_and_the_picture_stand_beside_the_table(folder: Path, table: list[dict[str, str]]) -> None:
    assert table
    with (folder / "to" / "curve_samplers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["sampler"] for row in rows} == {"random", "spread", "systematic", "middle", "clusters"}
    assert {row["labels"] for row in rows} == {"25"}
    assert (folder / "to" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_known_trials() -> None:
    setting = Setting(method=BUNDLE, labels=4)
    wrong, raw = np.array([False, True, False, True]), np.array([0.1, 0.4, 0.5, 0.9])

    def trial(name: str, answered: list[bool], *, refused: bool) -> Trial:
        return Trial(
            setting=setting,
            left_out=name,
            wrong=wrong,
            raw=raw,
            probability=np.full(4, 0.25),
            answered=np.array(answered),
            refused=refused,
        )

    some, none = [True, True, False, False], [False] * 4
    found = curve_figures(
        [trial("a", some, refused=False), trial("a", none, refused=True), trial("b", none, refused=True)]
    )

    def value(name: str, left_out: str) -> float | None:
        one = find(found, setting, name, left_out)
        return None if one is None else one.value

    assert value("auroc", "a") == value("auroc", MEAN) == 0.75
    assert value("ece", "a") == value("ece", POOLED) == 0.25
    assert (value("certified coverage", "a"), value("certified coverage", MEAN)) == (0.25, 0.125)
    assert (value("error of certified", "a"), value("error of certified", "b")) == (0.5, None)
    assert (value("refused", "a"), value("refused", MEAN)) == (0.5, 0.75)


def test_too_few_sets_or_rows_are_refused(folder: Path, bundles: Path, tmp_path: Path) -> None:
    with pytest.raises(FitError, match=r"holds 0 harvests \(\*\.parquet\), and at least 2 are needed"):
        harvests_in(tmp_path)
    with pytest.raises(FitError, match=r"no set in .* has 260 rows: 200 to look at, and the others to test"):
        list(measure(folder, bundles, SIZES, 1, samplers=False))


def test_the_committed_table_is_of_all_settings_and_the_docs_say_its_figures() -> None:
    with RESULTS.open(newline="", encoding="utf-8") as file:
        headings, *rows = csv.reader(file)
    assert tuple(headings) == HEADINGS
    named = [dict(zip(headings, row, strict=True)) for row in rows]
    text = (ROOT / "docs" / "fitting.md").read_text(encoding="utf-8")
    for labels in SIZES.labels:
        for kept in (0.0, KEPT):
            value = cell(named, "auroc", MEAN, method=BUNDLE, labels=labels, kept=kept, profile=SIZES.pool)
            assert f"{value:.3f}".lstrip("0") in text
