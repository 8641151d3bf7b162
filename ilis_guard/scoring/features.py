"""Features: the columns that a scorer's trees use, of signatures and output statistics."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from ilis_guard.types import POSITIONS, Position

FeatureGroup = Literal[
    "prompt",
    "last",
    "mean",
    "last-prompt",
    "mean-prompt",
    "prompt-summary",
    "last-summary",
    "mean-summary",
    "last-prompt-summary",
    "mean-prompt-summary",
    "statistics",
]
"""A named group of features. A position stands for its whole map, ``a-b`` for the difference of two maps, a summary for
a map's means by layer distance and by block (of a difference: the difference of the summaries), and `statistics` for
the output statistics."""

Maps = Mapping[Position, Float32[np.ndarray, "rows layers layers"]]

BLOCKS: Final = 6
"""A summary cuts the layers into so many parts of like size, and the map into the square of that."""

_SUMMARY: Final = "-summary"


def feature_matrix(
    groups: Sequence[FeatureGroup], maps: Maps, statistics: Float64[np.ndarray, "rows statistics"]
) -> Float64[np.ndarray, "rows features"]:
    """Compute one row of features a generation.

    Args:
        groups: which blocks, in this order.
        maps: signatures by position, nats. Their diagonals are zero and left out.
        statistics: columns in the order of `Statistics`.
    """
    columns = [statistics if group == "statistics" else _of_maps(group, maps) for group in groups]
    return np.concatenate(columns, axis=1, dtype=np.float64)


def feature_count(groups: Sequence[FeatureGroup], *, layers: int, statistics: int) -> int:
    """Count the columns of `feature_matrix`, for maps of so many layers and so many output statistics."""
    parts = min(BLOCKS, layers)
    # A part of one layer has no pair of layers in it.
    blocks = parts**2 - min(parts, max(2 * parts - layers, 0))
    of_maps = {True: 2 * (layers - 1) + blocks if layers else 0, False: layers * (layers - 1)}
    return sum(statistics if group == "statistics" else of_maps[group.endswith(_SUMMARY)] for group in groups)


def positions_of(group: FeatureGroup) -> tuple[Position, ...]:
    """Return the positions of a group's maps: one, or two of which the second is subtracted from the first."""
    named = group.removesuffix(_SUMMARY).split("-")
    return tuple(position for name in named for position in POSITIONS if position == name)


def _of_maps(group: FeatureGroup, maps: Maps) -> Float[np.ndarray, "rows columns"]:
    columns = _summary if group.endswith(_SUMMARY) else _off_diagonal
    first, *subtracted = (columns(maps[position]) for position in positions_of(group))
    return first - subtracted[0] if subtracted else first


def _summary(maps: Float32[np.ndarray, "rows layers layers"]) -> Float64[np.ndarray, "rows columns"]:
    """Means of log(1 + divergence) by directed layer distance, then by block of pairs of neighbouring layers."""
    layers = maps.shape[-1]
    first, second = _off_diagonal_indices(layers)
    part = np.arange(layers) * min(BLOCKS, layers) // layers
    logarithms = np.log1p(maps[:, first, second], dtype=np.float64)
    return np.concatenate(
        [_means(logarithms, second - first + layers), _means(logarithms, part[first] * BLOCKS + part[second])], axis=1
    )


def _means(
    values: Float64[np.ndarray, "rows pairs"], labels: Int64[np.ndarray, " pairs"]
) -> Float64[np.ndarray, "rows labels"]:
    """The mean over the pairs with each label that there is, in the labels' order.

    By rows and not as one matrix product, whose order of summation depends on the number of rows: a row's distance is
    compared with those of the calibration rows, of which it may be one, to the last bit.
    """
    sizes = np.bincount(labels)
    sums = np.array([np.bincount(labels, weights=row) for row in values]).reshape(len(values), len(sizes))
    means: Float64[np.ndarray, "rows labels"] = sums[:, sizes > 0] / sizes[sizes > 0]
    return means


def distance_means(maps: Float32[np.ndarray, "rows layers layers"]) -> Float64[np.ndarray, "rows distances"]:
    """Mean of log(1 + divergence) over all pairs of layers that lie 1, 2, ... L-1 layers apart."""
    layers = maps.shape[-1]
    first, second = _off_diagonal_indices(layers)
    return _means(np.log1p(maps[:, first, second], dtype=np.float64), np.abs(first - second))


def _off_diagonal(maps: Float32[np.ndarray, "rows layers layers"]) -> Float[np.ndarray, "rows pairs"]:
    first, second = _off_diagonal_indices(maps.shape[-1])
    return maps[:, first, second]


def _off_diagonal_indices(layers: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.nonzero(~np.eye(layers, dtype=bool))
    return first, second
