"""What a scorer computes, again, number by number."""

import math
from collections.abc import Sequence

from ilis_guard.scoring.blended_trees import Blending
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.traffic import Moments, TrafficProfile, measure_kind
from ilis_guard.scoring.typicality import TypicalityReference
from ilis_guard.types import POSITIONS, Generation

FARTHEST = 20.0


def traffic_of(columns: Columns) -> TrafficProfile:
    """All of one kind."""
    return TrafficProfile(kinds=(measure_kind(columns, "all"),), prompts=Moments.of(columns.prompt))


def trees_alone(features: int) -> Blending:
    """A blending that changes nothing on the trees' own traffic: the linear model says nothing."""
    return Blending(trees_spread=1.0, linear=(0.0,) * features, linear_weight=0.0)


def normalised(values: Sequence[float], moments: Moments) -> list[float]:
    """In spreads from the mean; 0 where nothing varies, and no farther than 20."""
    return [
        max(-FARTHEST, min(FARTHEST, (value - mean) / spread)) if spread else 0.0
        for value, mean, spread in zip(values, moments.mean, moments.spread, strict=True)
    ]


def pairs(layers: int) -> list[tuple[int, int]]:
    return [(first, second) for first in range(layers) for second in range(layers) if first != second]


def typicality_columns(generation: Generation, layers: int) -> list[float]:
    """Mean log(1 + nats) of pairs of layers 1, 2, ... apart, at the prompt and over the answer."""
    prompt, _, mean = (generation.signatures[position] for position in POSITIONS)
    return [
        sum(math.log1p(float(each[i, j])) for i, j in pairs(layers) if abs(i - j) == apart) / (2 * (layers - apart))
        for each in (prompt, mean)
        for apart in range(1, layers)
    ]


def share_as_far(columns: Sequence[float], reference: TypicalityReference, distances: Sequence[float]) -> float:
    """Of the distances and the generation itself, by its squared Mahalanobis distance."""
    away = [value - centre for value, centre in zip(columns, reference.mean, strict=True)]
    distance = sum(
        first * weight * second
        for first, row in zip(away, reference.precision, strict=True)
        for weight, second in zip(row, away, strict=True)
    )
    return (1 + sum(other >= distance for other in distances)) / (1 + len(distances))
