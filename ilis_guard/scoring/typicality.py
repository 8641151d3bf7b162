"""Typicality: how unlike the calibration rows a generation is, as a conformal p-value."""

from collections.abc import Mapping
from typing import Annotated, Final

import numpy as np
from jaxtyping import Float64
from pydantic import AfterValidator, FailFast, Field, model_validator

from ilis_guard.config.base import StrictModel
from ilis_guard.scoring.features import Maps, distance_profile
from ilis_guard.types import Position, Stage

PROFILED: Final[Mapping[Stage, tuple[Position, ...]]] = {"prompt": ("prompt",), "answer": ("prompt", "mean")}
"""Positions whose maps are compared, by the stage that is scored."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Row = Annotated[tuple[Finite, ...], FailFast()]


def _ascending(distances: Row) -> Row:
    if list(distances) != sorted(distances):
        raise ValueError("distances aren't ascending")
    return distances


Distances = Annotated[Row, Field(min_length=1), AfterValidator(_ascending)]


class TypicalityReference(StrictModel):
    """What profiles of the training rows look like, and how far calibration rows lie from them.

    A generation's profile is compared with the training rows' by its Mahalanobis distance; typicality is the share of
    calibration rows at least as far away, ``(1 + #{d_i >= d}) / (n + 1)``. Where a generation is exchangeable with
    the calibration rows, that is a p-value: uniform, so values under 0.01 come in one case of a hundred.
    """

    mean: Row
    precision: Annotated[tuple[Row, ...], FailFast()]
    """Inverse of the (shrunk) covariance of the training rows' profiles."""
    distances: Distances
    """Squared distances of the calibration rows, ascending."""

    @model_validator(mode="after")
    def _has_one_shape(self) -> "TypicalityReference":
        width = len(self.mean)
        if len(self.precision) != width or any(len(row) != width for row in self.precision):
            raise ValueError(f"precision isn't {width} x {width}")
        return self


class TypicalityEstimator:
    """A `TypicalityReference` ready for use: 0 means unlike the calibration rows, 1 like them."""

    def __init__(self, reference: TypicalityReference) -> None:
        self._mean = np.array(reference.mean)
        self._precision = np.array(reference.precision)
        self._distances = np.array(reference.distances)

    def typicality(self, profiles: Float64[np.ndarray, "rows profile"]) -> Float64[np.ndarray, " rows"]:
        """Typicality of each row, above 0, at most 1; not a number where a profile holds what is none.

        Args:
            profiles: from `profile` or `statistics_profile`, as the reference's were.
        """
        distances = squared_distances(profiles, self._mean, self._precision)
        as_far = len(self._distances) - np.searchsorted(self._distances, distances, side="left")
        return np.where(np.isnan(distances), np.nan, (1 + as_far) / (len(self._distances) + 1))


def profile(maps: Maps, stage: Stage) -> Float64[np.ndarray, "rows profile"]:
    """What is compared of a row: the distance profiles of its maps at the profiled positions."""
    return np.concatenate([distance_profile(maps[position]) for position in PROFILED[stage]], axis=1)


def statistics_profile(
    statistics: Float64[np.ndarray, "rows statistics"],
) -> Float64[np.ndarray, "rows statistics"]:
    """What is compared of a row without maps: its output statistics, as logarithms, so that none drowns the others."""
    profiles: Float64[np.ndarray, "rows statistics"] = np.log1p(np.abs(statistics))
    return profiles


def squared_distances(
    profiles: Float64[np.ndarray, "rows profile"],
    mean: Float64[np.ndarray, " profile"],
    precision: Float64[np.ndarray, "profile profile"],
) -> Float64[np.ndarray, " rows"]:
    """Squared Mahalanobis distance of each row from the mean, the same to the last bit whatever rows are beside it."""
    away = np.ascontiguousarray(profiles - mean)  # how rows lie in memory decides how they are added up
    with np.errstate(over="ignore", invalid="ignore"):  # of a damaged reference: it isn't a number then, and no score
        return np.fromiter((row @ precision @ row for row in away), dtype=np.float64, count=len(away))
