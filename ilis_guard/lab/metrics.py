"""How good a score is: figures with bootstrap intervals."""

from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ilis_guard.errors import FitError
from ilis_guard.scoring.bundle import Figure, HeldOut

RESAMPLES: Final = 1000
INTERVAL: Final = (2.5, 97.5)

Uncertainties = Float64[np.ndarray, " rows"]
Outcomes = Bool[np.ndarray, " rows"]
Metric = Callable[[Outcomes, Uncertainties], float]


def auroc(wrong: Outcomes, uncertainty: Uncertainties) -> float:
    """Probability that a wrong answer has a higher uncertainty than a right one."""
    return float(roc_auc_score(wrong, uncertainty))


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


def held_out(wrong: Outcomes, uncertainty: Uncertainties, seed: int = 0) -> HeldOut:
    """All figures, each with its 95 % percentile bootstrap interval over rows.

    Raises:
        FitError: the rows are all right or all wrong, which says nothing of a ranking.
    """
    if not 0 < wrong.sum() < len(wrong):
        raise FitError(f"of {len(wrong)} held-out rows {int(wrong.sum())} are wrong; figures need right and wrong ones")
    samples = _resamples(wrong, seed)

    def figure(metric: Metric) -> Figure:
        values = [metric(wrong[rows], uncertainty[rows]) for rows in samples]
        low, high = np.percentile(values, INTERVAL)
        return Figure(value=metric(wrong, uncertainty), low=float(low), high=float(high))

    return HeldOut(
        rows=len(wrong),
        wrong=int(wrong.sum()),
        auroc=figure(auroc),
        auprc_wrong=figure(auprc_wrong),
        auprc_correct=figure(auprc_correct),
        brier=figure(brier),
        brier_skill=figure(brier_skill),
    )


def _resamples(wrong: Outcomes, seed: int) -> list[np.ndarray]:
    """Rows drawn with replacement; a draw with one class only says nothing of a ranking and is drawn again."""
    random = np.random.default_rng(seed)
    samples: list[np.ndarray] = []
    while len(samples) < RESAMPLES:
        rows = random.integers(len(wrong), size=len(wrong))
        if 0 < wrong[rows].sum() < len(rows):
            samples.append(rows)
    return samples
