from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import chisquare

from ilis_guard.scoring.features import Maps
from ilis_guard.scoring.typicality import (
    TypicalityEstimator,
    TypicalityReference,
    squared_distances,
    typicality_columns,
)

LAYERS = 3


def reference(**changes: Any) -> dict[str, Any]:
    """Of maps of three layers: two distances at two positions."""
    return {"mean": [0.0] * 4, "precision": np.eye(4).tolist(), "distances": [1.0, 2.0, 2.0, 3.0]} | changes


def maps_at(*away: float) -> Maps:
    """One row each whose columns lies so far, squared, from 0."""
    mean = np.zeros((len(away), LAYERS, LAYERS), dtype=np.float32)
    mean[:, [0, 2], [2, 0]] = np.expm1(np.sqrt(away))[:, None]
    return {"prompt": np.zeros_like(mean), "mean": mean}


def test_typicality_is_the_share_of_rows_at_least_as_far_away() -> None:
    detector = TypicalityEstimator(TypicalityReference.model_validate(reference()))
    typicality = detector.typicality(typicality_columns(maps_at(0.0, 0.99, 1.5, 2.5, 3.5), "answer"))
    np.testing.assert_allclose(typicality, [1, 1, 4 / 5, 2 / 5, 1 / 5])


def test_a_tie_counts_as_at_least_as_far() -> None:
    detector = TypicalityEstimator(TypicalityReference.model_validate(reference(distances=[0.0, 0.0, 5.0])))
    assert detector.typicality(typicality_columns(maps_at(0.0), "answer")).tolist() == [1.0]


def test_the_profile_holds_the_prompts_distances_then_the_means() -> None:
    prompt, mean = np.zeros((2, 1, LAYERS, LAYERS), dtype=np.float32)
    prompt[0, 0, 1] = np.expm1(4.0)  # one of four pairs one layer apart
    mean[0, 2, 0] = np.expm1(4.0)  # one of two pairs two layers apart
    np.testing.assert_allclose(
        typicality_columns({"prompt": prompt, "mean": mean}, "answer"), [[1, 0, 0, 2]], rtol=1e-6
    )


def test_typicality_of_a_row_does_not_depend_on_its_batch() -> None:
    random = np.random.default_rng(0)
    maps: Maps = {name: random.lognormal(size=(50, 30, 30)).astype(np.float32) for name in ("prompt", "mean")}
    columns = typicality_columns(maps, "answer")
    precision = np.linalg.inv(np.cov(columns.T) + np.eye(58))
    distances = squared_distances(columns, columns.mean(axis=0), precision)
    for row in range(50):
        alone = typicality_columns({name: each[row : row + 1] for name, each in maps.items()}, "answer")
        assert squared_distances(alone, columns.mean(axis=0), precision) == distances[row]


def test_squared_distances_equal_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    columns, mean, half = random.normal(size=(5, 4)), random.normal(size=4), random.normal(size=(4, 4))
    precision = half @ half.T
    expected = [(row - mean) @ precision @ (row - mean) for row in columns]
    np.testing.assert_allclose(squared_distances(columns, mean, precision), expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), -2.0])
def test_invalid_divergence_has_no_typicality(bad: float) -> None:
    maps = maps_at(0.0, 0.0)
    maps["mean"][1, 0, 1] = bad
    with np.errstate(invalid="ignore"):
        typicality = TypicalityEstimator(TypicalityReference.model_validate(reference())).typicality(
            typicality_columns(maps, "answer")
        )
    assert typicality[0] == 1
    assert np.isnan(typicality[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [0.0] * 3},
        {"precision": np.eye(3).tolist()},
        {"precision": [[1.0] * 4] * 3 + [[1.0] * 3]},
        {"precision": [[float("nan")] * 4] * 4},
        {"mean": [float("inf")] * 4},
        {"distances": []},
        {"distances": [2.0, 1.0]},
        {"distances": [1.0, float("nan")]},
        {"distances": [1.0, float("inf")]},
        {"more": 1},
    ],
)
def test_reference_of_wrong_shape_or_with_non_finite_values_is_refused(changes: dict[str, Any]) -> None:
    TypicalityReference.model_validate(reference())
    with pytest.raises(ValidationError):
        TypicalityReference.model_validate(reference(**changes))


def test_typicality_is_uniform_on_exchangeable_rows() -> None:
    """Through the whole of it: maps, columns, a reference fitted to other rows, and the place among the distances."""
    random = np.random.default_rng(0)
    layers, rows = 4, 19

    def maps(count: int) -> Maps:
        return {
            "prompt": random.lognormal(size=(count, layers, layers)).astype(np.float32),
            "mean": random.lognormal(0.3, 0.8, size=(count, layers, layers)).astype(np.float32),
        }

    columns = typicality_columns(maps(400), "answer")
    mean, precision = columns.mean(axis=0), np.linalg.inv(np.cov(columns.T))
    places = np.zeros(rows + 1)
    for _ in range(2000):
        distances = squared_distances(typicality_columns(maps(rows), "answer"), mean, precision)
        known = TypicalityReference(
            mean=tuple(mean.tolist()),
            precision=tuple(map(tuple, precision.tolist())),
            distances=tuple(sorted(distances.tolist())),
        )
        typicality = float(TypicalityEstimator(known).typicality(typicality_columns(maps(1), "answer"))[0])
        places[round(typicality * (rows + 1)) - 1] += 1
    assert chisquare(places).pvalue > 1e-3
