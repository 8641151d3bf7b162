"""Blended trees: their scores, with a linear model of the maps and, where it is needed, the answer's improbability."""

from typing import Annotated

import lightgbm
import numpy as np
from jaxtyping import Float64
from pydantic import FailFast, Field
from scipy.special import expit

from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.correction import MAX_COEFFICIENT, Coefficient, Correction, log_odds
from ilis_guard.scoring.typicality import BundlePart, Distances, TypicalityEstimator, TypicalityReference


class Blending(BundlePart):
    """How to blend the trees' scores with others. Recalibration doesn't change it.

    Familiarity is a typicality (`TypicalityReference`) among the rows that trees were chosen by, which nothing is
    calibrated on: whatever a bundle is recalibrated on, its trees were trained on the same rows, and a row that a
    threshold is certified on is scored as any other.
    """

    trees_spread: float = Field(gt=1 / MAX_COEFFICIENT, le=MAX_COEFFICIENT)
    """Of the trees' log-odds over the rows that trees were chosen by, nats."""
    linear: Annotated[tuple[Coefficient, ...], FailFast()]
    """Of each normalised feature; over the same rows, their sum has a spread of 1."""
    distances: Distances
    """Squared distances of the rows that trees were chosen by, ascending."""

    def familiarity(self, reference: TypicalityReference) -> TypicalityEstimator:
        """Build the estimator of familiarity, 0 to 1.

        Args:
            reference: of the training rows' columns; its own distances aren't used.
        """
        return TypicalityEstimator(reference.model_copy(update={"distances": self.distances}))


def improbability(logprobs: Float64[np.ndarray, "rows 2"]) -> Float64[np.ndarray, " rows"]:
    """Compute how improbable answers are beside others of their traffic: the sum of both, with the sign turned.

    Args:
        logprobs: of whole answers and of a token, in spreads from the mean of their traffic.
    """
    improbable: Float64[np.ndarray, " rows"] = -logprobs.sum(axis=1)
    return improbable


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
        self._linear = np.array(() if blending is None else blending.linear)
        self._familiarity = None if blending is None else blending.familiarity(reference)

    def raw_scores(self, columns: Columns) -> Float64[np.ndarray, " rows"]:
        """Compute raw scores, 0 to 1.

        Args:
            columns: normalised by the traffic that they are of.
        """
        blended = self._blended(columns)
        return blended if self._correction is None else self._correction.apply(blended, columns.normalised_features)

    def _blended(self, columns: Columns) -> Float64[np.ndarray, " rows"]:
        """Blend: ``logit r = logit(trees) / spread + linear . z + (1 - w) u``, w the root of familiarity.

        What was learned of maps holds for answers like those of the training; that an answer is improbable, u, is
        informative everywhere (docs/scoring.md).
        """
        # One thread: for few rows, starting more takes longer than evaluating the trees.
        trees = np.asarray(self._booster.predict(columns.blocks["features"], num_threads=1), dtype=np.float64)
        if self._blending is None:
            return trees
        learned = log_odds(trees) / self._blending.trees_spread
        learned = learned + columns.normalised_features @ self._linear
        if "logprobs" in columns.blocks and self._familiarity is not None:
            familiarity = self._familiarity.typicality(columns.blocks["typicality"])
            learned = learned + (1 - np.sqrt(familiarity)) * improbability(columns.blocks["logprobs"])
        blended: Float64[np.ndarray, " rows"] = expit(learned)
        return blended
