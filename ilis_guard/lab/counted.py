"""Formulas of all figures, on counts: how many wrong and right answers there are at each score, for many draws at once.

A bootstrap asks for each figure a thousand times. Drawing rows changes their counts and not their order, so that rows
are sorted once, and each figure of all draws is a few sums. The figures of `metrics`, which bundles hold, are the same
where both have them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

BINS: Final = 10
"""Of the expected calibration error: of equal mass, so that none is nearly empty."""
COVERAGE: Final = 0.8
"""Of the accuracy that is told of the least uncertain answers."""

Draws = Int64[np.ndarray, "draws rows"]
Values = Float64[np.ndarray, " draws"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Answers by their score, ascending; a score that several answers have stands once."""

    scores: Float64[np.ndarray, " scores"]
    """Distinct, higher for more uncertain."""
    wrong: Float64[np.ndarray, "draws scores"]
    """How many answers with this score are wrong."""
    right: Float64[np.ndarray, "draws scores"]

    @property
    def all(self) -> Float64[np.ndarray, "draws scores"]:
        """How many answers have this score."""
        total: Float64[np.ndarray, "draws scores"] = self.wrong + self.right
        return total

    @property
    def error(self) -> Values:
        """Share of all answers that are wrong."""
        share: Values = _sum(self.wrong) / _sum(self.all)
        return share


def counted(
    wrong: Bool[np.ndarray, " rows"], scores: Float64[np.ndarray, " rows"], draws: Draws | None = None
) -> Counted:
    """Count answers by their score.

    Args:
        wrong: whether each is wrong.
        scores: higher for more uncertain.
        draws: how often each answer is drawn; without them there is one draw, of each once.
    """
    distinct, level, times = np.unique(scores, return_inverse=True, return_counts=True)
    order = np.argsort(level, kind="stable")
    starts = np.cumsum(times) - times
    drawn = np.ones((1, len(scores))) if draws is None else draws[:, order].astype(np.float64)
    bad = np.add.reduceat(drawn * wrong[order], starts, axis=1)
    return Counted(scores=distinct, wrong=bad, right=np.add.reduceat(drawn, starts, axis=1) - bad)


def auroc(of: Counted) -> Values:
    """Probability that a wrong answer has a higher score than a right one, ties counting half (Mann-Whitney's U)."""
    below = np.cumsum(of.right, axis=1) - of.right / 2
    return _ratio(_sum(of.wrong * below), _sum(of.wrong) * _sum(of.right))


def auprc_wrong(of: Counted) -> Values:
    """Average precision at finding wrong answers, from the most uncertain on; equal scores come together."""
    return _average_precision(of.wrong[:, ::-1], of.right[:, ::-1])


def auprc_correct(of: Counted) -> Values:
    """Average precision at finding right answers, from the least uncertain on; equal scores come together."""
    return _average_precision(of.right, of.wrong)


def aurc(of: Counted) -> Values:
    """Area under the risk-coverage curve: the mean, over k from 1 to n, of the error among the k least uncertain.

    Geifman, Uziel and El-Yaniv (2019, arXiv:1805.08206). Equal scores come in any order, of which this is the
    expectation: after n0 answers, e0 of them wrong, come m of one score, w of them wrong; among the first n0 + j there
    are e0 + w j / m wrong ones on average, and

        sum_j (e0 + w j / m) / (n0 + j) = w + (e0 - w n0 / m) (H(n0 + m) - H(n0)),  H(n) = 1 + 1/2 + ... + 1/n.
    """
    harmonic = _harmonic(of)
    here = of.all
    reached = np.cumsum(here, axis=1)
    before, errors = reached - here, np.cumsum(of.wrong, axis=1) - of.wrong
    steps = harmonic[reached.astype(np.int64)] - harmonic[before.astype(np.int64)]
    area = _sum(of.wrong + (errors - _ratio(of.wrong, here, 0.0) * before) * steps)
    return _ratio(area, reached[:, -1])


def least_aurc(of: Counted) -> Values:
    """AURC of a score that puts all right answers before all wrong ones: none can have less."""
    harmonic = _harmonic(of)
    wrong, right = _sum(of.wrong), _sum(of.right)
    steps = harmonic[(wrong + right).astype(np.int64)] - harmonic[right.astype(np.int64)]
    return _ratio(wrong - right * steps, wrong + right)


def excess_aurc(of: Counted) -> Values:
    """E-AURC: how far AURC lies above the least there can be (Geifman, Uziel and El-Yaniv, 2019)."""
    excess: Values = aurc(of) - least_aurc(of)
    return excess


def rejection_ratio(of: Counted) -> Values:
    """Prediction rejection ratio: 1 for a perfect ranking, 0 for one by chance, negative for worse than chance.

    ``(AURC by chance - AURC) / (AURC by chance - least AURC)``, where AURC by chance is the share of wrong answers:
    the areas between rejection curves of Malinin and Gales (2021, arXiv:2002.07650), with the mean quality of what
    isn't rejected as lm-polygraph draws them (Vashurin et al., 2025, arXiv:2406.15627), over all rejection rates.
    """
    chance = of.error
    return _ratio(chance - aurc(of), chance - least_aurc(of))


def accuracy_at_coverage(of: Counted) -> Values:
    """Share of right answers among the least uncertain 80 % (rounded up); of equal scores a fitting part is taken."""
    here = of.all
    reached = np.cumsum(here, axis=1)
    # 0.8 n isn't a whole number in floating point even where it is one.
    taken = np.ceil(COVERAGE * reached[:, -1:] - 1e-9)
    part = np.clip(_ratio(taken - (reached - here), here, 0.0), 0, 1)
    return _ratio(_sum(part * of.right), taken[:, 0])


def brier(of: Counted) -> Values:
    """Mean squared difference of a probability and the outcome; lower is better."""
    return _ratio(_sum(of.wrong * (1 - of.scores) ** 2 + of.right * of.scores**2), _sum(of.all))


def brier_skill(of: Counted) -> Values:
    """1 - Brier / Brier of always saying the rows' own base rate; higher is better, at most 1."""
    error = of.error
    return 1 - _ratio(brier(of), error * (1 - error))


def calibration_error(of: Counted) -> Values:
    """Expected calibration error: over 10 bins of equal mass, the mean distance of what is said and what comes true.

    Naeini, Cooper and Hauskrecht (2015), with the bins of Nguyen and O'Connor (2015, arXiv:1508.05154). Answers of one
    score share a bin: that in which their middle rank lies. Even of exact probabilities it isn't 0 on finite rows.
    """
    here = of.all
    reached = np.cumsum(here, axis=1)
    middle = _ratio(reached - here / 2, reached[:, -1:], 0.0)
    bins = np.minimum((middle * BINS).astype(np.int64), BINS - 1)
    places = bins + BINS * np.arange(len(bins))[:, None]
    off = np.bincount(places.ravel(), weights=(here * of.scores - of.wrong).ravel(), minlength=BINS * len(bins))
    return _ratio(np.abs(off).reshape(-1, BINS).sum(axis=1), reached[:, -1])


def _average_precision(
    found: Float64[np.ndarray, "draws scores"], other: Float64[np.ndarray, "draws scores"]
) -> Values:
    so_far = np.cumsum(found, axis=1)
    precision = _ratio(so_far, so_far + np.cumsum(other, axis=1), 0.0)
    return _ratio(_sum(found * precision), so_far[:, -1])


def _harmonic(of: Counted) -> Float64[np.ndarray, " numbers"]:
    most = int(_sum(of.all).max())
    numbers: Float64[np.ndarray, " numbers"] = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, most + 1))])
    return numbers


def _sum(counts: Float64[np.ndarray, "draws scores"]) -> Values:
    total: Values = counts.sum(axis=1)
    return total


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    """A quotient; where there is nothing to divide by, something else: no figure, or nothing to add."""
    above, below = np.broadcast_arrays(above, below)
    quotient: np.ndarray = np.divide(above, below, out=np.full(above.shape, otherwise), where=below > 0)
    return quotient
