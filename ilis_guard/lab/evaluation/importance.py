"""Typical maps of right and wrong answers, and the importance of pairs of layers for the trees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64

from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.fit import FEATURES
from ilis_guard.lab.grouping import answer_groups
from ilis_guard.lab.splits import split
from ilis_guard.lab.traffic import HomeTraffic
from ilis_guard.lab.tuning import tune
from ilis_guard.types import Position, Statistics

Map = Float64[np.ndarray, "layers layers"]
SEED: Final = 0
POSITION: Final[Position] = "mean"
"""The position whose maps are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalAnswers:
    """Mean of log(1 + divergence), nats, with equal weight for each set."""

    right: Map
    wrong: Map

    @property
    def difference(self) -> Map:
        """Wrong less right, of the same sets, so that it doesn't show which sets are hard."""
        away: Map = self.wrong - self.right
        return away


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Shares of the gain of all splits of trees fitted to all sets."""

    pairs: Map
    """By pair of layers, over all maps. Sums to 1 with `statistics`."""
    statistics: Mapping[str, float]
    by_distance: Float64[np.ndarray, " distances"]
    """Mean share of a pair of layers that are 1, 2, ... L-1 apart, of the gain of all pairs. A mean, since there are
    fewer far pairs."""


def typical_answers(rows: Answers) -> TypicalAnswers:
    """Compute the mean maps of right and of wrong answers."""
    logs = np.log1p(rows.signatures[POSITION])
    names = np.unique(rows.datasets)

    def mean(which: Mask) -> Map:
        of_each = [logs[which & (rows.datasets == name)].mean(axis=0, dtype=np.float64) for name in names]
        typical: Map = np.mean(of_each, axis=0)
        return typical

    return TypicalAnswers(right=mean(~rows.wrong), wrong=mean(rows.wrong))


def importance(rows: Answers) -> Importance:
    """Compute the importance of whole maps and output statistics for trees fitted to all sets together."""
    splits = split(rows.datasets, SEED, answer_groups(rows))
    seen = splits["train"] | splits["validation"]
    rows, train = rows.take(seen), splits["train"][seen]
    groups = FEATURES["answer"][0]
    home = HomeTraffic(rows, "answer", train)
    features_of = lambda features: home.normalised(features).blocks["features"]  # noqa: E731 - one choice
    best = tune([groups], features_of, rows.wrong, train=train, validation=~train, seed=SEED)[0]
    return _folded(best.booster.feature_importance("gain"), groups, rows.layers)


def _folded(gain: Float64[np.ndarray, " features"], groups: Sequence[str], layers: int) -> Importance:
    # Each column comes twice, as it was and normalised.
    gain = gain.reshape(2, -1).sum(axis=0) / (gain.sum() or 1.0)
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
