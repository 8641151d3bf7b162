"""How good a score is: figures with bootstrap intervals."""

from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, brier_score_loss

from ilis_guard.errors import FitError
from ilis_guard.scoring.bundle import Figure, HeldOut

RESAMPLES: Final = 1000
INTERVAL: Final = (2.5, 97.5)
CHANCE: Final = 0.5
"""AUROC of a score that knows nothing."""

Uncertainties = Float64[np.ndarray, " rows"]
Outcomes = Bool[np.ndarray, " rows"]
Rows = Int64[np.ndarray, " drawn"]
Datasets = np.ndarray
"""The name of each row's dataset."""
Metric = Callable[[Outcomes, Uncertainties], float]


def auroc(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """Probability that a wrong answer has a higher uncertainty than a right one, ties counting half.

    By ranks (Mann-Whitney's U): a tenth of the time that scikit-learn's curve takes, and the bootstrap asks often.
    """
    bad = int(wrong.sum())
    return float((rankdata(uncertainty)[wrong].sum() - bad * (bad + 1) / 2) / (bad * (len(wrong) - bad)))


def auprc_wrong(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """Average precision at finding wrong answers."""
    return float(average_precision_score(wrong, uncertainty))


def auprc_correct(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """Average precision at finding right answers."""
    return float(average_precision_score(~wrong, -uncertainty))


def brier(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """Mean squared difference of uncertainty and outcome; lower is better."""
    return float(brier_score_loss(wrong, uncertainty))


def brier_skill(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """1 - Brier / Brier of always saying the rows' own base rate; higher is better, at most 1."""
    base_rate = wrong.mean()
    return 1 - brier(wrong, uncertainty) / float(base_rate * (1 - base_rate))


def auroc_within(wrong: Outcomes, uncertainty: Uncertainties, datasets: Datasets) -> float:
    """Mean of the AUROCs of all datasets that hold right and wrong answers."""
    of_each = [datasets == dataset for dataset in np.unique(datasets)]
    mixed = [rows for rows in of_each if 0 < wrong[rows].sum() < rows.sum()]
    return float(np.mean([auroc(wrong[rows], uncertainty[rows]) for rows in mixed])) if mixed else CHANCE


def held_out(wrong: Outcomes, uncertainty: Uncertainties, datasets: Datasets, seed: int = 0) -> HeldOut:
    """All figures, each with its 95 % percentile bootstrap interval over rows.

    Raises:
        FitError: the rows are all right or all wrong, which says nothing of a ranking.
    """
    if not 0 < wrong.sum() < len(wrong):
        raise FitError(f"of {len(wrong)} held-out rows {int(wrong.sum())} are wrong; figures need right and wrong ones")
    samples = _resamples(wrong, seed)

    def figure(value: Callable[[Rows], float]) -> Figure:
        low, high = np.percentile([value(rows) for rows in samples], INTERVAL)
        return Figure(value=value(np.arange(len(wrong))), low=float(low), high=float(high))

    def of(metric: Metric) -> Figure:
        return figure(lambda rows: metric(wrong[rows], uncertainty[rows]))

    return HeldOut(
        rows=len(wrong),
        wrong=int(wrong.sum()),
        auroc=of(auroc),
        auroc_within=figure(lambda rows: auroc_within(wrong[rows], uncertainty[rows], datasets[rows])),
        auprc_wrong=of(auprc_wrong),
        auprc_correct=of(auprc_correct),
        brier=of(brier),
        brier_skill=of(brier_skill),
    )


def _resamples(wrong: Outcomes, seed: int) -> list[Rows]:
    """Rows drawn with replacement; a draw with one class only says nothing of a ranking and is drawn again."""
    random = np.random.default_rng(seed)
    samples: list[Rows] = []
    while len(samples) < RESAMPLES:
        rows = random.integers(len(wrong), size=len(wrong))
        if 0 < wrong[rows].sum() < len(rows):
            samples.append(rows)
    return samples
