"""Corrections: what few labels of a team's own traffic add to a bundle that was fitted to other questions."""

from typing import Annotated

import numpy as np
from jaxtyping import Float64
from pydantic import FailFast, Field
from scipy.special import expit, logit

from ilis_guard.scoring.calibration import EDGE
from ilis_guard.scoring.typicality import BundlePart

MAX_COEFFICIENT = 1e6
"""Of all coefficients, so that log-odds stay finite."""
Coefficient = Annotated[float, Field(ge=-MAX_COEFFICIENT, le=MAX_COEFFICIENT)]


class Correction(BundlePart):
    """A linear model over an earlier score and the features in units of their traffic.

    ``logit r' = intercept + score logit r + features . z``, with r the earlier raw score.
    """

    intercept: Coefficient
    score: Coefficient
    """Of the earlier score's log-odds."""
    features: Annotated[tuple[Coefficient, ...], FailFast()]
    """Of each normalised feature."""

    def apply(
        self, raw: Float64[np.ndarray, " rows"], normalised: Float64[np.ndarray, "rows features"]
    ) -> Float64[np.ndarray, " rows"]:
        """Correct raw scores, 0 to 1.

        Args:
            raw: the earlier scores.
            normalised: features in units of their traffic.
        """
        corrected: Float64[np.ndarray, " rows"] = expit(
            self.intercept + self.score * log_odds(raw) + normalised @ np.array(self.features)
        )
        return corrected

    def after(self, earlier: "Correction | None") -> "Correction":
        """Both as one, where the earlier score was a corrected one."""
        if earlier is None:
            return self
        return Correction(
            intercept=self.intercept + self.score * earlier.intercept,
            score=self.score * earlier.score,
            features=tuple(
                mine + self.score * other for mine, other in zip(self.features, earlier.features, strict=True)
            ),
        )


def log_odds(raw: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
    """Compute log-odds of raw scores, nats; finite."""
    odds: Float64[np.ndarray, " rows"] = logit(np.clip(raw, EDGE, 1 - EDGE))
    return odds
