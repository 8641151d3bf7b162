"""Trials: methods fitted to some rows and tested on others, by protocol."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit

from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.baselines.estimator import Estimator, Method, Ranker
from ilis_guard.lab.fit import calibrate
from ilis_guard.lab.grouping import Groups, answer_groups
from ilis_guard.lab.splits import split
from ilis_guard.scoring.bundle import Split
from ilis_guard.types import Fingerprint

ProtocolName = Literal[
    "in-distribution",
    "one-to-one",
    "leave-one-set-out",
    "refitted",
    "refitted-one-to-one",
    "applied",
    "applied-one-to-one",
]
"""Trained and tested on one set; trained on one and tested on another; trained on all others; and tested at the other
precision, on the same set or on another one: trained there, or at the first precision."""
OTHERS: Final = "all others"
"""The name of the training rows where a set is left out."""

Scores = Float64[np.ndarray, " rows"]
Numbers = Int64[np.ndarray, " taken"]
"""Indices of rows."""
Progress = Callable[[], None]
"""Called after each fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One fit of a method, with its scores of the test rows of one set."""

    protocol: ProtocolName
    method: str
    trained_on: str
    tested_on: str
    seed: int
    of: int
    """Groups of dependent answers of the tested set, with those that aren't tested."""
    places: Int64[np.ndarray, " rows"]
    """The test rows' places among the rows of their set: a question has the same place for all methods."""
    groups: Int64[np.ndarray, " rows"]
    """The places of the test rows' groups among the groups of their set."""
    wrong: Bool[np.ndarray, " rows"]
    raw: Scores
    probability: Scores
    """Calibrated on rows of the sets trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _SplitRows:
    """Answers with their sets and splits."""

    rows: Answers
    groups: Groups
    names: Sequence[str]
    splits: Mapping[Split, Mask]
    seed: int

    def of(self, part: Split, names: Sequence[str]) -> Mask:
        return self.splits[part] & np.isin(self.rows.datasets, names)


def trials(
    rows: Answers, methods: Sequence[Method], *, seeds: int, applied: Answers | None, progress: Progress
) -> Iterator[Trial]:
    """Run all trials of all protocols.

    Each fit on one set is tested on all sets, for each seed. Leaving a set out costs as many rows as all others
    together have and is done for the first seed only; its test rows are all of the set, of which nothing was seen.

    Args:
        rows: of the sets that count.
        methods: all get the same rows, splits and seeds.
        seeds: each splits the rows again, and seeds the methods.
        applied: answers to the same questions at another precision, of the sets that count there too.
        progress: called after each of `count_fits` fits.

    Raises:
        FitError: a method can't be fitted, or a score isn't finite.
    """
    names = sorted(set(rows.datasets.tolist()))
    groups = answer_groups(rows)
    for seed in range(seeds):
        splits = split(rows.datasets, seed, groups)
        split_rows = _SplitRows(rows=rows, groups=groups, names=names, splits=splits, seed=seed)
        _check_classes(split_rows)
        other = None if applied is None else _same_questions(split_rows, applied)
        for name in names:
            other_test = None if other is None or name not in other.names else _OtherPrecision.of(other, [name])
            yield from _one_set(split_rows, other_test, name, methods, progress)
            if other_test is not None:
                yield from _refitted(other_test, name, methods, progress)
        if seed == 0 and len(names) > 1:
            for name in names:
                yield from _left_out(split_rows, name, methods, progress)


class Transfers:
    """Fits methods to one set at a time and tests them on every set, at both precisions: the matrix of sets.

    Args:
        rows: of the sets that count.
        seed: of the split and the methods.
        applied: answers to the same questions at another precision, of the sets that count there too.

    Raises:
        FitError: a part of a set holds one class only.
    """

    def __init__(self, rows: Answers, *, seed: int, applied: Answers | None = None) -> None:
        names = sorted(set(rows.datasets.tolist()))
        groups = answer_groups(rows)
        self._split_rows = _SplitRows(
            rows=rows, groups=groups, names=names, splits=split(rows.datasets, seed, groups), seed=seed
        )
        _check_classes(self._split_rows)
        other = None if applied is None else _same_questions(self._split_rows, applied)
        self._other_test = None if other is None else _OtherPrecision.of(other, other.names)

    def trained_on(self, name: str, methods: Sequence[Method], progress: Progress) -> Iterator[Trial]:
        """Train on one set, and at the other precision too if it counts there.

        Args:
            name: of the set.
            methods: all get the same rows, splits and seeds.
            progress: called after each fit.

        Raises:
            FitError: a method can't be fitted, or a score isn't finite.
        """
        yield from _one_set(self._split_rows, self._other_test, name, methods, progress)
        if self._other_test is not None and name in self._other_test.names:
            yield from _refitted(self._other_test, name, methods, progress)


def count_fits(*, sets: int, applied_sets: int, methods: int, seeds: int) -> int:
    """Count the fits of `trials`."""
    left_out = sets if sets > 1 else 0
    return methods * (seeds * (sets + applied_sets) + left_out)


def check_pair(first: Fingerprint, other: Fingerprint) -> None:
    """Check that two models are one, at two precisions.

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
    split_rows: _SplitRows,
    other_test: "_OtherPrecision | None",
    name: str,
    methods: Sequence[Method],
    progress: Progress,
) -> Iterator[Trial]:
    """Trained on one set; tested on each, and at the other precision on those given."""
    held = np.flatnonzero(split_rows.of("calibration", [name]) | split_rows.splits["test"])
    rows = split_rows.rows.take(held)
    for method in methods:
        fitted = _fit(method, split_rows, [name])
        calibrated = _CalibratedMethod.of(method, fitted, split_rows, [name], held, rows)
        for tested in split_rows.names:
            test = np.flatnonzero(split_rows.of("test", [tested]))
            protocol: ProtocolName = "in-distribution" if tested == name else "one-to-one"
            yield calibrated.trial(protocol, name, split_rows, tested, test)
        if other_test is not None:
            there = replace(calibrated, raw=other_test.scores(method, fitted))
            for tested in other_test.names:
                protocol = "applied" if tested == name else "applied-one-to-one"
                yield there.trial(protocol, name, other_test.split_rows, tested, other_test.test_of(tested))
        progress()


@dataclass(frozen=True, slots=True, kw_only=True)
class _OtherPrecision:
    """Some sets' test rows at the other precision."""

    split_rows: _SplitRows
    names: Sequence[str]
    test: Numbers
    rows: Answers

    @classmethod
    def of(cls, other: _SplitRows, names: Sequence[str]) -> "_OtherPrecision":
        test = np.flatnonzero(other.of("test", names))
        return cls(split_rows=other, names=names, test=test, rows=other.rows.take(test))

    def test_of(self, name: str) -> Numbers:
        """The test rows of one of the sets."""
        return np.flatnonzero(self.split_rows.of("test", [name]))

    def scores(self, method: Method, fitted: Estimator | Ranker) -> Scores:
        """A method's scores of these rows; NaN of others."""
        raw = np.full(len(self.split_rows.rows), np.nan)
        raw[self.test] = _scores(method, fitted, self.rows)
        return raw


def _refitted(other_test: _OtherPrecision, name: str, methods: Sequence[Method], progress: Progress) -> Iterator[Trial]:
    """Trained on one set at the other precision, and tested there on those given."""
    other = other_test.split_rows
    held = np.flatnonzero(other.of("calibration", [name]) | other.of("test", other_test.names))
    rows = other.rows.take(held)
    for method in methods:
        calibrated = _CalibratedMethod.of(method, _fit(method, other, [name]), other, [name], held, rows)
        for tested in other_test.names:
            protocol: ProtocolName = "refitted" if tested == name else "refitted-one-to-one"
            yield calibrated.trial(protocol, name, other, tested, other_test.test_of(tested))
        progress()


def _left_out(split_rows: _SplitRows, name: str, methods: Sequence[Method], progress: Progress) -> Iterator[Trial]:
    """Trained on all other sets, and tested on every row of this one."""
    others = [one for one in split_rows.names if one != name]
    of_set = split_rows.rows.datasets == name
    # A question of the set that another set repeats was never left out.
    unrelated = ~np.isin(split_rows.groups, split_rows.groups[of_set])
    known = replace(split_rows, splits={part: mask & unrelated for part, mask in split_rows.splits.items()})
    held = np.flatnonzero(known.of("calibration", others) | of_set)
    rows = known.rows.take(held)
    for method in methods:
        calibrated = _CalibratedMethod.of(method, _fit(method, known, others), known, others, held, rows)
        yield calibrated.trial("leave-one-set-out", OTHERS, known, name, np.flatnonzero(of_set))
        progress()


@dataclass(frozen=True, slots=True, kw_only=True)
class _CalibratedMethod:
    """A fitted method with its calibration, and its scores of the held rows; NaN of others."""

    method: str
    seed: int
    raw: Scores
    calibrated: Callable[[Scores], Scores]

    @classmethod
    def of(
        cls,
        method: Method,
        fitted: Estimator | Ranker,
        split_rows: _SplitRows,
        trained: Sequence[str],
        held: Numbers,
        rows: Answers,
    ) -> "_CalibratedMethod":
        """Score the held rows, and calibrate on the calibration rows among them."""
        raw = np.full(len(split_rows.rows), np.nan)
        raw[held] = _scores(method, fitted, rows)
        calibration = split_rows.of("calibration", trained)
        calibrated = _calibration(
            raw[calibration], split_rows.rows.wrong[calibration], is_probability=isinstance(fitted, Estimator)
        )
        return cls(method=method.name, seed=split_rows.seed, raw=raw, calibrated=calibrated)

    def trial(self, protocol: ProtocolName, trained: str, where: _SplitRows, tested: str, test: Numbers) -> Trial:
        """The trial on a set's test rows."""
        of_set = np.flatnonzero(where.rows.datasets == tested)
        groups = np.unique(where.groups[of_set])
        return Trial(
            protocol=protocol,
            method=self.method,
            trained_on=trained,
            tested_on=tested,
            seed=self.seed,
            of=len(groups),
            places=np.searchsorted(of_set, test),
            groups=np.searchsorted(groups, where.groups[test]),
            wrong=where.rows.wrong[test],
            raw=self.raw[test],
            probability=self.calibrated(self.raw[test]),
        )


def _calibration(raw: Scores, wrong: Mask, *, is_probability: bool) -> Callable[[Scores], Scores]:
    """Fit beta calibration, the same for all methods.

    It needs scores from 0 to 1. Scores of any range are standardised by the calibration rows and passed through the
    logistic function, which keeps their order.

    A score that ranks the calibration rows the wrong way round gives the base rate for all rows.
    """
    centre, spread = float(raw.mean()), float(raw.std()) or 1.0

    def to_probability(scores: Scores) -> Scores:
        within: Scores = scores if is_probability else expit((scores - centre) / spread)
        return within

    try:
        known = calibrate(to_probability(raw), wrong)
    except FitError:
        return lambda scores: np.full(len(scores), wrong.mean())
    return lambda scores: known.apply(to_probability(scores))


def _fit(method: Method, split_rows: _SplitRows, names: Sequence[str]) -> Estimator | Ranker:
    try:
        return method.fit(
            split_rows.rows, split_rows.of("train", names), split_rows.of("validation", names), split_rows.seed
        )
    except FitError as error:
        raise FitError(f"{method.name!r} can't be fitted to {', '.join(names)!r:.80}: {error}") from error


def _scores(method: Method, fitted: Estimator | Ranker, rows: Answers) -> Scores:
    raw = fitted.predict_proba(rows) if isinstance(fitted, Estimator) else fitted.decision_function(rows)
    scores = np.asarray(raw, dtype=np.float64)
    if scores.shape != (len(rows),) or not np.isfinite(scores).all():
        raise FitError(
            f"{method.name!r} must give {len(rows)} finite scores, got the shape {scores.shape!r}, "
            f"{int((~np.isfinite(scores)).sum())} of them not finite"
        )
    return scores


def _check_classes(split_rows: _SplitRows) -> None:
    """Refuse a split of one class: nothing can be fitted, calibrated or measured there."""
    for name in split_rows.names:
        for part in split_rows.splits:
            wrong = split_rows.rows.wrong[split_rows.of(part, [name])]
            if wrong.all() or not wrong.any():
                raise FitError(
                    f"with the seed {split_rows.seed} the {part} rows of {name!r:.60} are all "
                    f"{'wrong' if wrong.any() else 'right'} ({len(wrong)} rows): harvest more questions of it"
                )


def _same_questions(split_rows: _SplitRows, applied: Answers) -> _SplitRows:
    """The other precision's answers to the same questions, each in the split of its question."""
    place = {id_: row for row, id_ in enumerate(split_rows.rows.ids.tolist())}
    known = np.array([place.get(id_, -1) for id_ in applied.ids.tolist()])
    splits = {part: (known >= 0) & mask[known] for part, mask in split_rows.splits.items()}
    names = sorted(set(applied.datasets.tolist()))
    other = _SplitRows(rows=applied, groups=answer_groups(applied), names=names, splits=splits, seed=split_rows.seed)
    _check_classes(other)
    return other
