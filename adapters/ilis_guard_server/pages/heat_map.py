"""A signature as a heat map: cells in steps of colour, labelled axes, and the same in words and numbers."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64, Int

STEPS: Final = 12
"""Colours; the style sheet has one for each, in light and in dark."""
_TABLE: Final = 6
"""Rows and columns of the table of the same in numbers."""
_MAX_LABELS: Final = 6
"""Labelled layers on an axis, besides the last."""

Map = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """All cells of one colour."""

    step: int
    """From 0 (the layers agree) to `STEPS` - 1."""
    path: str
    """As SVG takes it, a cell being 1 x 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """One map, ready to draw."""

    name: str
    layers: int
    areas: tuple[Area, ...]
    labelled: tuple[int, ...]
    """Layers with a label on the axes."""
    words: str
    """A description for screen readers."""
    table: tuple[tuple[str, tuple[float, ...]], ...]
    """Mean divergence, nats, between groups of layers: the name of a group, and its values group by group."""


def top_of(maps: Sequence[Map]) -> float:
    """The largest divergence in any of these maps, nats: the end of their common scale."""
    return max((float(np.max(_array(each))) for each in maps), default=0.0)


def heat_map(name: str, values: Map, *, top: float) -> HeatMap:
    """Draw a map.

    Args:
        name: its caption.
        values: L x L, nats.
        top: the end of the scale of colours, nats.
    """
    array = _array(values)
    layers = len(array)
    return HeatMap(
        name=name,
        layers=layers,
        areas=_areas(_steps(array, top)),
        labelled=_labelled(layers),
        words=_words(array),
        table=_table(array),
    )


def marks(top: float) -> tuple[float, float, float]:
    """The values at the start, the middle and the end of the scale of colours, which is logarithmic; nats."""
    return 0.0, math.expm1(math.log1p(top) / 2), top


def _array(values: Map) -> Float64[np.ndarray, "layers layers"]:
    return np.nan_to_num(np.asarray(values, dtype=np.float64), posinf=0.0, neginf=0.0)


def _steps(array: Float64[np.ndarray, "layers layers"], top: float) -> Int[np.ndarray, "layers layers"]:
    """Each cell's colour. Logarithmic: a last layer that disagrees with all would leave the rest in one colour."""
    share = np.log1p(np.clip(array, 0, top)) / (math.log1p(top) or 1.0)
    steps: Int[np.ndarray, "layers layers"] = np.minimum((share * STEPS).astype(int), STEPS - 1)
    return steps


def _areas(steps: Int[np.ndarray, "layers layers"]) -> tuple[Area, ...]:
    """Draw neighbouring cells of one colour at once: a large model has thousands of cells."""
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(steps):
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
        for start, end in itertools.pairwise(edges):
            paths.setdefault(int(row[start]), []).append(f"M{start} {y}h{end - start}v1h-{end - start}z")
    return tuple(Area(step=step, path="".join(paths[step])) for step in sorted(paths))


def _labelled(layers: int) -> tuple[int, ...]:
    """Round numbers from 0, and the last layer."""
    step = next(size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500) if layers / size <= _MAX_LABELS)
    round_ones = [layer for layer in range(0, layers, step) if layers - 1 - layer >= step / 2]
    return (*round_ones, layers - 1)


def _words(array: Float64[np.ndarray, "layers layers"]) -> str:
    layers = len(array)
    if layers < 2:
        return f"{layers} layer, nothing to compare."
    between = array[~np.eye(layers, dtype=bool)]
    row, column = np.unravel_index(int(np.argmax(array)), array.shape)
    return (
        f"{layers} layers, {between.mean():.2f} nats apart on average. "
        f"Furthest apart: layer {row} from layer {column}, {array[row, column]:.2f} nats."
    )


def _table(array: Float64[np.ndarray, "layers layers"]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    groups = np.array_split(np.arange(len(array)), min(_TABLE, len(array)))
    return tuple(
        (
            f"{rows[0]}-{rows[-1]}" if len(rows) > 1 else f"{rows[0]}",
            tuple(float(array[np.ix_(rows, columns)].mean()) for columns in groups),
        )
        for rows in groups
    )
