"""Bundles that are fitted to all sets but one, and that one's rows."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Int64

from benchmarks.learning_curve.rivals import Rival, fit_rivals
from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers, read_answers, read_attempts
from ilis_guard.lab.baselines.observations import file_digest, with_observations
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
    answers: Answers
    """The same rows, with what was observed of them."""
    rivals: Sequence[Rival]
    """Fitted to the other sets."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A set's files."""

    harvest: Path
    observations: Path | None = None

    def answers(self) -> Answers:
        """Read the answers, with what was observed of them."""
        answers = read_attempts(self.harvest).answers()
        return answers if self.observations is None else with_observations(answers, [self.harvest], [self.observations])


def sources_in(harvests: Path, observations: Path | None = None) -> dict[str, Source]:
    """Find the files of sets by the sets' names.

    Args:
        harvests: a folder.
        observations: a folder with a file of the same name for each harvest; None where they weren't observed.

    Raises:
        FitError: there are fewer than two sets: none could be left out; or one wasn't observed.
    """
    found = harvests_in(harvests)
    if observations is None:
        return {name: Source(harvest=path) for name, path in found.items()}
    observed = {name: observations / path.name for name, path in found.items()}
    if unseen := [name for name, path in observed.items() if not path.is_file()]:
        raise FitError(
            f"{str(observations)!r} has no observations of {', '.join(map(repr, unseen))}: run `ilis-guard observe` on "
            "these harvests, or give no observations at all"
        )
    return {name: Source(harvest=path, observations=observed[name]) for name, path in found.items()}


def harvests_in(folder: Path) -> dict[str, Path]:
    """Find a folder's harvests by the names of their sets.

    Raises:
        FitError: there are fewer than two: none could be left out.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    if len(found) < LEAST_SETS:
        raise FitError(f"{str(folder)!r} holds {len(found)} harvests (*.parquet), and at least {LEAST_SETS} are needed")
    return found


def leave_out(name: str, sources: Mapping[str, Source], folder: Path) -> LeftOut:
    """Leave a set out, and fit to the others, unless the bundle is in the folder already."""
    others = [source for other, source in sources.items() if other != name]
    bundle = _fitted(name, [source.harvest for source in others], folder)
    rows = read_calibration_rows(bundle, sources[name].harvest)
    known = sources[name].answers()
    place = {id_: row for row, id_ in enumerate(known.ids.tolist())}
    independent = np.flatnonzero(rows.groups == np.arange(len(rows)))
    rows = take(rows, independent)
    return LeftOut(
        name=name,
        bundle=bundle,
        rows=rows,
        answers=known.take(np.array([place[id_] for id_ in rows.ids])),
        rivals=list(_rivals(others)),
    )


def _rivals(others: Sequence[Source]) -> Iterator[Rival]:
    harvests = [source.harvest for source in others]
    observations = [source.observations for source in others if source.observations is not None]
    rows = read_answers(harvests)
    sizes = [len(read_attempts(path).answers()) for path in harvests]
    return fit_rivals(
        with_observations(rows, harvests, observations) if observations else rows,
        np.repeat(np.arange(len(sizes)), sizes),
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
