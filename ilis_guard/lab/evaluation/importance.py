"""What there is to look at: typical maps of right and wrong answers, and which pairs of layers the trees look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64

from ilis_guard.lab.fit import FEATURES, split
from ilis_guard.lab.rows import Mask, Rows
from ilis_guard.lab.tuning import grow
from ilis_guard.types import Position, Statistics

Map = Float64[np.ndarray, "layers layers"]
SEED: Final = 0
SHOWN: Final[Position] = "mean"
"""The position whose maps are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalAnswers:
    """Mean of log(1 + divergence), nats, each set counting alike."""

    right: Map
    wrong: Map

    @property
    def difference(self) -> Map:
        """Wrong less right: of the same sets, so that it isn't which sets are hard that is seen."""
        away: Map = self.wrong - self.right
        return away


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Shares of the gain of all splits of the trees, in a scorer that was fitted to all sets."""

    pairs: Map
    """By pair of layers, over all maps that are looked at. Sums to 1 with `statistics`."""
    statistics: Mapping[str, float]
    by_distance: Float64[np.ndarray, " distances"]
    """Mean share of a pair of layers that lie 1, 2, ... L-1 apart, of what all pairs have: there are fewer far ones."""


def typical_answers(rows: Rows) -> TypicalAnswers:
    """What the maps of right and of wrong answers look like on average."""
    logs = np.log1p(rows.signatures[SHOWN])
    names = np.unique(rows.datasets)

    def mean(which: Mask) -> Map:
        of_each = [logs[which & (rows.datasets == name)].mean(axis=0, dtype=np.float64) for name in names]
        typical: Map = np.mean(of_each, axis=0)
        return typical

    return TypicalAnswers(right=mean(~rows.wrong), wrong=mean(rows.wrong))


def importance(rows: Rows) -> Importance:
    """What trees look at that may look at whole maps and output statistics and are fitted to all sets together."""
    splits = split(tuple(rows.datasets.tolist()), SEED)
    seen = splits["train"] | splits["validation"]
    rows, train = rows.take(seen), splits["train"][seen]
    groups = FEATURES["answer"][0]
    best = grow([groups], rows.signatures, rows.statistics, rows.wrong, train=train, validation=~train, seed=SEED)[0]
    return _folded(best.booster.feature_importance("gain"), groups, rows.fingerprint.layers)


def _folded(gain: Float64[np.ndarray, " features"], groups: Sequence[str], layers: int) -> Importance:
    gain = gain / (gain.sum() or 1.0)
    first, second = np.nonzero(~np.eye(layers, dtype=bool))
    pairs, statistics, start = np.zeros((layers, layers)), {}, 0
    for group in groups:
        if group == "statistics":
            names = Statistics.__slots__
            statistics = dict(zip(names, gain[start : start + len(names)].tolist(), strict=True))
            start += len(names)
        else:
            pairs[first, second] += gain[start : start + len(first)]
            start += len(first)
    distances = np.abs(first - second)
    of_distance = np.bincount(distances, weights=pairs[first, second]) / np.maximum(np.bincount(distances), 1)
    return Importance(pairs=pairs, statistics=statistics, by_distance=of_distance[1:] / (pairs.sum() or 1.0))
