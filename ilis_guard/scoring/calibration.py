"""Uncertainty from trees: blend their scores with the answer's log-probability, then calibrate."""

from collections.abc import Sequence
from typing import Final

import lightgbm
import numpy as np
from jaxtyping import Float64
from pydantic import Field
from scipy.special import expit, logit

from ilis_guard.scoring.features import FeatureGroup, Maps, feature_matrix
from ilis_guard.scoring.typicality import BundlePart, Distances, TypicalityEstimator, TypicalityReference

EDGE: Final = 1e-6
"""Raw scores are clipped to this distance from 0 and 1, whose logits are infinite."""
HALVINGS: Final = 60
"""Bisections of the interval from 0 to 1, until it holds no other number."""
STEEPEST: Final = 1e300
"""With larger parameters, the map could subtract two infinities."""
MAX_COEFFICIENT: Final = 1e6
"""Of slope and intercept, so that log-odds stay finite; with such ones every answer would be certain already."""


class BetaCalibration(BundlePart):
    """The beta calibration map (Kull, Silva Filho and Flach, 2017): ``logit p = a ln s - b ln(1 - s) + c``.

    With `a` and `b` at least 0 it never changes the order of two scores.
    """

    a: float = Field(ge=0, le=STEEPEST)
    b: float = Field(ge=0, le=STEEPEST)
    c: float = Field(ge=-STEEPEST, le=STEEPEST)

    def apply(self, raw: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Map raw scores, 0 to 1, to calibrated probabilities, 0 to 1."""
        log_s, minus_log_rest = calibration_terms(raw)
        with np.errstate(over="ignore"):  # the probability is then 0 or 1, which is right
            return 1 / (1 + np.exp(-(self.a * log_s + self.b * minus_log_rest + self.c)))

    def invert(self, probabilities: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Find the raw scores that `apply` maps to these, to the precision of a float.

        There are none where `a` and `b` are both 0, which no fit gives.
        """
        low, high = np.full(len(probabilities), EDGE), np.full(len(probabilities), 1 - EDGE)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = self.apply(middle) < probabilities
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        raw: Float64[np.ndarray, " rows"] = (low + high) / 2
        return raw


def calibration_terms(
    raw: Float64[np.ndarray, " rows"],
) -> tuple[Float64[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    """Compute the two terms of beta calibration, ``ln s`` and ``-ln(1 - s)``."""
    inside = np.clip(raw, EDGE, 1 - EDGE)
    return np.log(inside), -np.log1p(-inside)


class SequenceProbability(BundlePart):
    """A logistic regression: the probability that an answer is wrong, given the log-probability of its tokens."""

    slope: float = Field(ge=0, le=MAX_COEFFICIENT)
    """Increase of the log-odds of a wrong answer per nat that the log-probability decreases."""
    intercept: float = Field(ge=-MAX_COEFFICIENT, le=MAX_COEFFICIENT)

    def log_odds(self, logprob_sum: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Compute the log-odds that answers are wrong, nats.

        Args:
            logprob_sum: log-probability of each whole answer, nats, at most 0.
        """
        with np.errstate(over="ignore"):  # of an impossible log-probability: the scorer refuses infinite log-odds
            return self.intercept - self.slope * logprob_sum


class Blending(BundlePart):
    """How to blend the trees' scores with the answer's log-probability. Recalibration doesn't change it.

    Familiarity is a typicality (`TypicalityReference`) among the rows that trees were chosen by, which nothing is
    calibrated on: whatever a bundle is recalibrated on, its trees were trained on the same rows, and a row that a
    threshold is certified on is scored as any other.
    """

    sequence_probability: SequenceProbability
    distances: Distances
    """Squared distances of the rows that trees were chosen by, ascending."""

    def familiarity(self, reference: TypicalityReference) -> TypicalityEstimator:
        """Build the estimator of familiarity, 0 to 1.

        Args:
            reference: of the training rows' profiles; its own distances aren't used.
        """
        return TypicalityEstimator(reference.model_copy(update={"distances": self.distances}))


def blend(
    trees: Float64[np.ndarray, " rows"],
    log_odds: Float64[np.ndarray, " rows"],
    familiarity: Float64[np.ndarray, " rows"],
) -> Float64[np.ndarray, " rows"]:
    """Blend to raw scores, 0 to 1: ``logit r = w logit(trees) + (1 - w) log_odds``, w the root of familiarity.

    What the trees learned holds for answers like those of their training; an answer's log-probability is informative
    everywhere (docs/scoring.md).

    Args:
        trees: the trees' scores, 0 to 1.
        log_odds: from a `SequenceProbability`.
        familiarity: 0 to 1, see `Blending`.
    """
    weight = np.sqrt(familiarity)
    raw: Float64[np.ndarray, " rows"] = expit(weight * logit(np.clip(trees, EDGE, 1 - EDGE)) + (1 - weight) * log_odds)
    return raw


def raw_scores(
    booster: lightgbm.Booster,
    features: Sequence[FeatureGroup],
    maps: Maps,
    statistics: Float64[np.ndarray, "rows statistics"],
    *,
    log_odds: Float64[np.ndarray, " rows"] | None = None,
    familiarity: Float64[np.ndarray, " rows"] | None = None,
) -> Float64[np.ndarray, " rows"]:
    """Compute the scores of rows before calibration, 0 to 1.

    Args:
        booster: trees over these features.
        features: the trees' inputs.
        maps: signatures by position, nats.
        statistics: the output statistics that are known.
        log_odds: from a `SequenceProbability`; None where nothing is blended.
        familiarity: 0 to 1; None where nothing is blended.
    """
    # One thread: for few rows, starting more takes longer than evaluating the trees.
    trees = np.asarray(booster.predict(feature_matrix(features, maps, statistics), num_threads=1), dtype=np.float64)
    return trees if log_odds is None or familiarity is None else blend(trees, log_odds, familiarity)
