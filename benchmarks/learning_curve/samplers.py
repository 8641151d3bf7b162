"""Ways to choose the rows that are labelled next, each with the chance that a row had of being chosen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from ilis_guard.lab.calibration_rows import CalibrationRows
from ilis_guard.scoring.traffic import Normaliser

Rows = Int64[np.ndarray, " chosen"]
Shares = Float64[np.ndarray, " rows"]
COMPONENTS: Final = 10
"""Of the features in units of their traffic, that clusters are found in."""
CLUSTERS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Draws places of rows, and the chance that each had."""

    name: str
    choose: Callable[[CalibrationRows, Shares, int, np.random.Generator], tuple[Rows, Shares]]

    def draw(self, rows: CalibrationRows, uncertainty: Shares, count: int, seed: int) -> tuple[Rows, Shares]:
        """Draw so many rows."""
        chosen, chance = self.choose(rows, uncertainty, count, np.random.default_rng([seed, count]))
        return chosen, chance[chosen]


def systematic(order: Rows, chance: Shares, random: np.random.Generator) -> Rows:
    """Walk along an order in equal steps of summed chances, from a start that is drawn; chances sum to a number."""
    ends = np.cumsum(chance[order])
    count = round(float(ends[-1]))
    return order[np.minimum(np.searchsorted(ends, np.arange(count) + random.random(), side="right"), len(order) - 1)]


def _equal(rows: CalibrationRows, count: int) -> Shares:
    return np.full(len(rows), count / len(rows))


def _kinds(rows: CalibrationRows) -> Rows:
    assert rows.columns is not None, "a harvest has them"
    return Normaliser(rows.traffic).nearest_kinds(rows.columns.prompt)


def spread(kinds: Rows, uncertainty: Shares, random: np.random.Generator) -> Rows:
    """All rows in an order of which each beginning is spread along (kind, uncertainty).

    A generalised random tessellation stratified sample (Stevens and Olsen, 2004) in one dimension: an order that starts
    at a row that is drawn is halved again and again, and rows are taken from both halves in turn.
    """
    order = np.lexsort((random.random(len(kinds)), uncertainty, kinds))
    return _in_turn(np.roll(order, random.integers(len(order))), random)


def _in_turn(order: Rows, random: np.random.Generator) -> Rows:
    """Take rows from both halves of an order in turn, and so within each."""
    if len(order) <= 1:
        return order
    # An odd row is in either half with the same chance, and the larger half comes first.
    middle = (len(order) + int(random.integers(2)) * (len(order) % 2)) // 2
    halves = [_in_turn(order[:middle], random), _in_turn(order[middle:], random)]
    first = random.integers(2) if len(order) % 2 == 0 else int(len(halves[1]) > len(halves[0]))
    taken = np.empty_like(order)
    taken[0::2], taken[1::2] = halves[first], halves[1 - first]
    return taken


def _spread(rows: CalibrationRows, uncertainty: Shares, count: int, random: np.random.Generator) -> tuple[Rows, Shares]:
    return spread(_kinds(rows), uncertainty, random)[:count], _equal(rows, count)


def _by_uncertainty(
    rows: CalibrationRows, uncertainty: Shares, count: int, random: np.random.Generator
) -> tuple[Rows, Shares]:
    chance = _equal(rows, count)
    return systematic(np.lexsort((uncertainty, _kinds(rows))), chance, random), chance


def _middle(rows: CalibrationRows, uncertainty: Shares, count: int, random: np.random.Generator) -> tuple[Rows, Shares]:
    """More of those whose outcome is the least certain: a chance in proportion to sqrt(u (1 - u)) (Neyman, 1934)."""
    size = np.sqrt(uncertainty * (1 - uncertainty)) + 0.05
    chance = _equal(rows, 0)
    certain = np.zeros(len(rows), dtype=bool)
    while True:
        left = count - int(certain.sum())
        chance = np.where(certain, 1.0, left * size / size[~certain].sum())
        if (chance <= 1).all():
            return systematic(np.lexsort((uncertainty, _kinds(rows))), chance, random), chance
        certain |= chance > 1


def _clusters(
    rows: CalibrationRows, uncertainty: Shares, count: int, random: np.random.Generator
) -> tuple[Rows, Shares]:
    """Each cluster of features in its share, and in it along the uncertainty."""
    parts = PCA(COMPONENTS, random_state=0).fit_transform(rows.normalised_features)
    cluster = KMeans(CLUSTERS, n_init=2, random_state=0).fit_predict(parts)
    chance = _equal(rows, count)
    return systematic(np.lexsort((uncertainty, cluster)), chance, random), chance


SAMPLERS: Final = (
    Sampler(name="spread", choose=_spread),
    Sampler(name="systematic", choose=_by_uncertainty),
    Sampler(name="middle", choose=_middle),
    Sampler(name="clusters", choose=_clusters),
)
"""Beside random ones, which `ilis-guard choose-rows` draws."""
