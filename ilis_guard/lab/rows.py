"""Rows: what all methods learn from and are judged on, a harvest's answers with what was observed of them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int64

from ilis_guard.errors import FitError
from ilis_guard.lab.baselines.observations import file_digest, read_observations
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


def read_rows_of(harvests: Sequence[Path]) -> Rows:
    """Read harvests of one model.

    Args:
        harvests: Parquet files, in the order that their rows are to have.

    Raises:
        FitError: a file isn't one, the harvests are of different models, or an id comes twice.
    """
    if not harvests:
        raise FitError("there are no rows without a harvest: name at least one file")
    read = [read_harvest(path) for path in harvests]
    _check_one_model(harvests, read)
    ids = [id_ for harvest in read for id_ in harvest.ids]
    if repeated := [id_ for id_, times in Counter(ids).items() if times > 1]:
        raise FitError(f"{len(repeated)} ids come twice in {_named(harvests)}, such as {repeated[0]!r:.60}")
    return Rows(
        fingerprint=read[0].manifest.tapped(),
        ids=np.array(ids),
        datasets=np.array([dataset for harvest in read for dataset in harvest.datasets]),
        wrong=np.concatenate([harvest.wrong for harvest in read]),
        signatures=_joined([harvest.signatures for harvest in read]),
        statistics=np.concatenate([harvest.statistics for harvest in read]),
    )


def with_observations(rows: Rows, harvests: Sequence[Path], observations: Sequence[Path]) -> Rows:
    """Add what was observed of the answers.

    Args:
        rows: of these harvests; not all, perhaps.
        harvests: the files that the rows were read from.
        observations: a file for each harvest that a row is of, in any order; there may be more.

    Raises:
        FitError: a row wasn't observed, or twice, or a file isn't one of observations of these harvests.
    """
    digests = {file_digest(path) for path in harvests}
    read = [read_observations(path) for path in observations]
    if strange := [
        path for path, of in zip(observations, read, strict=True) if of.manifest.harvest_sha256 not in digests
    ]:
        raise FitError(
            f"{_named(strange)} aren't the observations of {_named(harvests)} as they are now: observe these anew, or "
            "leave out those of other harvests"
        )
    ids = [id_ for of in read for id_ in of.ids]
    place = {id_: number for number, id_ in enumerate(ids)}
    if len(place) < len(ids):
        raise FitError(f"{len(ids) - len(place)} ids come twice in {_named(observations)}: name each file once")
    if unseen := [id_ for id_ in rows.ids.tolist() if id_ not in place]:
        raise FitError(
            f"{len(unseen)} answers weren't observed, such as {unseen[0]!r:.60}: observe each harvest that counts, and "
            "name all of these observations"
        )
    taken = np.array([place[id_] for id_ in rows.ids.tolist()])
    return replace(
        rows,
        unsupervised=_each(_joined([of.scores for of in read]), lambda of: of[taken]),
        activations=_each(_joined([of.activations for of in read]), lambda of: of[taken]),
    )


def _check_one_model(paths: Sequence[Path], read: Sequence[Harvest]) -> None:
    first = read[0].manifest.fingerprint
    for path, harvest in zip(paths, read, strict=True):
        if differing := first.differences(harvest.manifest.fingerprint):
            raise FitError(
                f"{str(paths[0])!r} and {str(path)!r} are harvests of different models: they differ in "
                f"{', '.join(differing)}; read each by itself"
            )


def _each(arrays: Mapping[K, Any], change: Callable[[Any], Any]) -> dict[K, Any]:
    return {name: change(array) for name, array in arrays.items()}


def _joined(parts: Sequence[Mapping[K, Any]]) -> dict[K, Any]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _named(paths: Sequence[Path]) -> str:
    return ", ".join(repr(str(path)) for path in paths)
