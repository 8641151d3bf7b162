from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ilis_guard.errors import FitError
from ilis_guard.lab import metrics
from ilis_guard.lab.metrics import (
    ScoreCounts,
    auprc_correct,
    auprc_wrong,
    auroc,
    auroc_within,
    brier,
    brier_skill,
    held_out,
)
from ilis_guard.scoring.bundle import HeldOut

Metric = Callable[[np.ndarray, np.ndarray], float]
METRICS: list[Metric] = [auroc, auprc_wrong, auprc_correct, brier, brier_skill]
RANKINGS: list[Metric] = [auroc, auprc_wrong, auprc_correct]

WRONG = np.array([True, False, True, False, False])
UNCERTAINTY = np.array([0.9, 0.8, 0.6, 0.6, 0.1])


def rows(count: int, seed: int, *, signal: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    wrong = random.random(count) < 0.3
    return wrong, np.clip(random.normal(0.5, 0.1, count) + signal * (wrong - 0.5), 0, 1)


def figures_of(wrong: np.ndarray, uncertainty: np.ndarray, seed: int = 0) -> HeldOut:
    return held_out(wrong, uncertainty, np.full(len(wrong), "one"), seed=seed)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 120)


def test_auroc_counts_pairs_in_which_the_wrong_answer_is_more_uncertain() -> None:
    pairs = [(bad > good) + 0.5 * (bad == good) for bad, good in product([0.9, 0.6], [0.8, 0.6, 0.1])]
    assert auroc(WRONG, UNCERTAINTY) == pytest.approx(sum(pairs) / 6)


def test_auprc_wrong_is_the_mean_precision_at_wrong_answers() -> None:
    # Wrong at rank 1 (1 of 1), and among the two at .6, which come together (2 of 4).
    assert auprc_wrong(WRONG, UNCERTAINTY) == pytest.approx(0.5 * 1 / 1 + 0.5 * 2 / 4)


def test_auprc_correct_is_the_mean_precision_at_right_answers() -> None:
    assert auprc_correct(WRONG, UNCERTAINTY) == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)


def test_brier_is_the_mean_squared_difference() -> None:
    expected = (0.1**2 + 0.8**2 + 0.4**2 + 0.6**2 + 0.1**2) / 5
    assert brier(WRONG, UNCERTAINTY) == pytest.approx(expected)
    assert brier_skill(WRONG, UNCERTAINTY) == pytest.approx(1 - expected / (0.4 * 0.6))


def test_auroc_within_ignores_differences_between_datasets() -> None:
    wrong = np.array([True, False, True, True, False, False])
    datasets = np.array(["hard", "hard", "hard", "easy", "easy", "easy"])
    # All hard rows above all easy ones; within each, one pair of two is in order.
    uncertainty = np.array([0.9, 0.8, 0.7, 0.2, 0.3, 0.1])
    assert auroc(wrong, uncertainty) == pytest.approx(6 / 9)
    assert auroc_within(wrong, uncertainty, datasets) == pytest.approx(0.5)


def test_auroc_within_leaves_out_datasets_of_one_class() -> None:
    datasets = np.array(["mixed", "mixed", "wrong", "right", "right"])
    assert auroc_within(WRONG, UNCERTAINTY, datasets) == 1
    assert auroc_within(WRONG, UNCERTAINTY, np.arange(5)) == 0.5


def test_all_agree_with_sklearn_on_many_rows() -> None:
    wrong, uncertainty = rows(500, 0, signal=0.1)
    assert auroc(wrong, uncertainty) == roc_auc_score(wrong, uncertainty)
    assert auprc_wrong(wrong, uncertainty) == average_precision_score(wrong, uncertainty)
    assert auprc_correct(wrong, uncertainty) == average_precision_score(~wrong, 1 - uncertainty)
    assert brier(wrong, uncertainty) == brier_score_loss(wrong, uncertainty)


def test_a_perfect_score_is_best_and_its_opposite_worst() -> None:
    perfect = WRONG.astype(float)
    assert [metric(WRONG, perfect) for metric in METRICS] == [1, 1, 1, 0, 1]
    assert auroc(WRONG, 1 - perfect) == 0
    assert brier(WRONG, 1 - perfect) == 1
    assert brier_skill(WRONG, 1 - perfect) < 0


@pytest.mark.parametrize(("metric", "expected"), [(auroc, 0.5), (auprc_wrong, 0.4), (auprc_correct, 0.6)])
def test_a_constant_score_ranks_at_chance(metric: Metric, expected: float) -> None:
    assert metric(WRONG, np.full(5, 0.7)) == pytest.approx(expected)


def test_saying_the_base_rate_has_no_skill() -> None:
    assert brier_skill(WRONG, np.full(5, WRONG.mean())) == pytest.approx(0)


@pytest.mark.parametrize("metric", RANKINGS)
def test_rankings_tell_scores_near_0_apart(metric: Metric) -> None:
    """1 - u would round them all to 1."""
    assert metric(WRONG, UNCERTAINTY * 1e-18) == metric(WRONG, UNCERTAINTY)


@pytest.mark.usefixtures("few_resamples")
def test_held_out_gives_each_figure_inside_its_interval() -> None:
    wrong, uncertainty = rows(200, 1, signal=0.1)
    figures = figures_of(wrong, uncertainty)
    assert (figures.rows, figures.wrong) == (200, int(wrong.sum()))
    for metric in METRICS:
        figure = getattr(figures, metric.__name__)
        assert figure.value == metric(wrong, uncertainty)
        assert figure.low < figure.value < figure.high


@pytest.mark.usefixtures("few_resamples")
def test_intervals_shrink_with_the_square_root_of_rows() -> None:
    few, many = (figures_of(*rows(count, 2, signal=0.05)) for count in (100, 1600))
    for metric in METRICS:
        small, large = getattr(many, metric.__name__), getattr(few, metric.__name__)
        assert 2 < (large.high - large.low) / (small.high - small.low) < 8


@pytest.mark.usefixtures("few_resamples")
def test_a_random_scores_interval_holds_chance_and_a_good_ones_does_not() -> None:
    random, good = (figures_of(*rows(400, 3, signal=signal)).auroc for signal in (0.0, 0.1))
    assert random.low < 0.5 < random.high
    assert good.low > 0.6


def test_the_interval_is_the_bootstraps_95_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean's interval is known: 1.96 standard errors either side."""
    for metric in METRICS:
        monkeypatch.setattr(metrics, metric.__name__, lambda _, uncertainty: float(uncertainty.mean()))
        monkeypatch.setattr(
            ScoreCounts, metric.__name__, lambda drawn: drawn.all @ drawn.scores / drawn.all.sum(axis=1)
        )
    wrong, uncertainty = rows(400, 4, signal=0.1)
    figure = figures_of(wrong, uncertainty).auroc
    error = uncertainty.std() / 20
    assert figure.low == pytest.approx(uncertainty.mean() - 1.96 * error, abs=0.12 * error)
    assert figure.high == pytest.approx(uncertainty.mean() + 1.96 * error, abs=0.12 * error)


@pytest.mark.usefixtures("few_resamples")
def test_the_same_rows_give_the_same_intervals() -> None:
    first, again = (figures_of(*rows(60, 5, signal=0.1)) for _ in range(2))
    assert first == again
    assert figures_of(*rows(60, 5, signal=0.1), seed=1).auroc.low != first.auroc.low


@pytest.mark.usefixtures("few_resamples")
def test_one_wrong_row_is_enough_for_an_interval() -> None:
    """Every third resample has no wrong row; it is drawn again."""
    wrong = np.arange(20) == 0
    figure = figures_of(wrong, np.linspace(1, 0, 20)).auroc
    assert (figure.low, figure.value, figure.high) == (1, 1, 1)


@pytest.mark.parametrize(("count", "made"), [(20, np.zeros), (20, np.ones), (0, np.zeros)])
def test_rows_of_one_class_are_refused_with_counts(count: int, made: Callable[..., np.ndarray]) -> None:
    wrong = made(count, dtype=bool)
    with pytest.raises(FitError, match=f"of {count} held-out rows {wrong.sum()} are wrong"):
        figures_of(wrong, np.zeros(count))
