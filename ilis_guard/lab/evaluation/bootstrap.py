"""Trials -> metrics with bootstrap intervals over questions and their spread over seeds, and paired differences."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ilis_guard.lab.evaluation.trials import ProtocolName, Scores, Trial
from ilis_guard.lab.metrics import CELLS, EXACT, INTERVAL, METRICS, RESAMPLES, Metric, ScoreCounts, Values

T = TypeVar("T")
K = TypeVar("K", bound=Any)

MEAN: Final = "mean over sets"
POOLED: Final = "all rows together"
PER_ROWS: Final = tuple(metric for metric in METRICS if not metric.is_pooled)
OF_ALL_SEEDS: Final = tuple(metric for metric in METRICS if metric.is_pooled)
EXACT_OUTCOMES: Final = 200
"""Draws of outcomes from the probabilities themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricEstimate:
    """One metric of one method, trained on something and tested on something."""

    protocol: ProtocolName
    method: str
    trained_on: str
    tested_on: str
    metric: str
    rows: int
    """Distinct questions behind it."""
    value: float
    """Mean over the seeds; of a pooled metric, over all their test rows at once."""
    drawn: Values
    """The metric on each draw of questions; empty where nothing is drawn."""
    by_seed: Float64[np.ndarray, " seeds"]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile bootstrap interval; NaN where nothing is drawn."""
        return interval(self.drawn)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; NaN where there is one."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else float("nan")

    @property
    def is_of_one_set(self) -> bool:
        """Whether it is of a single set."""
        return self.tested_on not in (MEAN, POOLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The reference's metric less another method's, on the same questions, draw by draw."""

    protocol: ProtocolName
    metric: str
    reference: str
    method: str
    value: float
    """Mean over sets; one to one, over pairs of sets."""
    drawn: Values
    of_each: Mapping[tuple[str, str], float]
    """By the sets trained on and tested on."""
    higher_is_better: bool

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile bootstrap interval."""
        return interval(self.drawn)

    @property
    def ahead(self) -> int:
        """On how many pairs of sets the reference is better."""
        sign = 1 if self.higher_is_better else -1
        return sum(sign * value > 0 for value in self.of_each.values())

    @property
    def worst(self) -> float:
        """The difference where the reference does worst."""
        return (min if self.higher_is_better else max)(self.of_each.values())


def estimate_metrics(trials: Sequence[Trial], *, progress: Callable[[], None] = lambda: None) -> list[MetricEstimate]:
    """Estimate every metric of every method, protocol and pair of sets, and the means over sets.

    Args:
        trials: of all methods.
        progress: called after each of `count_groups` groups of trials.
    """
    draws = Draws()
    found: list[MetricEstimate] = []
    for (protocol, _), of_method in _grouped(trials, lambda one: (one.protocol, one.method)):
        cells: list[MetricEstimate] = []
        for _, cell in _grouped(of_method, lambda one: (one.trained_on, one.tested_on)):
            cells += _cell(cell, draws)
        found += [*cells, *_means(cells)]
        if protocol != "one-to-one":  # whose rows would be the same ones many times
            found += _pooled(of_method, draws)
        progress()
    return found


def count_groups(trials: Sequence[Trial]) -> int:
    """Count the calls of `estimate_metrics` to its progress."""
    return len({(trial.protocol, trial.method) for trial in trials})


def differences(found: Sequence[MetricEstimate], reference: str) -> list[Difference]:
    """Compute the reference less each other method, by protocol and metric."""
    better = {metric.name: metric.higher_is_better for metric in METRICS}
    of_sets = [one for one in found if one.is_of_one_set and one.metric in better]
    ours = {_where(one): one for one in of_sets if one.method == reference}
    theirs = [one for one in of_sets if one.method != reference and _where(one) in ours]
    lead = []
    for (protocol, metric, method), group in _grouped(theirs, lambda one: (one.protocol, one.metric, one.method)):
        pairs = [(ours[_where(one)], one) for one in group]
        lead.append(
            Difference(
                protocol=protocol,
                metric=metric,
                reference=reference,
                method=method,
                value=float(np.mean([our.value - their.value for our, their in pairs])),
                drawn=np.mean([our.drawn - their.drawn for our, their in pairs], axis=0),
                of_each={(our.trained_on, our.tested_on): our.value - their.value for our, their in pairs},
                higher_is_better=better[metric],
            )
        )
    return lead


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Test rows, and how often each is drawn."""

    wrong: Bool[np.ndarray, " rows"]
    raw: Scores
    probability: Scores
    draws: Int64[np.ndarray, "draws rows"]

    @classmethod
    def of(cls, trials: Sequence[Trial], draws: "Draws") -> "Sample":
        """The test rows of several trials together."""
        return cls(
            wrong=np.concatenate([trial.wrong for trial in trials]),
            raw=np.concatenate([trial.raw for trial in trials]),
            probability=np.concatenate([trial.probability for trial in trials]),
            draws=np.concatenate([draws.of(trial) for trial in trials], axis=1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDraws:
    """A metric of a sample, and of each draw of it."""

    value: float
    drawn: Values


class Draws:
    """Bootstrap draws of a set's groups of questions, with replacement, which all methods share.

    So differences between methods are paired, and a question that several seeds test is drawn for all of them.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Int64[np.ndarray, "draws groups"]] = {}

    def of(self, trial: Trial) -> Int64[np.ndarray, "draws rows"]:
        """Return how often each row of a trial is drawn."""
        name, groups = trial.tested_on, trial.of
        if (name, groups) not in self._known:
            # Seeded by the name: a set's draws don't depend on which other sets there are.
            random = np.random.default_rng([groups, *name.encode()])
            self._known[name, groups] = random.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
        return self._known[name, groups][:, trial.groups]


def measure(sample: Sample, metrics: Sequence[Metric]) -> Mapping[str, MetricDraws]:
    """Compute metrics of a sample, by name."""
    drawn: dict[str, list[Values]] = {metric.name: [] for metric in metrics}
    for draws in np.array_split(sample.draws, -(-sample.draws.size // CELLS)):
        for name, values in _compute(sample, metrics, draws).items():
            drawn[name].append(values)
    return {
        name: MetricDraws(value=float(value[0]), drawn=np.concatenate(drawn[name]))
        for name, value in _compute(sample, metrics, None).items()
    }


def error_if_exact(probability: Scores) -> float:
    """Compute the mean calibration error of outcomes drawn from the probabilities: the least that can be expected."""
    random = np.random.default_rng(0)
    wrong = (random.random((EXACT_OUTCOMES, len(probability))) < probability).astype(np.int64)
    twice = np.repeat([True, False], len(probability))
    of_each = ScoreCounts.of(twice, np.tile(probability, 2), np.concatenate([wrong, 1 - wrong], axis=1))
    return float(of_each.calibration_error().mean())


def interval(drawn: Values) -> tuple[float, float]:
    """Compute the 95 % percentile interval, without draws that have no value for want of right or wrong answers."""
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, INTERVAL).tolist() if len(known) else (np.nan, np.nan)
    return low, high


def _compute(
    sample: Sample, metrics: Sequence[Metric], draws: Int64[np.ndarray, "draws rows"] | None
) -> Mapping[str, Values]:
    found: dict[str, Values] = {}
    for of, scores in (("raw", sample.raw), ("probability", sample.probability)):
        wanted = [metric for metric in metrics if metric.of == of]
        if wanted:
            counts = ScoreCounts.of(sample.wrong, scores, draws)
            found |= {metric.name: metric.formula(counts) for metric in wanted}
    return found


def _where(one: MetricEstimate) -> tuple[str, str, str, str]:
    return one.protocol, one.metric, one.trained_on, one.tested_on


def _cell(cell: Sequence[Trial], draws: Draws) -> Iterator[MetricEstimate]:
    """All metrics of one method, trained on something and tested on one set, over its seeds."""
    together = Sample.of(cell, draws)
    by_seed = [measure(Sample.of([trial], draws), METRICS) for trial in cell]
    of_all_seeds = measure(together, OF_ALL_SEEDS)
    rows = len(np.unique(np.concatenate([trial.places for trial in cell])))
    for metric in METRICS:
        seeds = [measured[metric.name] for measured in by_seed]
        pooled = of_all_seeds.get(metric.name)
        yield _estimate(
            cell[0],
            cell[0].tested_on,
            metric.name,
            rows,
            value=float(np.mean([one.value for one in seeds])) if pooled is None else pooled.value,
            drawn=np.mean([one.drawn for one in seeds], axis=0) if pooled is None else pooled.drawn,
            by_seed=np.array([one.value for one in seeds]),
        )
    yield _if_exact(cell[0], cell[0].tested_on, rows, together)


def _means(cells: Sequence[MetricEstimate]) -> Iterator[MetricEstimate]:
    """Means over sets, and one to one over pairs of sets."""
    for metric, group in _grouped(cells, lambda one: one.metric):
        first = group[0]
        yield MetricEstimate(
            protocol=first.protocol,
            method=first.method,
            trained_on=first.trained_on if first.protocol == "leave-one-set-out" else "each",
            tested_on=MEAN,
            metric=metric,
            rows=sum(rows for _, rows in {(one.tested_on, one.rows) for one in group}),
            value=float(np.mean([one.value for one in group])),
            drawn=np.mean([one.drawn for one in group], axis=0),
            by_seed=np.mean([one.by_seed for one in group], axis=0),
        )


def _pooled(of_method: Sequence[Trial], draws: Draws) -> Iterator[MetricEstimate]:
    """Pooled metrics over the test rows of all sets: few rows of one set say little of calibration."""
    together = Sample.of(of_method, draws)
    rows = len({(trial.tested_on, place) for trial in of_method for place in trial.places.tolist()})
    seeds = [
        measure(Sample.of(group, draws), OF_ALL_SEEDS) for _, group in _grouped(of_method, lambda trial: trial.seed)
    ]
    for name, measured in measure(together, OF_ALL_SEEDS).items():
        by_seed = np.array([of_seed[name].value for of_seed in seeds])
        yield _estimate(of_method[0], POOLED, name, rows, value=measured.value, drawn=measured.drawn, by_seed=by_seed)
    yield _if_exact(of_method[0], POOLED, rows, together)


def _if_exact(trial: Trial, tested_on: str, rows: int, sample: Sample) -> MetricEstimate:
    value = error_if_exact(sample.probability)
    return _estimate(trial, tested_on, EXACT, rows, value=value, drawn=np.empty(0), by_seed=np.empty(0))


def _estimate(
    trial: Trial,
    tested_on: str,
    metric: str,
    rows: int,
    *,
    value: float,
    drawn: Values,
    by_seed: Float64[np.ndarray, " seeds"],
) -> MetricEstimate:
    is_of_each = tested_on == POOLED and trial.protocol != "leave-one-set-out"
    return MetricEstimate(
        protocol=trial.protocol,
        method=trial.method,
        trained_on="each" if is_of_each else trial.trained_on,
        tested_on=tested_on,
        metric=metric,
        rows=rows,
        value=value,
        drawn=drawn,
        by_seed=by_seed,
    )


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> list[tuple[K, list[T]]]:
    """Group items by a key, in the order of the keys."""
    return [(value, list(group)) for value, group in groupby(sorted(items, key=key), key=key)]
