"""Compare two policies on the same requests: measures with bootstrap intervals, and the requests that change."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float64

from ilis_guard.lab.metrics import INTERVAL, RESAMPLES, Groups, GroupSampler
from ilis_guard.policy.recordings import UNKNOWN, Recording, TierRecording
from ilis_guard.policy.simulation import OUTCOMES, Outcomes
from ilis_guard.types import Action

MOST_DRAWN: Final = 50_000
"""Groups of requests in a resample, at most. Of more this many are drawn, and the spread is scaled by the square root
of their share (the m-out-of-n bootstrap), which takes a fraction of the time."""
SLOW_QUANTILE: Final = 0.95
"""The quantile of the seconds that is reported beside their mean."""
CURVE_POINTS: Final = 200
COVERAGE: Final = "coverage"
ERROR: Final = "error of answered"

Progress = Callable[[], None]
"""Called after each resample."""
Values = Float64[np.ndarray, " requests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measure of both policies. None where it isn't known: nothing was answered, or it wasn't recorded."""

    name: str
    is_share: bool
    """Whether it is a share, shown as a percentage."""
    old: Estimate | None
    new: Estimate | None
    difference: Estimate | None
    """New less old, on the same resamples. Of a mean: over the requests for which both are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A request with another action under the new policy."""

    id: str
    old: Action | None
    """None for undecided."""
    new: Action | None
    old_rule: str | None
    new_rule: str | None
    old_tier: str
    new_tier: str
    old_wrong: bool | None
    """Whether the given answer is wrong; None where nothing was answered, or it isn't known."""
    new_wrong: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A tier's risk-coverage curve: the error if it answered only its least uncertain share of all requests."""

    tier: str
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


Point = tuple[Estimate, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two policies compared."""

    requests: int
    groups: int
    """Of requests that depend on one another; the intervals are over them."""
    measures: tuple[Measure, ...]
    transitions: Mapping[tuple[Action | None, Action | None], int]
    """Requests by their action under the old and under the new policy; None for undecided."""
    undecided: tuple[Mapping[str, int], Mapping[str, int]]
    """Requests that the old and the new policy leave undecided, by the reason."""
    unlabelled: tuple[int, int]
    """Requests that the old and the new policy answer where it isn't known whether the answer is wrong."""
    curves: tuple[Curve, ...]

    def measure(self, name: str) -> Measure:
        """Return a measure by its name."""
        return next(one for one in self.measures if one.name == name)

    @property
    def changed(self) -> int:
        """How many requests have another action."""
        return sum(count for (old, new), count in self.transitions.items() if old != new)

    @property
    def points(self) -> tuple[Point | None, Point | None]:
        """Coverage and error of answered of the old and of the new policy; None where an error isn't known."""
        coverage, error = self.measure(COVERAGE), self.measure(ERROR)
        return _point(coverage.old, error.old), _point(coverage.new, error.new)


def compare(
    recording: Recording,
    old: Outcomes,
    new: Outcomes,
    *,
    requests_per_hour: float,
    groups: Groups | None = None,
    seed: int = 0,
    progress: Progress = lambda: None,
) -> Comparison:
    """Compare the outcomes of two policies on the same requests.

    Args:
        recording: the requests.
        old: the old policy's outcomes.
        new: the new policy's outcomes.
        requests_per_hour: the traffic for which reviews are counted.
        groups: requests with the same number depend on one another; None where none does.
        seed: of the resamples.
        progress: called after each of `RESAMPLES`.
    """
    formulas = _formulas(requests_per_hour)
    sampler = GroupSampler.of(np.arange(len(recording)) if groups is None else groups)
    spreads = _spreads(formulas, old, new, sampler, seed, progress)
    scale = math.sqrt(min(1.0, MOST_DRAWN / len(sampler)))
    return Comparison(
        requests=len(recording),
        groups=len(sampler),
        measures=tuple(
            _measure(formula, old, new, spread, scale) for formula, spread in zip(formulas, spreads, strict=True)
        ),
        transitions=_transitions(old, new),
        undecided=(_undecided(old), _undecided(new)),
        unlabelled=(_unlabelled(old), _unlabelled(new)),
        curves=tuple(curve for tier in recording.tiers if (curve := _curve(tier)) is not None),
    )


def changes(recording: Recording, old: Outcomes, new: Outcomes) -> Iterator[Change]:
    """Iterate over the requests whose action changes, in order."""
    for row in np.flatnonzero(old.action != new.action).tolist():
        yield Change(
            id=recording.ids[row],
            old=OUTCOMES[old.action[row]],
            new=OUTCOMES[new.action[row]],
            old_rule=old.rule[row],
            new_rule=new.rule[row],
            old_tier=recording.tiers[old.tier[row]].name,
            new_tier=recording.tiers[new.tier[row]].name,
            old_wrong=_outcome(old.wrong[row]),
            new_wrong=_outcome(new.wrong[row]),
        )


def format_estimate(measure: Measure, value: Estimate | None) -> str:
    """Format as ``61.2 % (59.8 to 62.7)``; a dash where there is no value."""
    if value is None:
        return "-"
    scale, unit = (100, " %") if measure.is_share else (1, "")
    return f"{_short(scale * value.value)}{unit} ({_short(scale * value.low)} to {_short(scale * value.high)})"


def format_difference(measure: Measure) -> str:
    """Format a difference with signs; of shares in percentage points."""
    value, scale = measure.difference, 100 if measure.is_share else 1
    if value is None:
        return "-"
    return f"{_signed(scale * value.value)} ({_signed(scale * value.low)} to {_signed(scale * value.high)})"


def format_wrong(change: Change) -> str:
    """Format whether the given answer is wrong, under whichever policy answers."""
    known = [value for value in (change.old_wrong, change.new_wrong) if value is not None]
    return "" if not known else "yes" if any(known) else "no"


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _signed(value: float) -> str:
    return f"{value:+.1f}" if abs(value) >= 10 else f"{value:+.3g}"


def _point(coverage: Estimate | None, error: Estimate | None) -> Point | None:
    return None if coverage is None or error is None else (coverage, error)


def _outcome(wrong: float) -> bool | None:
    return None if math.isnan(wrong) else bool(wrong)


Reduce = Callable[[Values], float]
"""Reduces the values of some requests, none of them missing, to a measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Formula:
    """How a measure is computed from outcomes."""

    name: str
    is_share: bool
    of: Callable[[Outcomes], Values]
    """A value for each request; NaN where the measure leaves it out."""
    reduce: Reduce
    is_paired: bool
    """Whether its difference is over the requests that have a value under both policies. Otherwise each policy's
    measure is over its own requests, as the error of its answers must be."""


def _formulas(requests_per_hour: float) -> tuple[_Formula, ...]:
    def ended_in(action: Action | None) -> Callable[[Outcomes], Values]:
        return lambda outcomes: outcomes.are(action).astype(np.float64)

    def reviews(outcomes: Outcomes) -> Values:
        return np.asarray(requests_per_hour * (outcomes.are(Action.ESCALATE) | outcomes.audited))

    def retries(outcomes: Outcomes) -> Values:
        return np.where(outcomes.are(None), np.nan, outcomes.attempts - 1)

    def seconds(outcomes: Outcomes) -> Values:
        return outcomes.seconds

    share = partial(_Formula, is_share=True, reduce=_mean, is_paired=False)
    amount = partial(_Formula, is_share=False, reduce=_mean, is_paired=True)
    return (
        share(name=COVERAGE, of=ended_in(Action.ANSWER)),
        share(name=ERROR, of=lambda outcomes: outcomes.wrong),
        share(name="abstained", of=ended_in(Action.ABSTAIN)),
        share(name="escalated", of=ended_in(Action.ESCALATE)),
        share(name="undecided", of=ended_in(None)),
        amount(name=f"reviews per hour of {requests_per_hour:g} requests", of=reviews),
        amount(name="retries per request", of=retries),
        amount(name="cost per request", of=lambda outcomes: outcomes.cost),
        amount(name="mean seconds", of=seconds),
        amount(name="seconds at most, of 95 %", of=seconds, reduce=_slow),
    )


def _mean(values: Values) -> float:
    return float(values.mean())


def _slow(values: Values) -> float:
    """The quantile by the nearest rank."""
    rank = math.ceil(SLOW_QUANTILE * len(values)) - 1
    return float(np.partition(values, rank)[rank])


def _three(formula: _Formula, old: Values, new: Values) -> tuple[float, float, float]:
    """The measure of the old policy, of the new one, and their difference; NaN where there is none."""
    of_old, of_new = _reduced(formula, old), _reduced(formula, new)
    if not formula.is_paired:
        return of_old, of_new, of_new - of_old
    both = ~(np.isnan(old) | np.isnan(new))
    if both.all():
        return of_old, of_new, of_new - of_old
    return of_old, of_new, _reduced(formula, new[both]) - _reduced(formula, old[both])


def _reduced(formula: _Formula, values: Values) -> float:
    known = values[~np.isnan(values)]
    return formula.reduce(known) if len(known) else math.nan


def _spreads(
    formulas: Sequence[_Formula],
    old: Outcomes,
    new: Outcomes,
    sampler: GroupSampler,
    seed: int,
    progress: Progress,
) -> list[Float64[np.ndarray, "resamples three"]]:
    """Each measure on the resamples, which draw the same groups of requests for both policies."""
    random = np.random.default_rng(seed)
    values = [(formula.of(old), formula.of(new)) for formula in formulas]
    spreads = np.empty((len(formulas), RESAMPLES, 3))
    for resample in range(RESAMPLES):
        rows = sampler.draw(random, min(len(sampler), MOST_DRAWN))
        for number, (formula, (of_old, of_new)) in enumerate(zip(formulas, values, strict=True)):
            spreads[number, resample] = _three(formula, of_old[rows], of_new[rows])
        progress()
    return list(spreads)


def _measure(
    formula: _Formula, old: Outcomes, new: Outcomes, spread: Float64[np.ndarray, "resamples three"], scale: float
) -> Measure:
    values = _three(formula, formula.of(old), formula.of(new))
    of_old, of_new, difference = (_estimate(value, spread[:, column], scale) for column, value in enumerate(values))
    return Measure(name=formula.name, is_share=formula.is_share, old=of_old, new=of_new, difference=difference)


def _estimate(value: float, spread: Float64[np.ndarray, " resamples"], scale: float) -> Estimate | None:
    known = spread[~np.isnan(spread)]
    if math.isnan(value) or not len(known):
        return None
    low, high = (value + scale * (np.percentile(known, INTERVAL) - value)).tolist()
    return Estimate(value=value, low=low, high=high)


def _transitions(old: Outcomes, new: Outcomes) -> Mapping[tuple[Action | None, Action | None], int]:
    pairs = old.action.astype(np.int64) * len(OUTCOMES) + new.action
    counts = np.bincount(pairs, minlength=len(OUTCOMES) ** 2).tolist()
    return {
        (OUTCOMES[pair // len(OUTCOMES)], OUTCOMES[pair % len(OUTCOMES)]): count
        for pair, count in enumerate(counts)
        if count
    }


def _undecided(outcomes: Outcomes) -> Mapping[str, int]:
    counts = np.bincount(outcomes.undecided.codes, minlength=len(outcomes.undecided.values)).tolist()
    return {why: count for why, count in zip(outcomes.undecided.values, counts, strict=True) if why and count}


def _unlabelled(outcomes: Outcomes) -> int:
    return int((outcomes.are(Action.ANSWER) & np.isnan(outcomes.wrong)).sum())


def _curve(tier: TierRecording) -> Curve | None:
    """The curve over requests for which it is known whether the tier's answer is wrong; None where there are none."""
    rows = np.flatnonzero(~np.isnan(tier.uncertainty) & (tier.wrong != UNKNOWN))
    if not len(rows):
        return None
    labelled = int((tier.wrong != UNKNOWN).sum())
    order = rows[np.argsort(tier.uncertainty[rows], kind="stable")]
    risk = np.cumsum(tier.wrong[order]) / np.arange(1, len(order) + 1)
    # Requests of equal uncertainty are answered together or not at all.
    last = np.flatnonzero(np.diff(tier.uncertainty[order], append=np.inf) > 0)
    shown = last[np.unique(np.linspace(0, len(last) - 1, CURVE_POINTS).round().astype(np.int64))]
    return Curve(
        tier=tier.name,
        coverage=tuple(((shown + 1) / labelled).tolist()),
        risk=tuple(risk[shown].tolist()),
    )
