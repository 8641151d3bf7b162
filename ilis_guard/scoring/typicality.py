"""Typicality: how much a generation resembles the calibration rows, as a conformal p-value."""

from collections.abc import Mapping
from typing import Annotated, Final

import numpy as np
from jaxtyping import Float64
from pydantic import AfterValidator, ConfigDict, FailFast, Field, model_validator

from ilis_guard.config.base import StrictModel
from ilis_guard.scoring.features import Maps, distance_means
from ilis_guard.types import Position, Stage

COMPARED: Final[Mapping[Stage, tuple[Position, ...]]] = {"prompt": ("prompt",), "answer": ("prompt", "mean")}
"""Positions whose maps are compared, by stage."""

Row = Annotated[tuple[float, ...], FailFast()]


class BundlePart(StrictModel):
    """A part of a bundle's JSON, without unknown keys, infinities and NaN."""

    model_config = ConfigDict(allow_inf_nan=False)


def _ascending(distances: Row) -> Row:
    if list(distances) != sorted(distances):
        raise ValueError("distances aren't ascending")
    return distances


Distances = Annotated[Row, Field(min_length=1), AfterValidator(_ascending)]


class TypicalityReference(BundlePart):
    """Mean and precision of the training rows' columns, and the distances of calibration rows from them.

    A generation's columns are compared with the training rows' by its Mahalanobis distance; typicality is the share of
    calibration rows at least as far away, ``(1 + #{d_i >= d}) / (n + 1)``. Where a generation is exchangeable with
    the calibration rows, that is a p-value: uniform, so values under 0.01 come in one case of a hundred.
    """

    model_config = ConfigDict(strict=False)  # built from lists, too; files are read strictly

    mean: Row
    precision: Annotated[tuple[Row, ...], FailFast()]
    """Inverse of the (shrunk) covariance of the training rows' columns."""
    distances: Distances
    """Squared distances of the calibration rows, ascending."""

    @model_validator(mode="after")
    def _check_shapes(self) -> "TypicalityReference":
        width = len(self.mean)
        if len(self.precision) != width or any(len(row) != width for row in self.precision):
            raise ValueError(f"precision isn't {width} x {width}")
        return self


class TypicalityEstimator:
    """Estimates typicality by a `TypicalityReference`: near 0 is unlike the calibration rows, 1 like them."""

    def __init__(self, reference: TypicalityReference) -> None:
        self._mean = np.array(reference.mean)
        self._precision = np.array(reference.precision)
        self._distances = np.array(reference.distances)

    def typicality(self, columns: Float64[np.ndarray, "rows columns"]) -> Float64[np.ndarray, " rows"]:
        """Estimate the typicality of each row, above 0, at most 1; NaN where a row has one.

        Args:
            columns: from `typicality_columns` or `statistics_columns`, as the reference's were.
        """
        distances = squared_distances(columns, self._mean, self._precision)
        as_far = len(self._distances) - np.searchsorted(self._distances, distances, side="left")
        return np.where(np.isnan(distances), np.nan, (1 + as_far) / (len(self._distances) + 1))


def typicality_columns(maps: Maps, stage: Stage) -> Float64[np.ndarray, "rows columns"]:
    """Compute what is compared of rows: mean divergences at the compared positions, by layer distance."""
    return np.concatenate([distance_means(maps[position]) for position in COMPARED[stage]], axis=1)


def statistics_columns(
    statistics: Float64[np.ndarray, "rows statistics"],
) -> Float64[np.ndarray, "rows statistics"]:
    """Compute what is compared of rows without maps: their output statistics, as logarithms, so that none dominates."""
    columns: Float64[np.ndarray, "rows statistics"] = np.log1p(np.abs(statistics))
    return columns


def squared_distances(
    columns: Float64[np.ndarray, "rows columns"],
    mean: Float64[np.ndarray, " columns"],
    precision: Float64[np.ndarray, "columns columns"],
) -> Float64[np.ndarray, " rows"]:
    """Compute each row's squared Mahalanobis distance from the mean, to the last bit whatever other rows there are."""
    away = np.ascontiguousarray(columns - mean)  # the memory layout decides the order of summation
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # of a damaged reference: the result is NaN, which the scorer refuses
        return np.fromiter((row @ precision @ row for row in away), dtype=np.float64, count=len(away))
