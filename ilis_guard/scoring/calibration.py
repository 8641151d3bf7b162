"""Calibration: from a booster's raw score to a probability that means what it says."""

from typing import Final

import numpy as np
from jaxtyping import Float64
from pydantic import ConfigDict, Field

from ilis_guard.config.base import StrictModel

EDGE: Final = 1e-6
"""Raw scores are kept this far from 0 and 1, where their logarithms end."""
HALVINGS: Final = 60
"""Of the interval from 0 to 1, until it holds no other number."""
STEEPEST: Final = 1e300
"""Beyond it, the map's terms could be two infinities of which one is taken from the other."""


class BetaCalibration(StrictModel):
    """The beta calibration map (Kull, Silva Filho and Flach, 2017): ``logit p = a ln s - b ln(1 - s) + c``.

    With `a` and `b` at least 0 it never changes the order of two scores.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    a: float = Field(ge=0, le=STEEPEST)
    b: float = Field(ge=0, le=STEEPEST)
    c: float = Field(ge=-STEEPEST, le=STEEPEST)

    def apply(self, raw: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Calibrated probabilities, 0 to 1, of raw scores, 0 to 1."""
        log_s, minus_log_rest = calibration_terms(raw)
        with np.errstate(over="ignore"):  # the probability is then 0 or 1, as it should be
            return 1 / (1 + np.exp(-(self.a * log_s + self.b * minus_log_rest + self.c)))

    def invert(self, probabilities: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Raw scores that `apply` makes these of, as near as their own digits allow.

        There is none where `a` and `b` are both 0, which no fit gives.
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
    """The two terms of beta calibration, ``ln s`` and ``-ln(1 - s)``."""
    inside = np.clip(raw, EDGE, 1 - EDGE)
    return np.log(inside), -np.log1p(-inside)
