from typing import get_args

import numpy as np
import pytest

from ilis_guard.scoring.features import FeatureGroup, Maps, distance_means, feature_matrix

LAYERS = 5
ROWS = 3
PAIRS = [(i, j) for i in range(LAYERS) for j in range(LAYERS) if i != j]


@pytest.fixture
def maps() -> Maps:
    """All cells of all maps differ, the diagonals too, so that no cell passes for another."""
    cells = np.random.default_rng(0).permutation(3 * ROWS * LAYERS * LAYERS).astype(np.float32) / 7
    prompt, last, mean = cells.reshape(3, ROWS, LAYERS, LAYERS)
    return {"prompt": prompt, "last": last, "mean": mean}


@pytest.fixture
def statistics() -> np.ndarray:
    return -1 - np.arange(4.0 * ROWS).reshape(ROWS, 4)


def by_loops(groups: tuple[FeatureGroup, ...], maps: Maps, statistics: np.ndarray) -> list[list[float]]:
    rows = []
    for row in range(ROWS):
        features: list[float] = []
        for group in groups:
            if group == "statistics":
                features += statistics[row].tolist()
                continue
            for i, j in PAIRS:
                match group:
                    case "prompt" | "last" | "mean":
                        features.append(float(maps[group][row, i, j]))
                    case "last-prompt":
                        features.append(float(maps["last"][row, i, j] - maps["prompt"][row, i, j]))
                    case "mean-prompt":
                        features.append(float(maps["mean"][row, i, j] - maps["prompt"][row, i, j]))
        rows.append(features)
    return rows


@pytest.mark.parametrize("group", [group for group in get_args(FeatureGroup) if not group.endswith("-summary")])
def test_each_group_equals_a_plain_loop(group: FeatureGroup, maps: Maps, statistics: np.ndarray) -> None:
    features = feature_matrix([group], maps, statistics)
    assert features.shape == (ROWS, 4 if group == "statistics" else LAYERS * (LAYERS - 1))
    assert features.tolist() == by_loops((group,), maps, statistics)


@pytest.mark.parametrize("groups", [("statistics", "prompt"), ("mean-prompt", "last-prompt", "statistics")])
def test_blocks_stand_in_the_order_of_the_groups(
    groups: tuple[FeatureGroup, ...], maps: Maps, statistics: np.ndarray
) -> None:
    assert feature_matrix(groups, maps, statistics).tolist() == by_loops(groups, maps, statistics)


def test_difference_group_subtracts_the_prompt_map(statistics: np.ndarray) -> None:
    prompt = np.ones((ROWS, LAYERS, LAYERS), dtype=np.float32)
    maps: Maps = {"prompt": prompt, "last": 4 * prompt, "mean": 3 * prompt}
    assert set(feature_matrix(["last-prompt"], maps, statistics).ravel()) == {3.0}
    assert set(feature_matrix(["mean-prompt"], maps, statistics).ravel()) == {2.0}


def test_diagonals_change_nothing(maps: Maps, statistics: np.ndarray) -> None:
    groups: tuple[FeatureGroup, ...] = ("prompt", "mean-prompt")
    before = feature_matrix(groups, maps, statistics), distance_means(maps["mean"])
    for each in maps.values():
        each[:, range(LAYERS), range(LAYERS)] = 1e9
    np.testing.assert_array_equal(feature_matrix(groups, maps, statistics), before[0])
    np.testing.assert_array_equal(distance_means(maps["mean"]), before[1])


@pytest.mark.parametrize("layers", [2, 3, 7])
def test_the_distance_means_equals_a_plain_loop(layers: int) -> None:
    maps = np.random.default_rng(0).lognormal(size=(ROWS, layers, layers)).astype(np.float32)
    expected = [
        [
            np.mean([np.log1p(float(each[i, j])) for i in range(layers) for j in range(layers) if abs(i - j) == apart])
            for apart in range(1, layers)
        ]
        for each in maps
    ]
    np.testing.assert_allclose(distance_means(maps), expected, rtol=1e-12)


def test_the_distance_means_reads_both_directions() -> None:
    upper, lower = np.zeros((2, 1, 3, 3), dtype=np.float32)
    upper[0, 0, 2] = lower[0, 2, 0] = np.e - 1
    np.testing.assert_allclose(distance_means(upper), [[0, 0.5]], atol=1e-7)
    np.testing.assert_allclose(distance_means(lower), [[0, 0.5]], atol=1e-7)
