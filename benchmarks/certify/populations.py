"""Populations of requests with a known error rate at each uncertainty, so that each threshold's error rate is known."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

FINE: Final = 1_000_000
"""Points that integrals are summed over."""
ROUNDING: Final = 1e-12
"""A threshold that a library hands out as 1 - confidence is off by less than this."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """Requests whose uncertainty is uniform from 0 to 1, or rounded up to one of a few values."""

    name: str
    rows: int
    """Calibration rows in a draw."""
    rate: Callable[[np.ndarray], np.ndarray]
    """How probable a wrong answer is at an uncertainty, before it is rounded."""
    values: int | None = None
    """How many values the uncertainty has; None for as many as there are numbers."""

    def draw(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Uncertainties and outcomes of one calibration set."""
        fine = random.random(self.rows)
        return self._rounded(fine), random.random(self.rows) < self.rate(fine)

    def truth(self, threshold: float | None) -> tuple[float, float]:
        """Share of all requests that a threshold answers, and share of wrong answers among them."""
        answered = 0 if threshold is None else int(np.searchsorted(self._known[0], threshold + ROUNDING, side="right"))
        return answered / FINE, self._known[1][answered - 1] / answered if answered else 0.0

    @cached_property
    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        points = (np.arange(FINE) + 0.5) / FINE
        return self._rounded(points), np.cumsum(self.rate(points))

    def _rounded(self, fine: np.ndarray) -> np.ndarray:
        return fine if self.values is None else np.ceil(fine * self.values) / self.values


def _half_of_the_surest(uncertainty: np.ndarray) -> np.ndarray:
    return np.where(uncertainty < 0.02, 0.5, 0.6 * uncertainty**2)


POPULATIONS: Final = (
    Population(name="well ranked", rows=1000, rate=lambda u: u**3),
    Population(name="well ranked, few rows", rows=150, rate=lambda u: u**3),
    Population(name="well ranked, ten values", rows=1000, rate=lambda u: u**3, values=10),
    Population(name="badly ranked", rows=1000, rate=lambda u: 0.03 + 0.2 * u),
    Population(name="mostly wrong", rows=1000, rate=lambda u: np.minimum(1, 3 * u**2)),
    Population(name="the surest 2 % half wrong", rows=1000, rate=_half_of_the_surest),
    # Right up to 0.4 and wrong from there on: the hardest to keep the promise on, as a walk gets to the bound for sure.
    Population(name="all wrong beyond 0.4", rows=1000, rate=lambda u: (u > 0.4).astype(float)),
    Population(name="a little too wrong everywhere", rows=1000, rate=lambda u: np.full(len(u), 0.1001)),
)
