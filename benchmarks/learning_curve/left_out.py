"""Bundles that are fitted to all sets but one, and that one's rows."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers, read_answers, read_attempts
from ilis_guard.lab.baselines.observations import file_digest
from ilis_guard.lab.calibration_rows import CalibrationRows, read_calibration_rows
from ilis_guard.lab.fit import fit
from ilis_guard.scoring import Bundle, read_bundle
from ilis_guard.scoring.features import FeatureGroup

Which = Bool[np.ndarray, " rows"] | Int64[np.ndarray, " taken"]
LEAST_SETS: Final = 2
FEATURES: Final[tuple[FeatureGroup, ...]] = ("mean-prompt", "last-prompt", "statistics")
"""Those that a fit selects on nearly all rows that there are; a search would take four times as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A set, and what was fitted to the others."""

    name: str
    bundle: Bundle
    rows: CalibrationRows
    """Of the set, one of each group, scored by the bundle."""
    statistics: Float64[np.ndarray, "rows statistics"]
    """Of the same rows."""
    others: Sequence[Answers]
    """Of each other set."""

    def __len__(self) -> int:
        return len(self.rows)


def harvests_in(folder: Path) -> dict[str, Path]:
    """Find a folder's harvests by the names of their sets.

    Raises:
        FitError: there are fewer than two: none could be left out.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    if len(found) < LEAST_SETS:
        raise FitError(f"{str(folder)!r} holds {len(found)} harvests (*.parquet), and at least {LEAST_SETS} are needed")
    return found


def leave_out(name: str, harvests: Mapping[str, Path], folder: Path) -> LeftOut:
    """Leave a set out, and fit to the others, unless the bundle is in the folder already."""
    others = [path for other, path in harvests.items() if other != name]
    bundle = _fitted(name, others, folder)
    rows = read_calibration_rows(bundle, harvests[name])
    known = read_attempts(harvests[name]).answers()
    place = {id_: row for row, id_ in enumerate(known.ids.tolist())}
    independent = np.flatnonzero(rows.groups == np.arange(len(rows)))
    rows = take(rows, independent)
    return LeftOut(
        name=name,
        bundle=bundle,
        rows=rows,
        statistics=known.statistics[[place[id_] for id_ in rows.ids]],
        others=[read_attempts(path).answers() for path in others],
    )


def take(rows: CalibrationRows, which: Int64[np.ndarray, " taken"]) -> CalibrationRows:
    """Select rows of which none depends on another."""
    return replace(
        rows,
        ids=[rows.ids[row] for row in which],
        raw=rows.raw[which],
        wrong=rows.wrong[which],
        probability=rows.probability[which],
        distances=None if rows.distances is None else rows.distances[which],
        groups=np.arange(len(which)),
        columns=None if rows.columns is None else rows.columns.take(which),
        labels=[rows.labels[row] for row in which],
    )


def _fitted(name: str, harvests: Sequence[Path], folder: Path) -> Bundle:
    # Named by what it was fitted to, so that no other harvests' bundle is taken for it.
    digest = hashlib.sha256("".join(map(file_digest, harvests)).encode()).hexdigest()[:8]
    path = folder / f"without-{name}-{digest}"
    if not path.exists():
        fit(read_answers(harvests), path, features=FEATURES, accept=True)
    return read_bundle(str(path))
