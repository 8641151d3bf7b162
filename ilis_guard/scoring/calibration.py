"""Calibration: from raw scores to probabilities."""

from typing import Final

import numpy as np
from jaxtyping import Float64
from pydantic import Field

from ilis_guard.scoring.typicality import BundlePart

EDGE: Final = 1e-6
"""Raw scores are clipped to this distance from 0 and 1, whose logits are infinite."""
HALVINGS: Final = 60
"""Bisections of the interval from 0 to 1, until it holds no other number."""
STEEPEST: Final = 1e300
"""With larger parameters, the map could subtract two infinities."""


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
