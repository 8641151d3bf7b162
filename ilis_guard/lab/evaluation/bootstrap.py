"""Trials -> metrics with bootstrap intervals over questions and their spread over seeds, and paired differences."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ilis_guard.lab.evaluation.metrics import EXACT, INTERVAL, METRICS, RESAMPLES, Metric, ScoreCounts, Values
from ilis_guard.lab.evaluation.trials import ProtocolName, Scores, Trial

T = TypeVar("T")
K = TypeVar("K", bound=Any)

MEAN: Final = "mean over sets"
POOLED: Final = "all rows together"
PER_ROWS: Final = tuple(metric for metric in METRICS if not metric.is_pooled)
OF_ALL_SEEDS: Final = tuple(metric for metric in METRICS if metric.is_pooled)
CELLS: Final = 2_000_000
"""Of an array that draws are counted in, at most: more take memory and are no faster."""
EXACT_OUTCOMES: Final = 200
"""Times that outcomes are drawn from the probabilities themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One metric of one method, trained on something and tested on something."""

    protocol: ProtocolName
    method: str
    trained_on: str
    tested_on: str
    metric: str
    rows: int
    """Distinct questions that it rests on."""
    value: float
    """Mean over the seeds; of a pooled metric, over all their test rows at once."""
    drawn: Values
    """The same on each draw of questions; empty where nothing is drawn."""
    by_seed: Float64[np.ndarray, " seeds"]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile bootstrap interval; not numbers where nothing is drawn."""
        return interval(self.drawn)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; not a number where there is one."""
        return float(np.std(self.by_seed, ddof=1)) if len(self.by_seed) > 1 else float("nan")

    @property
    def is_of_a_set(self) -> bool:
        """Whether it isn't of several sets together."""
        return self.tested_on not in (MEAN, POOLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The reference's figure less another method's, on the same questions, draw by draw."""

    protocol: ProtocolName
    metric: str
    reference: str
    method: str
    value: float
    """Mean over sets; one to one, over pairs of sets."""
    drawn: Values
    of_each: Mapping[tuple[str, str], float]
    """By what was trained on and what was tested on."""
    higher_is_better: bool

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile bootstrap interval."""
        return interval(self.drawn)

    @property
    def ahead(self) -> int:
        """On how many of them the reference is better."""
        sign = 1 if self.higher_is_better else -1
        return sum(sign * value > 0 for value in self.of_each.values())

    @property
    def worst(self) -> float:
        """The difference where the reference fares worst."""
        return (min if self.higher_is_better else max)(self.of_each.values())


def figures(trials: Sequence[Trial], *, progress: Callable[[], None] = lambda: None) -> list[Figure]:
    """Every metric of every method, protocol and pair of sets, and the means over sets.

    Args:
        trials: of all methods.
        progress: told of each of `count_groups` groups of trials.
    """
    draws = Draws()
    found: list[Figure] = []
    for (protocol, _), of_method in _grouped(trials, lambda one: (one.protocol, one.method)):
        cells: list[Figure] = []
        for _, cell in _grouped(of_method, lambda one: (one.trained_on, one.tested_on)):
            cells += _of_cell(cell, draws)
        found += [*cells, *_means(cells)]
        if protocol != "one-to-one":  # whose rows would be the same ones many times
            found += _pooled(of_method, draws)
        progress()
    return found


def count_groups(trials: Sequence[Trial]) -> int:
    """How often `figures` tells of progress."""
    return len({(trial.protocol, trial.method) for trial in trials})


def differences(found: Sequence[Figure], reference: str) -> list[Difference]:
    """The reference less each other method, by protocol and metric."""
    better = {metric.name: metric.higher_is_better for metric in METRICS}
    of_sets = [figure for figure in found if figure.is_of_a_set and figure.metric in better]
    ours = {_where(figure): figure for figure in of_sets if figure.method == reference}
    theirs = [figure for figure in of_sets if figure.method != reference and _where(figure) in ours]
    told = []
    for (protocol, metric, method), group in _grouped(theirs, lambda one: (one.protocol, one.metric, one.method)):
        pairs = [(ours[_where(figure)], figure) for figure in group]
        told.append(
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
    return told


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
class Measured:
    """A metric of a sample."""

    value: float
    drawn: Values


class Draws:
    """How often each test row is drawn: questions of a set, with replacement, the same ones whoever asks.

    So differences between methods are paired; a question that is tested with several seeds is drawn for all of them.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Int64[np.ndarray, "draws rows"]] = {}

    def of(self, trial: Trial) -> Int64[np.ndarray, "draws rows"]:
        """Of the trial's rows."""
        name, rows = trial.tested_on, trial.of
        if (name, rows) not in self._known:
            # Seeded by the name: a set's draws don't hang on which other sets there are.
            random = np.random.default_rng([rows, *name.encode()])
            self._known[name, rows] = random.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)
        return self._known[name, rows][:, trial.places]


def measure(sample: Sample, metrics: Sequence[Metric]) -> Mapping[str, Measured]:
    """Metrics by name."""
    drawn: dict[str, list[Values]] = {metric.name: [] for metric in metrics}
    for draws in np.array_split(sample.draws, -(-sample.draws.size // CELLS)):
        for name, values in _formulas(sample, metrics, draws).items():
            drawn[name].append(values)
    return {
        name: Measured(value=float(value[0]), drawn=np.concatenate(drawn[name]))
        for name, value in _formulas(sample, metrics, None).items()
    }


def error_if_exact(probability: Scores) -> float:
    """The mean calibration error if outcomes were drawn from the probabilities: none can be expected to have less."""
    random = np.random.default_rng(0)
    wrong = (random.random((EXACT_OUTCOMES, len(probability))) < probability).astype(np.int64)
    twice = np.repeat([True, False], len(probability))
    of_each = ScoreCounts.of(twice, np.tile(probability, 2), np.concatenate([wrong, 1 - wrong], axis=1))
    return float(of_each.calibration_error().mean())


def interval(drawn: Values) -> tuple[float, float]:
    """95 % percentile interval; draws that have no figure, for want of right or wrong answers, are left out."""
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, INTERVAL).tolist() if len(known) else (np.nan, np.nan)
    return low, high


def _formulas(
    sample: Sample, metrics: Sequence[Metric], draws: Int64[np.ndarray, "draws rows"] | None
) -> Mapping[str, Values]:
    found: dict[str, Values] = {}
    for of, scores in (("raw", sample.raw), ("probability", sample.probability)):
        asked = [metric for metric in metrics if metric.of == of]
        if asked:
            counts = ScoreCounts.of(sample.wrong, scores, draws)
            found |= {metric.name: metric.formula(counts) for metric in asked}
    return found


def _where(figure: Figure) -> tuple[str, str, str, str]:
    return figure.protocol, figure.metric, figure.trained_on, figure.tested_on


def _of_cell(cell: Sequence[Trial], draws: Draws) -> Iterator[Figure]:
    """All metrics of one method, trained on one thing and tested on one set, over its seeds."""
    together = Sample.of(cell, draws)
    by_seed = [measure(Sample.of([trial], draws), METRICS) for trial in cell]
    of_all_seeds = measure(together, OF_ALL_SEEDS)
    rows = len(np.unique(np.concatenate([trial.places for trial in cell])))
    for metric in METRICS:
        seeds = [measured[metric.name] for measured in by_seed]
        pooled = of_all_seeds.get(metric.name)
        yield _figure(
            cell[0],
            cell[0].tested_on,
            metric.name,
            rows,
            value=float(np.mean([one.value for one in seeds])) if pooled is None else pooled.value,
            drawn=np.mean([one.drawn for one in seeds], axis=0) if pooled is None else pooled.drawn,
            by_seed=np.array([one.value for one in seeds]),
        )
    yield _if_exact(cell[0], cell[0].tested_on, rows, together)


def _means(cells: Sequence[Figure]) -> Iterator[Figure]:
    """Means over sets, and one to one over pairs of sets."""
    for metric, group in _grouped(cells, lambda one: one.metric):
        first = group[0]
        yield Figure(
            protocol=first.protocol,
            method=first.method,
            trained_on=first.trained_on if first.protocol == "leave-one-set-out" else "each",
            tested_on=MEAN,
            metric=metric,
            rows=sum(rows for _, rows in {(figure.tested_on, figure.rows) for figure in group}),
            value=float(np.mean([figure.value for figure in group])),
            drawn=np.mean([figure.drawn for figure in group], axis=0),
            by_seed=np.mean([figure.by_seed for figure in group], axis=0),
        )


def _pooled(of_method: Sequence[Trial], draws: Draws) -> Iterator[Figure]:
    """Pooled metrics over the test rows of all sets: few rows of one set say little of calibration."""
    together = Sample.of(of_method, draws)
    rows = len({(trial.tested_on, place) for trial in of_method for place in trial.places.tolist()})
    seeds = [
        measure(Sample.of(group, draws), OF_ALL_SEEDS) for _, group in _grouped(of_method, lambda trial: trial.seed)
    ]
    for name, measured in measure(together, OF_ALL_SEEDS).items():
        by_seed = np.array([of_seed[name].value for of_seed in seeds])
        yield _figure(of_method[0], POOLED, name, rows, value=measured.value, drawn=measured.drawn, by_seed=by_seed)
    yield _if_exact(of_method[0], POOLED, rows, together)


def _if_exact(trial: Trial, tested_on: str, rows: int, sample: Sample) -> Figure:
    value = error_if_exact(sample.probability)
    return _figure(trial, tested_on, EXACT, rows, value=value, drawn=np.empty(0), by_seed=np.empty(0))


def _figure(
    trial: Trial,
    tested_on: str,
    metric: str,
    rows: int,
    *,
    value: float,
    drawn: Values,
    by_seed: Float64[np.ndarray, " seeds"],
) -> Figure:
    is_of_each = tested_on == POOLED and trial.protocol != "leave-one-set-out"
    return Figure(
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
    """Items by a key, in the order of the keys."""
    return [(value, list(group)) for value, group in groupby(sorted(items, key=key), key=key)]
