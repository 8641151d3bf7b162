"""Feature groups: summaries, widths, and the positions of the maps that they read."""

import math
from typing import get_args

import numpy as np
import pytest

from ilis_guard.scoring.features import FeatureGroup, Maps, feature_count, feature_matrix, positions_of
from ilis_guard.types import POSITIONS, Position

GROUPS: tuple[FeatureGroup, ...] = get_args(FeatureGroup)
LOOKED_AT: dict[FeatureGroup, tuple[Position, ...]] = {
    "prompt": ("prompt",),
    "last": ("last",),
    "mean": ("mean",),
    "last-prompt": ("last", "prompt"),
    "mean-prompt": ("mean", "prompt"),
    "prompt-summary": ("prompt",),
    "last-summary": ("last",),
    "mean-summary": ("mean",),
    "last-prompt-summary": ("last", "prompt"),
    "mean-prompt-summary": ("mean", "prompt"),
    "statistics": (),
}
NO_STATISTICS = np.zeros((2, 0))


def random_maps(layers: int, rows: int = 2) -> Maps:
    """With diagonals that would show if they were counted."""
    random = np.random.default_rng(layers)
    return {
        position: random.lognormal(size=(rows, layers, layers)).astype(np.float32) + 50 * np.eye(layers, dtype="f4")
        for position in POSITIONS
    }


def summary_by_loops(one: np.ndarray, parts: list[int]) -> list[float]:
    """Of one map: means by distance from -(L-1) to L-1, then by block, row by row of blocks."""
    layers = len(one)
    pairs = [(i, j) for i in range(layers) for j in range(layers) if i != j]
    logarithms = {pair: math.log1p(float(one[pair])) for pair in pairs}
    by_distance = [[logarithms[i, j] for i, j in pairs if j - i == apart] for apart in range(1 - layers, layers)]
    by_block = [
        [logarithms[i, j] for i, j in pairs if (parts[i], parts[j]) == (first, second)]
        for first in range(6)
        for second in range(6)
    ]
    return [math.fsum(values) / len(values) for values in by_distance + by_block if values]


# Which of six parts each layer lies in, and how many distances and blocks there are. Where a part is one layer, its
# block with itself is the diagonal, and holds no pair.
PARTS = {
    3: ([0, 1, 2], 4 + 6),
    7: ([0, 0, 1, 2, 3, 4, 5], 12 + 31),
    12: ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], 22 + 36),
}


@pytest.mark.parametrize("layers", PARTS)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_summary_is_means_of_logarithms_by_distance_and_block(layers: int, position: Position) -> None:
    maps = random_maps(layers)
    parts, width = PARTS[layers]
    group: FeatureGroup = {"prompt": "prompt-summary", "last": "last-summary", "mean": "mean-summary"}[position]  # type: ignore[assignment] # a dict's values are str to mypy
    features = feature_matrix([group], maps, NO_STATISTICS)
    assert features.shape == (2, width)
    for row, one in zip(features.tolist(), maps[position], strict=True):
        assert row == pytest.approx(summary_by_loops(one, parts), rel=1e-12)


def test_a_summary_of_three_layers_in_numbers() -> None:
    cell = np.expm1(np.array([[9.0, 1, 2], [3, 9, 4], [5, 6, 9]])).astype(np.float32)
    maps: Maps = dict.fromkeys(POSITIONS, cell[None])
    by_distance, by_block = [5, (3 + 6) / 2, (1 + 4) / 2, 2.0], [1.0, 2, 3, 4, 5, 6]
    summary = feature_matrix(["prompt-summary"], maps, np.zeros((1, 0)))
    assert summary[0].tolist() == pytest.approx(by_distance + by_block, rel=1e-6)


@pytest.mark.parametrize("layers", [3, 12])
@pytest.mark.parametrize("answer", ["last", "mean"])
def test_difference_group_subtracts_summaries(layers: int, answer: str) -> None:
    maps, wanted = random_maps(layers), f"{answer}-prompt-summary"
    assert wanted in GROUPS
    whole: dict[str, np.ndarray] = {str(group): feature_matrix([group], maps, NO_STATISTICS) for group in GROUPS}
    difference = whole[f"{answer}-summary"] - whole["prompt-summary"]
    assert whole[wanted].tolist() == difference.tolist()
    assert np.abs(difference).min() > 0


@pytest.mark.parametrize("layers", [*range(2, 14), 30])
def test_feature_count_is_the_width_that_the_matrix_has(layers: int) -> None:
    maps, statistics = random_maps(layers), np.zeros((2, 3))
    parts = min(6, layers)
    lone = sum([*np.arange(layers) * parts // layers].count(part) == 1 for part in range(parts))
    widths = {
        group: 3
        if group == "statistics"
        else 2 * (layers - 1) + parts**2 - lone
        if group.endswith("-summary")
        else layers * (layers - 1)
        for group in GROUPS
    }
    for group, width in widths.items():
        assert feature_matrix([group], maps, statistics).shape == (2, width), group
        assert feature_count([group], layers=layers, statistics=3) == width, group
    assert feature_count(GROUPS, layers=layers, statistics=3) == sum(widths.values())


def test_of_a_model_that_is_not_tapped_statistics_are_all_that_is_counted() -> None:
    assert feature_count(["statistics"], layers=0, statistics=2) == 2


@pytest.mark.parametrize("group", GROUPS)
def test_group_names_the_positions_of_its_maps(group: FeatureGroup) -> None:
    assert positions_of(group) == LOOKED_AT[group]


@pytest.mark.parametrize("group", GROUPS)
def test_group_reads_no_map_beside_those_that_are_named(group: FeatureGroup) -> None:
    maps, statistics = random_maps(4), np.ones((2, 4))
    needed = {position: maps[position] for position in LOOKED_AT[group]}
    features = feature_matrix([group], needed, statistics)
    assert features.tolist() == feature_matrix([group], maps, statistics).tolist()
    for missing in needed:
        with pytest.raises(KeyError, match=missing):
            feature_matrix([group], {name: each for name, each in needed.items() if name != missing}, statistics)


@pytest.mark.parametrize("layers", [0, 1])
def test_where_there_is_no_pair_of_layers_maps_give_no_columns(layers: int) -> None:
    of_maps = [group for group in GROUPS if group != "statistics"]
    assert feature_count(of_maps, layers=layers, statistics=4) == 0
