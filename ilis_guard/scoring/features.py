"""Features: what of the signatures and output statistics a scorer looks at."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64

from ilis_guard.types import Position

FeatureGroup = Literal["prompt", "last", "mean", "last-prompt", "mean-prompt", "statistics"]
"""A named block of features. A position stands for its whole map, ``a-b`` for the difference of two maps, and
`statistics` for the output statistics."""

Maps = Mapping[Position, Float32[np.ndarray, "rows layers layers"]]

_BLOCKS: Final[Mapping[str, Callable[[Maps], Float32[np.ndarray, "rows layers layers"]]]] = {
    "prompt": lambda maps: maps["prompt"],
    "last": lambda maps: maps["last"],
    "mean": lambda maps: maps["mean"],
    "last-prompt": lambda maps: maps["last"] - maps["prompt"],
    "mean-prompt": lambda maps: maps["mean"] - maps["prompt"],
}


def feature_matrix(
    groups: Sequence[FeatureGroup], maps: Maps, statistics: Float64[np.ndarray, "rows statistics"]
) -> Float64[np.ndarray, "rows features"]:
    """One row of features a generation.

    Args:
        groups: which blocks, in this order.
        maps: signatures by position, nats. Their diagonals are zero and left out.
        statistics: columns in the order of `Statistics`.
    """
    blocks = [statistics if group == "statistics" else _off_diagonal(_BLOCKS[group](maps)) for group in groups]
    return np.concatenate(blocks, axis=1, dtype=np.float64)


def distance_profile(maps: Float32[np.ndarray, "rows layers layers"]) -> Float64[np.ndarray, "rows distances"]:
    """Mean of log(1 + divergence) over all pairs of layers that lie 1, 2, ... L-1 layers apart."""
    layers = maps.shape[-1]
    first, second = _off_diagonal_indices(layers)
    distances = np.abs(first - second)
    weights = np.zeros((len(first), layers - 1))
    weights[np.arange(len(first)), distances - 1] = 1 / np.bincount(distances)[distances]
    profile: Float64[np.ndarray, "rows distances"] = np.log1p(maps[:, first, second], dtype=np.float64) @ weights
    return profile


def _off_diagonal(maps: Float32[np.ndarray, "rows layers layers"]) -> Float[np.ndarray, "rows pairs"]:
    first, second = _off_diagonal_indices(maps.shape[-1])
    return maps[:, first, second]


def _off_diagonal_indices(layers: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.nonzero(~np.eye(layers, dtype=bool))
    return first, second
