"""Rows: what all methods learn from and are judged on, a harvest's answers with what was observed of them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int64

from ilis_guard.errors import FitError
from ilis_guard.lab.baselines.observations import Observations, file_digest, read_observations
from ilis_guard.lab.harvest import Harvest, read_harvest
from ilis_guard.types import Fingerprint, Position, Site

K = TypeVar("K")
Mask = Bool[np.ndarray, " rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Answers of one model, those that it gave none to left out."""

    fingerprint: Fingerprint
    ids: np.ndarray
    """Strings."""
    datasets: np.ndarray
    """Strings."""
    wrong: Mask
    signatures: Mapping[Position, Float32[np.ndarray, "rows layers layers"]]
    statistics: Float64[np.ndarray, "rows statistics"]
    """Columns in the order of `Statistics`."""
    unsupervised: Mapping[str, Float64[np.ndarray, " rows"]] | None = None
    """Scores by name, higher for more uncertain; None where the answers weren't observed."""
    activations: Mapping[Site, Float16[np.ndarray, "rows layers hidden"]] | None = None
    """At the last answer token, in the `UNIT` of observations; None where the answers weren't observed."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: Mask | Int64[np.ndarray, " taken"]) -> "Rows":
        """Some of them, by a mask or by their numbers."""
        return Rows(
            fingerprint=self.fingerprint,
            ids=self.ids[which],
            datasets=self.datasets[which],
            wrong=self.wrong[which],
            signatures={position: maps[which] for position, maps in self.signatures.items()},
            statistics=self.statistics[which],
            unsupervised=None if self.unsupervised is None else _each(self.unsupervised, lambda of: of[which]),
            activations=None if self.activations is None else _each(self.activations, lambda of: of[which]),
        )


def read_rows_of(harvests: Sequence[Path], observations: Sequence[Path] = ()) -> Rows:
    """Read harvests of one model, and what was observed of their answers.

    Args:
        harvests: Parquet files, in the order that their rows are to have.
        observations: one file for each harvest, in any order; or none.

    Raises:
        FitError: a file isn't one, the harvests are of different models, an id comes twice, or the observations aren't
            those of these harvests.
    """
    if not harvests:
        raise FitError("there are no rows without a harvest: name at least one file")
    read = [read_harvest(path) for path in harvests]
    _check_one_model(harvests, read)
    ids = [id_ for harvest in read for id_ in harvest.ids]
    if repeated := [id_ for id_, times in Counter(ids).items() if times > 1]:
        raise FitError(f"{len(repeated)} ids come twice in {_named(harvests)}, such as {repeated[0]!r:.60}")
    observed = _observed(harvests, read, observations) if observations else None
    return Rows(
        fingerprint=read[0].manifest.tapped(),
        ids=np.array(ids),
        datasets=np.array([dataset for harvest in read for dataset in harvest.datasets]),
        wrong=np.concatenate([harvest.wrong for harvest in read]),
        signatures=_joined([harvest.signatures for harvest in read]),
        statistics=np.concatenate([harvest.statistics for harvest in read]),
        unsupervised=None if observed is None else _joined([of.scores for of in observed]),
        activations=None if observed is None else _joined([of.activations for of in observed]),
    )


def _check_one_model(paths: Sequence[Path], read: Sequence[Harvest]) -> None:
    first = read[0].manifest.fingerprint
    for path, harvest in zip(paths, read, strict=True):
        if differing := first.differences(harvest.manifest.fingerprint):
            raise FitError(
                f"{str(paths[0])!r} and {str(path)!r} are harvests of different models: they differ in "
                f"{', '.join(differing)}; read each by itself"
            )


def _observed(paths: Sequence[Path], read: Sequence[Harvest], observations: Sequence[Path]) -> list[Observations]:
    """Each harvest's observations, in the order of its rows."""
    by_harvest = {found.manifest.harvest_sha256: found for found in map(read_observations, observations)}
    digests = [file_digest(path) for path in paths]
    if set(by_harvest) != set(digests) or len(observations) != len(paths):
        without = [str(path) for path, digest in zip(paths, digests, strict=True) if digest not in by_harvest]
        raise FitError(
            f"{_named(observations)} aren't the observations of {_named(paths)}, one file each: "
            + (f"{without!r} have none; observe them as they are now" if without else "some are of other harvests")
        )
    return [_in_order(harvest.ids, by_harvest[digest]) for harvest, digest in zip(read, digests, strict=True)]


def _in_order(ids: Sequence[str], observed: Observations) -> Observations:
    if observed.ids == tuple(ids):
        return observed
    place = {id_: row for row, id_ in enumerate(observed.ids)}
    if place.keys() != set(ids) or len(observed.ids) != len(ids):
        raise FitError(
            f"{len(observed.ids)} answers were observed of a harvest that has {len(ids)}, or others: observe it anew"
        )
    rows = np.array([place[id_] for id_ in ids])
    return Observations(
        manifest=observed.manifest,
        ids=tuple(ids),
        scores=_each(observed.scores, lambda of: of[rows]),
        activations=_each(observed.activations, lambda of: of[rows]),
    )


def _each(arrays: Mapping[K, Any], change: Callable[[Any], Any]) -> dict[K, Any]:
    return {name: change(array) for name, array in arrays.items()}


def _joined(parts: Sequence[Mapping[K, Any]]) -> dict[K, Any]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(repr(str(path)) for path in paths)
