"""Figures: a value with its interval."""

from ilis_guard.scoring.typicality import BundlePart


class Figure(BundlePart):
    """A held-out figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
