"""Trials: methods that are fitted to some rows and say how uncertain they are of others, by protocol."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit

from ilis_guard.errors import FitError
from ilis_guard.lab.baselines.methods import Fitted, Method
from ilis_guard.lab.fit import calibrate, split
from ilis_guard.lab.rows import Mask, Rows
from ilis_guard.scoring.bundle import Split
from ilis_guard.types import Fingerprint

ProtocolName = Literal["in-distribution", "one-to-one", "leave-one-set-out", "refitted", "applied"]
"""Trained and tested on one set; trained on one and tested on another; trained on all others; and tested at the other
precision, on one set: trained there, or at the first precision."""
OTHERS: Final = "all others"
"""What is trained on where a set is left out."""

Scores = Float64[np.ndarray, " rows"]
Numbers = Int64[np.ndarray, " taken"]
"""Of rows."""
Progress = Callable[[], None]
"""Told of each fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one fit of a method said of the test rows of one set."""

    protocol: ProtocolName
    method: str
    trained_on: str
    tested_on: str
    seed: int
    of: int
    """Rows of the set that is tested on, with those that aren't tested."""
    places: Int64[np.ndarray, " rows"]
    """Of the test rows, among the rows of their set: the same question has the same place for all methods."""
    wrong: Bool[np.ndarray, " rows"]
    raw: Scores
    probability: Scores
    """Calibrated on rows of what was trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """Rows, the sets among them, and which rows serve what."""

    rows: Rows
    names: Sequence[str]
    splits: Mapping[Split, Mask]
    seed: int

    def of(self, part: Split, names: Sequence[str]) -> Mask:
        return self.splits[part] & np.isin(self.rows.datasets, names)


def trials(
    rows: Rows, methods: Sequence[Method], *, seeds: int, applied: Rows | None, progress: Progress
) -> Iterator[Trial]:
    """All trials of all protocols.

    Each fit on one set is tested on all sets, for each seed. Leaving a set out costs as many rows as all others
    together have and is done for the first seed only; its test rows are all of the set, of which nothing was seen.

    Args:
        rows: of the sets that count.
        methods: all get the same rows, splits and seeds.
        seeds: each deals the rows out anew, and is the methods' own.
        applied: answers to the same questions at another precision, of the sets that count there too.
        progress: told of each of `count_fits` fits.

    Raises:
        FitError: a method can't be fitted, or a score isn't a number.
    """
    names = sorted(set(rows.datasets.tolist()))
    for seed in range(seeds):
        ground = _Ground(rows=rows, names=names, splits=split(tuple(rows.datasets.tolist()), seed), seed=seed)
        _check_classes(ground)
        other = None if applied is None else _same_questions(ground, applied)
        for name in names:
            elsewhere = None if other is None or name not in other.names else _Elsewhere.of(other, name)
            yield from _one_set(ground, elsewhere, name, methods, progress)
            if elsewhere is not None:
                yield from _refitted(elsewhere.ground, name, methods, progress)
        if seed == 0 and len(names) > 1:
            for name in names:
                yield from _left_out(ground, name, methods, progress)


def count_fits(*, sets: int, applied_sets: int, methods: int, seeds: int) -> int:
    """How many fits `trials` makes."""
    left_out = sets if sets > 1 else 0
    return methods * (seeds * (sets + applied_sets) + left_out)


def check_pair(first: Fingerprint, other: Fingerprint) -> None:
    """See that two models are one, at two precisions.

    Raises:
        FitError: they differ in something else, or in nothing.
    """
    differing = set(first.differences(other))
    if "precision" not in differing or differing - {"precision", "weights", "dtype"}:
        what = ", ".join(sorted(differing)) or "nothing"
        raise FitError(
            f"precision transfer needs harvests of one model at two precisions, and these differ in {what}; harvest "
            "both with tiers that differ in `precision` only"
        )


def _one_set(
    ground: _Ground, elsewhere: "_Elsewhere | None", name: str, methods: Sequence[Method], progress: Progress
) -> Iterator[Trial]:
    """Trained on one set; tested on each, and on itself at the other precision."""
    held = np.flatnonzero(ground.of("calibration", [name]) | ground.splits["test"])
    rows = ground.rows.take(held)
    for method in methods:
        fitted = _fit(method, ground, [name])
        judge = _Judge.of(method, fitted, ground, [name], held, rows)
        for tested in ground.names:
            test = np.flatnonzero(ground.of("test", [tested]))
            protocol: ProtocolName = "in-distribution" if tested == name else "one-to-one"
            yield judge.trial(protocol, name, ground, tested, test)
        if elsewhere is not None:
            there = replace(judge, raw=elsewhere.asked(method, fitted))
            yield there.trial("applied", name, elsewhere.ground, name, elsewhere.test)
        progress()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Elsewhere:
    """One set's test rows at the other precision."""

    ground: _Ground
    test: Numbers
    rows: Rows

    @classmethod
    def of(cls, other: _Ground, name: str) -> "_Elsewhere":
        test = np.flatnonzero(other.of("test", [name]))
        return cls(ground=other, test=test, rows=other.rows.take(test))

    def asked(self, method: Method, fitted: Fitted) -> Scores:
        """What a method says of them; of other rows, nothing."""
        raw = np.full(len(self.ground.rows), np.nan)
        raw[self.test] = _scores(method, fitted, self.rows)
        return raw


def _refitted(other: _Ground, name: str, methods: Sequence[Method], progress: Progress) -> Iterator[Trial]:
    """Trained and tested on one set at the other precision."""
    held = np.flatnonzero(other.of("calibration", [name]) | other.of("test", [name]))
    rows = other.rows.take(held)
    test = np.flatnonzero(other.of("test", [name]))
    for method in methods:
        judge = _Judge.of(method, _fit(method, other, [name]), other, [name], held, rows)
        yield judge.trial("refitted", name, other, name, test)
        progress()


def _left_out(ground: _Ground, name: str, methods: Sequence[Method], progress: Progress) -> Iterator[Trial]:
    """Trained on all other sets, and tested on every row of this one."""
    others = [one for one in ground.names if one != name]
    of_set = ground.rows.datasets == name
    held = np.flatnonzero(ground.of("calibration", others) | of_set)
    rows = ground.rows.take(held)
    for method in methods:
        judge = _Judge.of(method, _fit(method, ground, others), ground, others, held, rows)
        yield judge.trial("leave-one-set-out", OTHERS, ground, name, np.flatnonzero(of_set))
        progress()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """A fitted method that was calibrated, and what it said of rows; of rows it wasn't asked about, nothing."""

    method: str
    seed: int
    raw: Scores
    calibrated: Callable[[Scores], Scores]

    @classmethod
    def of(
        cls,
        method: Method,
        fitted: Fitted,
        ground: _Ground,
        trained: Sequence[str],
        held: Numbers,
        rows: Rows,
    ) -> "_Judge":
        """Ask of the held rows, and calibrate on those of them that serve for that."""
        raw = np.full(len(ground.rows), np.nan)
        raw[held] = _scores(method, fitted, rows)
        calibration = ground.of("calibration", trained)
        calibrated = _calibration(
            raw[calibration], ground.rows.wrong[calibration], learns=method.kind != "unsupervised"
        )
        return cls(method=method.name, seed=ground.seed, raw=raw, calibrated=calibrated)

    def trial(self, protocol: ProtocolName, trained: str, where: _Ground, tested: str, test: Numbers) -> Trial:
        """What it said of a set's test rows."""
        of_set = np.flatnonzero(where.rows.datasets == tested)
        return Trial(
            protocol=protocol,
            method=self.method,
            trained_on=trained,
            tested_on=tested,
            seed=self.seed,
            of=len(of_set),
            places=np.searchsorted(of_set, test),
            wrong=where.rows.wrong[test],
            raw=self.raw[test],
            probability=self.calibrated(self.raw[test]),
        )


def _calibration(raw: Scores, wrong: Mask, *, learns: bool) -> Callable[[Scores], Scores]:
    """Beta calibration, the same for all methods.

    It is made for scores from 0 to 1, such as methods give that learn from labels. Those that can be any number first
    become such: how many standard deviations they lie from the calibration rows' mean, through the logistic function,
    which keeps their order.

    A score that ranks the calibration rows the wrong way round says nothing that calibration could keep: the base rate
    is all that is left.
    """
    centre, spread = float(raw.mean()), float(raw.std()) or 1.0

    def inside(scores: Scores) -> Scores:
        within: Scores = scores if learns else expit((scores - centre) / spread)
        return within

    try:
        known = calibrate(inside(raw), wrong)
    except FitError:
        return lambda scores: np.full(len(scores), wrong.mean())
    return lambda scores: known.apply(inside(scores))


def _fit(method: Method, ground: _Ground, names: Sequence[str]) -> Fitted:
    try:
        return method.fit(ground.rows, ground.of("train", names), ground.of("validation", names), ground.seed)
    except FitError as error:
        raise FitError(f"{method.name!r} can't be fitted to {', '.join(names)!r:.80}: {error}") from error


def _scores(method: Method, fitted: Fitted, rows: Rows) -> Scores:
    scores = np.asarray(fitted.predict(rows), dtype=np.float64)
    if scores.shape != (len(rows),) or not np.isfinite(scores).all():
        raise FitError(
            f"{method.name!r} must give {len(rows)} finite scores, got the shape {scores.shape!r}, "
            f"{int((~np.isfinite(scores)).sum())} of them not finite"
        )
    return scores


def _check_classes(ground: _Ground) -> None:
    """With one class only nothing is learned, calibrated or told."""
    for name in ground.names:
        for part in ground.splits:
            wrong = ground.rows.wrong[ground.of(part, [name])]
            if wrong.all() or not wrong.any():
                raise FitError(
                    f"with the seed {ground.seed} the {part} rows of {name!r:.60} are all "
                    f"{'wrong' if wrong.any() else 'right'} ({len(wrong)} rows): harvest more questions of it"
                )


def _same_questions(ground: _Ground, applied: Rows) -> _Ground:
    """The other precision's answers to the same questions, each in the split that its question is in."""
    place = {id_: row for row, id_ in enumerate(ground.rows.ids.tolist())}
    known = np.array([place.get(id_, -1) for id_ in applied.ids.tolist()])
    splits = {part: (known >= 0) & mask[known] for part, mask in ground.splits.items()}
    names = sorted(set(applied.datasets.tolist()))
    other = _Ground(rows=applied, names=names, splits=splits, seed=ground.seed)
    _check_classes(other)
    return other
