"""Blended trees: their scores, with a linear model of the maps and, on other traffic, the answer's improbability."""

from typing import Annotated

import lightgbm
import numpy as np
from jaxtyping import Float64
from pydantic import FailFast, Field
from scipy.special import expit

from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.correction import MAX_COEFFICIENT, Coefficient, Correction, log_odds
from ilis_guard.scoring.typicality import BundlePart


class Blending(BundlePart):
    """How to blend the trees' scores with others. Recalibration changes none of its numbers."""

    trees_spread: float = Field(gt=1 / MAX_COEFFICIENT, le=MAX_COEFFICIENT)
    """Of the trees' log-odds over the rows that trees were chosen by, nats."""
    linear: Annotated[tuple[Coefficient, ...], FailFast()]
    """Of each normalised feature; over the same rows, their sum has a spread of 1."""
    linear_weight: float = Field(ge=0, le=1)
    """Of the linear model beside the trees, on the traffic that they were fitted to."""
    adapted: bool = False
    """Whether the bundle's own traffic is another than the trees were fitted to: it was learned or measured later."""


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
        correction: what few labels added; None for nothing.
    """

    def __init__(
        self,
        booster: lightgbm.Booster,
        *,
        blending: Blending | None,
        correction: Correction | None = None,
    ) -> None:
        self._booster = booster
        self._correction = correction
        self._blending = blending
        self._linear = np.array(() if blending is None else blending.linear)

    def raw_scores(self, columns: Columns, *, adapted: bool = False) -> Float64[np.ndarray, " rows"]:
        """Compute raw scores, 0 to 1.

        Args:
            columns: normalised by the traffic that they are of.
            adapted: whether that is a profile's traffic, and not that of the bundle's own rows.
        """
        blended = self._blended(columns, adapted)
        return blended if self._correction is None else self._correction.apply(blended, columns.normalised_features)

    def _blended(self, columns: Columns, adapted: bool) -> Float64[np.ndarray, " rows"]:
        """Blend trees, the linear model and improbability (docs/scoring.md).

        On the traffic that the trees were fitted to, they know best: the linear model has the weight that validation
        rows chose, and how improbable an answer is counts nowhere. Of other traffic they know less: all three count
        alike, and their mean keeps the spread that the calibration map knows.
        """
        # One thread: for few rows, starting more takes longer than evaluating the trees.
        trees = np.asarray(self._booster.predict(columns.blocks["features"], num_threads=1), dtype=np.float64)
        blending = self._blending
        if blending is None:
            return trees
        parts = [log_odds(trees) / blending.trees_spread, columns.normalised_features @ self._linear]
        if not (adapted or blending.adapted):
            return np.asarray(expit(parts[0] + blending.linear_weight * parts[1]))
        if "logprobs" in columns.blocks:
            parts.append(improbability(columns.blocks["logprobs"]))
        return np.asarray(expit(np.mean(parts, axis=0)))
