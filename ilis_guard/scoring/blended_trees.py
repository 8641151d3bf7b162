"""Blended trees: the trees' scores, blended with the answer's log-probability where answers aren't like theirs."""

from typing import Final

import lightgbm
import numpy as np
from jaxtyping import Float64
from pydantic import Field
from scipy.special import expit, logit

from ilis_guard.scoring.calibration import EDGE
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.correction import Correction
from ilis_guard.scoring.typicality import BundlePart, Distances, TypicalityEstimator, TypicalityReference

MAX_COEFFICIENT: Final = 1e6
"""Of slope and intercept, so that log-odds stay finite; with such ones every answer would be certain already."""


class SequenceProbability(BundlePart):
    """A logistic regression: the probability that an answer is wrong, given the log-probability of its tokens."""

    slope: float = Field(ge=0, le=MAX_COEFFICIENT)
    """Increase of the log-odds of a wrong answer per spread of its traffic that the log-probability decreases."""
    intercept: float = Field(ge=-MAX_COEFFICIENT, le=MAX_COEFFICIENT)

    def log_odds(self, logprob_sum: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Compute the log-odds that answers are wrong, nats.

        Args:
            logprob_sum: log-probability of each whole answer, in spreads from the mean of its traffic.
        """
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
            reference: of the training rows' columns; its own distances aren't used.
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


class BlendedTrees:
    """Scores normalised columns, before calibration.

    Args:
        booster: trees over the block `features`.
        blending: what they are blended with; None for nothing.
        reference: of the training rows' typicality.
        correction: what few labels added; None for nothing.
    """

    def __init__(
        self,
        booster: lightgbm.Booster,
        *,
        blending: Blending | None,
        reference: TypicalityReference,
        correction: Correction | None = None,
    ) -> None:
        self._booster = booster
        self._correction = correction
        self._blending = blending
        self._familiarity = None if blending is None else blending.familiarity(reference)

    def raw_scores(self, columns: Columns) -> Float64[np.ndarray, " rows"]:
        """Compute raw scores, 0 to 1.

        Args:
            columns: normalised by the traffic that they are of.
        """
        blended = self._blended(columns)
        return blended if self._correction is None else self._correction.apply(blended, columns.normalised_features)

    def _blended(self, columns: Columns) -> Float64[np.ndarray, " rows"]:
        # One thread: for few rows, starting more takes longer than evaluating the trees.
        trees = np.asarray(self._booster.predict(columns.blocks["features"], num_threads=1), dtype=np.float64)
        if self._blending is None or self._familiarity is None:
            return trees
        log_odds = self._blending.sequence_probability.log_odds(columns.blocks["logprob_sum"][:, 0])
        return blend(trees, log_odds, self._familiarity.typicality(columns.blocks["typicality"]))
