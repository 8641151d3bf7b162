"""What ridge-penalised models of features share: columns of one size, and the digits of their coefficients."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float64

from ilis_guard.scoring.features import FeatureGroup, feature_count
from ilis_guard.types import Fingerprint, RemoteFingerprint

MAPS: Final = 3.0
"""What the columns of a group of maps' features have together, beside 1 for statistics."""
DIGITS: Final = 6
"""Significant ones of a coefficient."""


def feature_widths(
    features: Sequence[FeatureGroup], fingerprint: Fingerprint | RemoteFingerprint, statistics: int
) -> list[tuple[int, bool]]:
    """Count the columns of each group of features, and tell whether they are of maps.

    Args:
        features: the groups, in order.
        fingerprint: of the model.
        statistics: how many output statistics are known.
    """
    layers = fingerprint.layers if isinstance(fingerprint, Fingerprint) else 0
    return [(feature_count([group], layers=layers, statistics=statistics), group != "statistics") for group in features]


def column_scales(widths: Sequence[tuple[int, bool]]) -> Float64[np.ndarray, " features"]:
    """Scale columns for one penalty, which is only fair among groups of one size: a map has 870, statistics are four.

    Args:
        widths: the columns of each group of features, in order, and whether they are of maps.
    """
    return np.concatenate([np.full(width, (MAPS if of_maps else 1.0) / np.sqrt(width)) for width, of_maps in widths])


def rounded(coefficient: float) -> float:
    """Round to the digits that files have."""
    return float(f"{coefficient:.{DIGITS}g}")
