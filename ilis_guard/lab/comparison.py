"""Two policies on the same recorded requests: figures with bootstrap intervals, and what changes between them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float64

from ilis_guard.lab.metrics import INTERVAL, RESAMPLES
from ilis_guard.policy.recordings import UNKNOWN, Recorded, RecordedTier
from ilis_guard.policy.simulation import OUTCOMES, Outcomes
from ilis_guard.types import Action

MOST_DRAWN: Final = 50_000
"""Requests in a resample. Where there are more, as many are drawn from all of them, and the spread that they show is
scaled by the square root of their share (the m-out-of-n bootstrap), which takes a fraction of the time."""
SLOW: Final = 0.95
"""The quantile of the seconds that is told beside their mean."""
CURVE_POINTS: Final = 200
COVERAGE: Final = "coverage"
ERROR: Final = "error of answered"

Progress = Callable[[], None]
"""Told of each resample."""
Values = Float64[np.ndarray, " requests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of both policies. None where it can't be told: nothing was answered, or it wasn't recorded."""

    name: str
    is_share: bool
    """Whether it is shown as a percentage."""
    old: Estimate | None
    new: Estimate | None
    difference: Estimate | None
    """New less old, on the same resamples. Of a mean: over the requests on which it is known for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A request that ends otherwise under the new policy."""

    id: str
    old: Action | None
    """None for undecided."""
    new: Action | None
    old_rule: str | None
    new_rule: str | None
    old_tier: str
    new_tier: str
    old_wrong: bool | None
    """Whether what was answered is wrong; None where nothing was, or nobody knows."""
    new_wrong: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A tier's risk-coverage curve: if it answered the least uncertain share of all requests, how many were wrong."""

    tier: str
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


Point = tuple[Estimate, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that a simulation tells of two policies."""

    requests: int
    rows: tuple[Row, ...]
    became: Mapping[tuple[Action | None, Action | None], int]
    """Requests by what became of them under the old and under the new policy."""
    undecided: tuple[Mapping[str, int], Mapping[str, int]]
    """Why nothing was decided, by the old and by the new policy, and for how many requests."""
    unlabelled: tuple[int, int]
    """Requests that the old and the new policy answer, and of whose answers nobody knows whether they are wrong."""
    curves: tuple[Curve, ...]

    def row(self, name: str) -> Row:
        """A figure by its name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def changed(self) -> int:
        """How many requests end otherwise."""
        return sum(count for (old, new), count in self.became.items() if old != new)

    @property
    def points(self) -> tuple[Point | None, Point | None]:
        """Coverage and error of answered of the old and of the new policy; None where nobody knows an error."""
        coverage, error = self.row(COVERAGE), self.row(ERROR)
        return _point(coverage.old, error.old), _point(coverage.new, error.new)


def compare(
    recorded: Recorded,
    old: Outcomes,
    new: Outcomes,
    *,
    requests_per_hour: float,
    seed: int = 0,
    progress: Progress = lambda: None,
) -> Comparison:
    """Compare what two policies made of the same requests.

    Args:
        recorded: the requests.
        old: what the old policy made of them.
        new: what the new one made of them.
        requests_per_hour: the traffic that reviews are counted for.
        seed: of the resamples.
        progress: told after each of `RESAMPLES`.
    """
    figures = _figures(requests_per_hour)
    spreads = _spreads(figures, old, new, seed, progress)
    return Comparison(
        requests=len(recorded),
        rows=tuple(_row(figure, old, new, spread) for figure, spread in zip(figures, spreads, strict=True)),
        became=_became(old, new),
        undecided=(_why(old), _why(new)),
        unlabelled=(_unlabelled(old), _unlabelled(new)),
        curves=tuple(curve for tier in recorded.tiers if (curve := _curve(tier)) is not None),
    )


def changes(recorded: Recorded, old: Outcomes, new: Outcomes) -> Iterator[Change]:
    """The requests whose action changes, in order."""
    for row in np.flatnonzero(old.action != new.action).tolist():
        yield Change(
            id=recorded.ids[row],
            old=OUTCOMES[old.action[row]],
            new=OUTCOMES[new.action[row]],
            old_rule=old.rule[row],
            new_rule=new.rule[row],
            old_tier=recorded.tiers[old.tier[row]].name,
            new_tier=recorded.tiers[new.tier[row]].name,
            old_wrong=_outcome(old.wrong[row]),
            new_wrong=_outcome(new.wrong[row]),
        )


def _point(coverage: Estimate | None, error: Estimate | None) -> Point | None:
    return None if coverage is None or error is None else (coverage, error)


def _outcome(wrong: float) -> bool | None:
    return None if math.isnan(wrong) else bool(wrong)


Reduce = Callable[[Values], float]
"""From the values of some requests, none of them missing, to a figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figure:
    """How a figure comes from outcomes."""

    name: str
    is_share: bool
    of: Callable[[Outcomes], Values]
    """A value for each request; NaN where the figure leaves it out."""
    reduce: Reduce
    is_paired: bool
    """Whether its difference is over the requests that have a value under both policies; otherwise each policy's figure
    is over its own, as that of the error of what it answers must be."""


def _figures(requests_per_hour: float) -> tuple[_Figure, ...]:
    def became(action: Action | None) -> Callable[[Outcomes], Values]:
        return lambda outcomes: outcomes.are(action).astype(np.float64)

    def reviews(outcomes: Outcomes) -> Values:
        return np.asarray(requests_per_hour * (outcomes.are(Action.ESCALATE) | outcomes.audited))

    def retries(outcomes: Outcomes) -> Values:
        return np.where(outcomes.are(None), np.nan, outcomes.attempts - 1)

    def seconds(outcomes: Outcomes) -> Values:
        return outcomes.seconds

    share = partial(_Figure, is_share=True, reduce=_mean, is_paired=False)
    amount = partial(_Figure, is_share=False, reduce=_mean, is_paired=True)
    return (
        share(name=COVERAGE, of=became(Action.ANSWER)),
        share(name=ERROR, of=lambda outcomes: outcomes.wrong),
        share(name="abstained", of=became(Action.ABSTAIN)),
        share(name="escalated", of=became(Action.ESCALATE)),
        share(name="undecided", of=became(None)),
        amount(name=f"reviews per hour of {requests_per_hour:g} requests", of=reviews),
        amount(name="retries per request", of=retries),
        amount(name="cost per request", of=lambda outcomes: outcomes.cost),
        amount(name="mean seconds", of=seconds),
        amount(name="seconds at most, of 95 %", of=seconds, reduce=_slow),
    )


def _mean(values: Values) -> float:
    return float(values.mean())


def _slow(values: Values) -> float:
    """The nearest rank."""
    rank = math.ceil(SLOW * len(values)) - 1
    return float(np.partition(values, rank)[rank])


def _three(figure: _Figure, old: Values, new: Values) -> tuple[float, float, float]:
    """The figure of the old policy, of the new one, and their difference; NaN where it has no value."""
    of_old, of_new = _reduced(figure, old), _reduced(figure, new)
    if not figure.is_paired:
        return of_old, of_new, of_new - of_old
    both = ~(np.isnan(old) | np.isnan(new))
    if both.all():
        return of_old, of_new, of_new - of_old
    return of_old, of_new, _reduced(figure, new[both]) - _reduced(figure, old[both])


def _reduced(figure: _Figure, values: Values) -> float:
    known = values[~np.isnan(values)]
    return figure.reduce(known) if len(known) else math.nan


def _spreads(
    figures: Sequence[_Figure], old: Outcomes, new: Outcomes, seed: int, progress: Progress
) -> list[Float64[np.ndarray, "resamples three"]]:
    """Each figure on resamples: both policies see the same requests of each."""
    random = np.random.default_rng(seed)
    requests = len(old.action)
    drawn = min(requests, MOST_DRAWN)
    values = [(figure.of(old), figure.of(new)) for figure in figures]
    spreads = np.empty((len(figures), RESAMPLES, 3))
    for resample in range(RESAMPLES):
        rows = random.integers(requests, size=drawn)
        for number, (figure, (of_old, of_new)) in enumerate(zip(figures, values, strict=True)):
            spreads[number, resample] = _three(figure, of_old[rows], of_new[rows])
        progress()
    return list(spreads)


def _row(figure: _Figure, old: Outcomes, new: Outcomes, spread: Float64[np.ndarray, "resamples three"]) -> Row:
    scale = math.sqrt(min(1.0, MOST_DRAWN / len(old.action)))
    values = _three(figure, figure.of(old), figure.of(new))
    of_old, of_new, difference = (_estimate(value, spread[:, column], scale) for column, value in enumerate(values))
    return Row(name=figure.name, is_share=figure.is_share, old=of_old, new=of_new, difference=difference)


def _estimate(value: float, spread: Float64[np.ndarray, " resamples"], scale: float) -> Estimate | None:
    known = spread[~np.isnan(spread)]
    if math.isnan(value) or not len(known):
        return None
    low, high = (value + scale * (np.percentile(known, INTERVAL) - value)).tolist()
    return Estimate(value=value, low=low, high=high)


def _became(old: Outcomes, new: Outcomes) -> Mapping[tuple[Action | None, Action | None], int]:
    pairs = old.action.astype(np.int64) * len(OUTCOMES) + new.action
    counts = np.bincount(pairs, minlength=len(OUTCOMES) ** 2).tolist()
    return {
        (OUTCOMES[pair // len(OUTCOMES)], OUTCOMES[pair % len(OUTCOMES)]): count
        for pair, count in enumerate(counts)
        if count
    }


def _why(outcomes: Outcomes) -> Mapping[str, int]:
    counts = np.bincount(outcomes.undecided.codes, minlength=len(outcomes.undecided.values)).tolist()
    return {why: count for why, count in zip(outcomes.undecided.values, counts, strict=True) if why and count}


def _unlabelled(outcomes: Outcomes) -> int:
    return int((outcomes.are(Action.ANSWER) & np.isnan(outcomes.wrong)).sum())


def _curve(tier: RecordedTier) -> Curve | None:
    """Over the requests of which it is known whether the tier's answer is wrong; None where there is none."""
    rows = np.flatnonzero(~np.isnan(tier.uncertainty) & (tier.wrong != UNKNOWN))
    if not len(rows):
        return None
    labelled = int((tier.wrong != UNKNOWN).sum())
    order = rows[np.argsort(tier.uncertainty[rows], kind="stable")]
    risk = np.cumsum(tier.wrong[order]) / np.arange(1, len(order) + 1)
    # Answers of one uncertainty are answered together or not at all.
    last = np.flatnonzero(np.diff(tier.uncertainty[order], append=np.inf) > 0)
    shown = last[np.unique(np.linspace(0, len(last) - 1, CURVE_POINTS).round().astype(np.int64))]
    return Curve(
        tier=tier.name,
        coverage=tuple(((shown + 1) / labelled).tolist()),
        risk=tuple(risk[shown].tolist()),
    )
