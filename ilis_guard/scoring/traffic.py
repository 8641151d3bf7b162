"""Traffic profiles: mean and spread of what a scorer looks at, over unlabelled answers to requests of each kind.

The maps of two kinds of requests differ more than those of right and wrong answers to one kind. So columns are compared
in units of their own kind's traffic: ``z = (x - mean) / spread`` (docs/profiles.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal

import numpy as np
from jaxtyping import Float64, Int64
from pydantic import AfterValidator, ConfigDict, FailFast, Field, model_validator

from ilis_guard.errors import ScoringError
from ilis_guard.scoring.columns import BLOCKS, Block, Columns
from ilis_guard.scoring.typicality import BundlePart
from ilis_guard.types import Label, Labels
from ilis_guard.types.requests import nfc

DIGITS: Final = 6
"""Significant ones of a spread, and of a mean counted in spreads: more than any estimate from some hundred rows has."""
LARGEST: Final = 1e100
"""Of a moment, and 1 / the smallest spread: with larger ones, normalising could multiply 0 by infinity."""
CONSTANT: Final = 1e-9
"""A spread up to this share of the mean is rounding: the column says nothing of such traffic, and is 0."""
FARTHEST: Final = 20.0
"""Spreads from the mean at which a column is cut off, so that one row can't outweigh all others."""


def _invertible(spread: float) -> float:
    if 0 < spread < 1 / LARGEST:
        raise ValueError(f"a spread is 0, or at least {1 / LARGEST}")
    return spread


Bounded = Annotated[tuple[Annotated[float, Field(ge=-LARGEST, le=LARGEST)], ...], FailFast()]


class Moments(BundlePart):
    """Mean and standard deviation of each of some columns."""

    model_config = ConfigDict(strict=False)  # built from lists, too; files are read strictly

    mean: Bounded
    spread: Annotated[tuple[Annotated[float, Field(ge=0, le=LARGEST), AfterValidator(_invertible)], ...], FailFast()]
    """0 where the column is constant."""

    @classmethod
    def of(cls, values: Float64[np.ndarray, "rows columns"]) -> "Moments":
        """Measure columns, over at least one row."""
        mean, spread = values.mean(axis=0), values.std(axis=0)
        spread[spread <= np.maximum(CONSTANT * np.abs(mean), 1 / LARGEST)] = 0.0
        pairs = list(zip(mean.tolist(), spread.tolist(), strict=True))
        return cls(
            mean=tuple(_rounded(mean, _digits(mean, spread)) for mean, spread in pairs),
            spread=tuple(_rounded(spread, DIGITS) for _, spread in pairs),
        )

    @model_validator(mode="after")
    def _check_lengths(self) -> "Moments":
        if len(self.mean) != len(self.spread):
            raise ValueError(f"{len(self.mean)} means but {len(self.spread)} spreads")
        return self


class TrafficKind(BundlePart):
    """Requests of one kind."""

    name: str
    """The value of the label that tells kinds apart, or a cluster's number."""
    rows: int = Field(ge=1)
    """Answers that the moments were measured on."""
    moments: Mapping[Block, Moments]
    centre: Bounded = ()
    """Mean summary of the prompts' maps, in spreads from the mean of all traffic; empty where labels tell kinds
    apart, or there is one kind."""


class TrafficProfile(BundlePart):
    """The kinds of requests that there are in some traffic."""

    kinds: Annotated[tuple[TrafficKind, ...], FailFast()] = Field(min_length=1)
    prompts: Moments
    """Of the prompts' summaries in all traffic."""
    label: str | None = None
    """The label of requests whose value names their kind; None where their prompts' maps tell it."""

    @model_validator(mode="after")
    def _check_kinds(self) -> "TrafficProfile":
        first = self.kinds[0]
        width = len(self.prompts.mean) if self.label is None and len(self.kinds) > 1 else 0
        for kind in self.kinds:
            if len(kind.centre) != width:
                raise ValueError(f"the kind {kind.name!r:.60} has a centre of {len(kind.centre)} numbers, not {width}")
            if _widths(kind) != _widths(first):
                raise ValueError(f"the kind {kind.name!r:.60} has other columns than {first.name!r:.60}")
        if len({kind.name for kind in self.kinds}) < len(self.kinds):
            raise ValueError("a kind stands twice")
        return self

    @property
    def widths(self) -> dict[Block | Literal["prompt"], int]:
        """Columns of each block, and of the prompts' summaries."""
        known: dict[Block | Literal["prompt"], int] = {"prompt": len(self.prompts.mean)}
        known.update(_widths(self.kinds[0]).items())
        return known


def _widths(kind: TrafficKind) -> dict[Block, int]:
    return {name: len(kind.moments[name].mean) for name in BLOCKS if name in kind.moments}


def measure_kind(columns: Columns, name: str, centre: tuple[float, ...] = ()) -> TrafficKind:
    """Measure the moments of traffic of one kind."""
    moments = {block: Moments.of(values) for block, values in columns.blocks.items()}
    return TrafficKind(name=name, rows=len(columns), moments=moments, centre=centre)


def kind_name(value: Label) -> str:
    """The name of the kind that a label's value says; labels of requests are in NFC, and those of files may not be."""
    return nfc(str(value))


class Normaliser:
    """Puts columns into units of their kind's traffic."""

    def __init__(self, profile: TrafficProfile) -> None:
        self.profile = profile
        self._prompts = _Scale(profile.prompts)
        self._centres = np.array([kind.centre for kind in profile.kinds])
        self._scales: dict[Block, list[_Scale]] = {
            block: [_Scale(kind.moments[block]) for kind in profile.kinds] for block in profile.kinds[0].moments
        }
        self._named = {kind.name: index for index, kind in enumerate(profile.kinds)}

    def kinds(
        self, prompts: Float64[np.ndarray, "rows summary"], labels: Sequence[Labels]
    ) -> Int64[np.ndarray, " rows"]:
        """Find the kind of each row, an index of the profile's.

        Args:
            prompts: summaries of the prompts' maps.
            labels: of each row's request.

        Raises:
            ScoringError: a label names the kinds, and a row lacks it, or has a value that the profile doesn't know.
        """
        label = self.profile.label
        if label is None:
            return self.nearest_kinds(prompts)
        return np.array([self._named_kind(label, each) for each in labels], dtype=np.int64)

    def nearest_kinds(self, prompts: Float64[np.ndarray, "rows summary"]) -> Int64[np.ndarray, " rows"]:
        """Find the kind of each row whose prompts' maps are nearest on average."""
        if len(self.profile.kinds) == 1:
            return np.zeros(len(prompts), dtype=np.int64)
        away = self._prompts.normalise(prompts)[:, None, :] - self._centres
        nearest: Int64[np.ndarray, " rows"] = np.einsum("rks,rks->rk", away, away).argmin(axis=1)
        return nearest

    def _named_kind(self, label: str, labels: Labels) -> int:
        if label not in labels:
            raise ScoringError(
                f"the label {label!r:.60} names the kinds of the traffic profile, and the request has the labels "
                f"{sorted(labels)!r:.120}: send it, or make a profile without --by"
            )
        value = kind_name(labels[label])
        if value not in self._named:
            raise ScoringError(
                f"the traffic profile has no kind {value!r:.60} (label {label!r:.60}); it has "
                f"{sorted(self._named)!r:.200}: make one with answers to such requests"
            )
        return self._named[value]

    def in_units(self, columns: Columns, labels: Sequence[Labels]) -> Columns:
        """Normalise columns, each row by the moments of its own kind.

        Args:
            columns: as they are.
            labels: of each row's request; only a profile whose kinds a label names looks at them.

        Raises:
            ScoringError: as `kinds`.
        """
        return self.normalise(columns, self.kinds(columns.prompt, labels))

    def normalise(self, columns: Columns, kinds: Int64[np.ndarray, " rows"]) -> Columns:
        """Normalise columns, each row by its kind's moments.

        The trees' features come out twice, as they were and normalised: what is the same in all traffic is lost in its
        units, and what differs misleads without them (docs/profiles.md).
        """
        blocks = {block: _by_kind(values, self._scales[block], kinds) for block, values in columns.blocks.items()}
        blocks["features"] = np.hstack([columns.blocks["features"], blocks["features"]])
        return replace(columns, blocks=blocks)


class _Scale:
    """Moments as arrays."""

    def __init__(self, moments: Moments) -> None:
        self._mean = np.array(moments.mean)
        spread = np.array(moments.spread)
        # A product is faster than a quotient, and 0 where the column is constant.
        self._per_spread = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)

    def normalise(self, values: Float64[np.ndarray, "rows columns"]) -> Float64[np.ndarray, "rows columns"]:
        with np.errstate(over="ignore"):  # beyond all numbers is beyond the farthest, too
            normalised: Float64[np.ndarray, "rows columns"] = (values - self._mean) * self._per_spread
        return normalised.clip(-FARTHEST, FARTHEST)


def _by_kind(
    values: Float64[np.ndarray, "rows columns"], scales: Sequence[_Scale], kinds: Int64[np.ndarray, " rows"]
) -> Float64[np.ndarray, "rows columns"]:
    normalised = np.empty_like(values)
    for kind in np.unique(kinds):
        rows = kinds == kind
        normalised[rows] = scales[kind].normalise(values[rows])
    return normalised


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _digits(mean: float, spread: float) -> int:
    """Of a mean, so that it is known to `DIGITS` in spreads: columns may vary by little beside their mean."""
    return DIGITS + max(0, math.ceil(math.log10(abs(mean) / spread))) if mean and spread else DIGITS
