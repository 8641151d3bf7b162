"""Drift: an online test, by test martingales, of whether live scores still resemble the calibration rows.

A score's place among the calibration rows' and those of the window so far is a p-value, uniform and independent of all
earlier ones as long as the stream is exchangeable with the calibration rows. Bets against that multiply a capital that
starts at 1: by Ville's inequality it ever reaches 1 / rate with probability at most `rate` (docs/scoring.md).
"""

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from ilis_guard.errors import ScoringError
from ilis_guard.scoring.bundle import CalibrationSet
from ilis_guard.types import Score

Monitored = Literal["typicality", "uncertainty"]
POWERS: Final = np.linspace(0.05, 0.95, 10)
"""The bets: a p-value p multiplies the capital of the bet e by e p^(e-1) or, on high ones, by e (1-p)^(e-1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The state of a window."""

    alarm: Monitored | None
    """The number that no longer resembles the calibration rows'. Kept until the window ends."""
    scores: int
    """In this window so far."""
    evidence: float
    """The larger of both capitals now; 1 at the start."""


class DriftTest:
    """Monitors typicality and uncertainty, each for low and for high values, in windows of so many scores.

    In a window of a stream that is exchangeable with the calibration rows an alarm is raised, at any time, with
    probability at most `false_alarms`, over the draw of both. Each window starts anew, from the calibration rows alone:
    of a hundred windows of such a stream, on average at most 100 x `false_alarms` raise one. What was seen in an
    earlier window counts no more, so a window should be long enough for the drift that matters to show.
    """

    def __init__(
        self, calibration: CalibrationSet, *, false_alarms: float = 0.01, window: int = 1000, seed: int = 0
    ) -> None:
        """Start the first window.

        Args:
            calibration: a bundle's.
            false_alarms: the most probable that a false alarm may be in a window; between 0 and 1.
            window: scores.
            seed: of the randomisation of ties, without which p-values wouldn't be uniform.

        Raises:
            ScoringError: an argument is out of range.
        """
        if not 0 < false_alarms < 1:
            raise ScoringError(f"false_alarms must lie between 0 and 1, got {false_alarms!r}")
        if window < 1:
            raise ScoringError(f"a window has at least one score, got {window!r}")
        self._calibration = calibration
        # Typicality and uncertainty are bet on separately: each has half of the false alarms.
        self._enough = 2 / false_alarms
        self._window = window
        self._random = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """Begin a new window now, as after a change of the model or the prompt."""
        cells = len(self._calibration.typicality.distances) + 1
        # Typicality says which gap between two calibration distances a score fell into. Each gap is as probable as any
        # other, and a score that falls into one makes two of it: gaps are known here, not the distances beside them.
        self._typicalities = _Stream([gap / cells for gap in range(1, cells + 1)], unknown=0)
        self._uncertainties = _Stream(sorted(self._calibration.uncertainty), unknown=1)
        self._alarm: Monitored | None = None
        self._scores = 0

    def observe(self, score: Score) -> Drift:
        """Take in the next score of the stream.

        Raises:
            ScoringError: it isn't one of a bundle with this calibration set.
        """
        cells = len(self._calibration.typicality.distances) + 1
        typicality = round(score.typicality * cells) / cells
        if not (0 < typicality <= 1 and abs(typicality - score.typicality) < 1e-9 and 0 <= score.uncertainty <= 1):
            raise ScoringError(
                f"the score (uncertainty {score.uncertainty!r}, typicality {score.typicality!r}) isn't of a bundle "
                "with "
                f"{cells - 1} calibration distances"
            )
        if self._scores == self._window:
            self.reset()
        self._scores += 1
        ties = self._random.random(2)
        capitals: dict[Monitored, float] = {
            "typicality": self._typicalities.bet(typicality, ties[0]),
            "uncertainty": self._uncertainties.bet(score.uncertainty, ties[1]),
        }
        largest = max(capitals, key=lambda name: capitals[name])
        if self._alarm is None and capitals[largest] >= self._enough:
            self._alarm = largest
        return Drift(alarm=self._alarm, scores=self._scores, evidence=capitals[largest])


class _Stream:
    """One number a score, and the capital of the bets against its being like the ones before."""

    def __init__(self, seen: list[float], *, unknown: int) -> None:
        """Start with what the calibration rows say, ascending; `unknown` gaps lie beside what was seen."""
        self._seen = seen
        self._unknown = unknown
        self._logarithms = np.zeros((2, len(POWERS)))

    def bet(self, value: float, tie: float) -> float:
        """The capital after this value: the mean of all bets'."""
        below, up_to = bisect_left(self._seen, value), bisect_right(self._seen, value)
        p_value = (below + tie * (up_to - below + self._unknown)) / (len(self._seen) + self._unknown)
        insort(self._seen, value)
        # No p-value is taken for smaller than this: it would only be worth more.
        sides = np.log(np.maximum([p_value, 1 - p_value], 1e-12))
        self._logarithms += np.log(POWERS) + (POWERS - 1) * sides[:, None]
        return float(np.exp(np.minimum(self._logarithms, 700)).mean())
