from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ilis_guard.lab import metrics
from ilis_guard.lab.metrics import BINS, ScoreCounts

Formula = Callable[[ScoreCounts], np.ndarray]
Metric = Callable[[np.ndarray, np.ndarray], float]
FORMULAS: list[Formula] = [
    *(
        ScoreCounts.auroc,
        ScoreCounts.auprc_wrong,
        ScoreCounts.auprc_correct,
        ScoreCounts.aurc,
        ScoreCounts.least_aurc,
        ScoreCounts.excess_aurc,
        ScoreCounts.rejection_ratio,
    ),
    *(ScoreCounts.accuracy_at_coverage, ScoreCounts.brier, ScoreCounts.brier_skill, ScoreCounts.calibration_error),
]
SHARED: list[tuple[Formula, Metric]] = [
    (ScoreCounts.auroc, metrics.auroc),
    (ScoreCounts.auprc_wrong, metrics.auprc_wrong),
    (ScoreCounts.auprc_correct, metrics.auprc_correct),
    (ScoreCounts.brier, metrics.brier),
    (ScoreCounts.brier_skill, metrics.brier_skill),
]

WRONG = np.array([True, False, True, False, False])
SCORES = np.array([0.9, 0.8, 0.6, 0.6, 0.1])


def made(count: int, seed: int, *, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose scores tell something; the fewer decimals, the more of them are equal."""
    random = np.random.default_rng(seed)
    wrong = random.random(count) < 0.4
    return wrong, np.clip(random.normal(0.5, 0.2, count) + 0.2 * (wrong - 0.5), 0, 1).round(decimals)


def one(formula: Formula, wrong: np.ndarray, scores: np.ndarray) -> float:
    (value,) = formula(ScoreCounts.of(wrong, scores))
    return float(value)


def errors_in_order(wrong: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    return np.cumsum(wrong[list(order)]) / np.arange(1, len(wrong) + 1)


def orders_of(scores: np.ndarray) -> list[tuple[int, ...]]:
    """All orders in which the scores ascend."""
    return [order for order in permutations(range(len(scores))) if (np.diff(scores[list(order)]) >= 0).all()]


@pytest.mark.parametrize("decimals", [16, 1])
def test_rankings_are_scikit_learns(decimals: int) -> None:
    wrong, scores = made(300, 0, decimals=decimals)
    assert one(ScoreCounts.auroc, wrong, scores) == pytest.approx(roc_auc_score(wrong, scores), abs=1e-12)
    assert one(ScoreCounts.auprc_wrong, wrong, scores) == pytest.approx(
        average_precision_score(wrong, scores), abs=1e-12
    )
    assert one(ScoreCounts.auprc_correct, wrong, scores) == pytest.approx(
        average_precision_score(~wrong, -scores), abs=1e-12
    )


@pytest.mark.parametrize(("formula", "metric"), SHARED)
@pytest.mark.parametrize("decimals", [16, 1])
def test_metrics_of_counts_equal_those_of_bundles(formula: Formula, metric: Metric, decimals: int) -> None:
    wrong, scores = made(200, 1, decimals=decimals)
    assert one(formula, wrong, scores) == pytest.approx(metric(wrong, scores), abs=1e-12)


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_draw_equals_its_rows_repeated(formula: Formula) -> None:
    wrong, scores = made(80, 2, decimals=1)
    random = np.random.default_rng(3)
    draws = np.stack([np.bincount(random.integers(80, size=80), minlength=80) for _ in range(20)])
    together = formula(ScoreCounts.of(wrong, scores, draws))
    alone = [one(formula, np.repeat(wrong, times), np.repeat(scores, times)) for times in draws]
    np.testing.assert_allclose(together, alone, atol=1e-12)


def test_aurc_is_the_mean_error_over_all_orders_of_equal_scores() -> None:
    scores = np.array([0.2, 0.2, 0.2, 0.7, 0.7, 0.9])
    wrong = np.array([True, False, False, True, False, True])
    naive = np.mean([errors_in_order(wrong, order).mean() for order in orders_of(scores)])
    assert one(ScoreCounts.aurc, wrong, scores) == pytest.approx(naive, abs=1e-12)


def test_aurc_without_equal_scores_by_hand() -> None:
    # From the least uncertain: right, wrong, right: errors 0, 1/2, 1/3.
    wrong = np.array([False, True, False])
    assert one(ScoreCounts.aurc, wrong, np.array([0.1, 0.5, 0.9])) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    # The best: right, right, wrong.
    assert one(ScoreCounts.least_aurc, wrong, np.array([0.1, 0.5, 0.9])) == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert one(ScoreCounts.excess_aurc, wrong, np.array([0.1, 0.5, 0.9])) == pytest.approx(1 / 6)
    # By chance the error is 1/3 at every coverage.
    assert one(ScoreCounts.rejection_ratio, wrong, np.array([0.1, 0.5, 0.9])) == pytest.approx(
        (1 / 3 - 5 / 18) / (1 / 3 - 1 / 9)
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=2, max_size=6))
def test_aurc_and_accuracy_are_the_expectation_over_orders(rows: list[tuple[bool, int]]) -> None:
    wrong, scores = np.array([bad for bad, _ in rows]), np.array([float(score) for _, score in rows])
    orders = orders_of(scores)
    naive = np.mean([errors_in_order(wrong, order).mean() for order in orders])
    assert one(ScoreCounts.aurc, wrong, scores) == pytest.approx(naive, abs=1e-9)
    kept = -(-4 * len(rows) // 5)
    accuracy = np.mean([1 - errors_in_order(wrong, order)[kept - 1] for order in orders])
    assert one(ScoreCounts.accuracy_at_coverage, wrong, scores) == pytest.approx(accuracy, abs=1e-9)


def test_a_perfect_ranking_has_no_excess_and_rejects_all_that_can_be() -> None:
    wrong, _ = made(60, 4, decimals=2)
    perfect = wrong + np.linspace(0, 0.5, 60)
    assert one(ScoreCounts.excess_aurc, wrong, perfect) == pytest.approx(0, abs=1e-12)
    assert one(ScoreCounts.rejection_ratio, wrong, perfect) == pytest.approx(1, abs=1e-12)
    assert one(ScoreCounts.rejection_ratio, wrong, -perfect) < -0.5


def test_a_constant_score_is_chance() -> None:
    wrong, _ = made(50, 5, decimals=2)
    constant = np.full(50, 0.3)
    assert one(ScoreCounts.auroc, wrong, constant) == pytest.approx(0.5)
    assert one(ScoreCounts.aurc, wrong, constant) == pytest.approx(wrong.mean())
    assert one(ScoreCounts.rejection_ratio, wrong, constant) == pytest.approx(0, abs=1e-12)
    assert one(ScoreCounts.accuracy_at_coverage, wrong, constant) == pytest.approx(1 - wrong.mean())
    assert one(ScoreCounts.calibration_error, wrong, constant) == pytest.approx(abs(0.3 - wrong.mean()))


def test_calibration_error_by_hand() -> None:
    # Two answers a bin; what is said is 0.1 too little in the first half and 0.2 too much in the second.
    wrong = np.tile([False, True], BINS)
    said = np.where(np.arange(2 * BINS) < BINS, 0.4, 0.7) + 1e-9 * np.arange(2 * BINS)
    assert one(ScoreCounts.calibration_error, wrong, said) == pytest.approx((0.1 + 0.2) / 2, abs=1e-6)


def test_calibration_error_of_exact_probabilities_shrinks_with_more_rows() -> None:
    random = np.random.default_rng(6)
    few, many = (random.random(count) for count in (100, 100_000))
    assert one(ScoreCounts.calibration_error, random.random(len(few)) < few, few) > 0.03
    assert one(ScoreCounts.calibration_error, random.random(len(many)) < many, many) < 0.01
    squashed = 0.25 + many / 2
    assert one(ScoreCounts.calibration_error, random.random(len(many)) < many, squashed) == pytest.approx(
        0.125, abs=0.01
    )


@pytest.mark.parametrize(
    "formula",
    [
        ScoreCounts.auroc,
        ScoreCounts.auprc_wrong,
        ScoreCounts.auprc_correct,
        ScoreCounts.rejection_ratio,
        ScoreCounts.brier_skill,
    ],
)
def test_with_one_class_some_figures_do_not_exist(formula: Formula) -> None:
    draws = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 1, 0, 1, 1]])
    values = formula(ScoreCounts.of(WRONG, SCORES, draws))
    assert np.isfinite(values[0])
    without: dict[Formula, list[int]] = {ScoreCounts.auprc_wrong: [2], ScoreCounts.auprc_correct: [1]}
    one_class = without.get(formula, [1, 2])
    assert np.isnan(values[one_class]).all()


def test_accuracy_takes_four_of_five() -> None:
    # The four least uncertain: one is wrong.
    assert one(ScoreCounts.accuracy_at_coverage, WRONG, SCORES) == pytest.approx(3 / 4)
    pairs = [(bad > good) + 0.5 * (bad == good) for bad, good in product([0.9, 0.6], [0.8, 0.6, 0.1])]
    assert one(ScoreCounts.auroc, WRONG, SCORES) == pytest.approx(sum(pairs) / 6)
