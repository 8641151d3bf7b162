"""Every metric of some test rows, on themselves and on a thousand draws of their questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ilis_guard.lab import counted as formulas
from ilis_guard.lab.counted import Counted, counted
from ilis_guard.lab.evaluation.trials import Scores, Trial
from ilis_guard.lab.metrics import INTERVAL, RESAMPLES

CELLS: Final = 2_000_000
"""Of an array that draws are counted in, at most: more take memory and are no faster."""
EXACT_OUTCOMES: Final = 200
"""Times that outcomes are drawn from the probabilities themselves."""

Values = Float64[np.ndarray, " draws"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure's name and formula."""

    name: str
    formula: Callable[[Counted], Values]
    of: Literal["raw", "probability"]
    """What it looks at: how answers are ranked, or what is said of each."""
    higher_is_better: bool = True
    is_pooled: bool = False
    """Whether it is taken over the test rows of all seeds at once: of few rows it says little."""


METRICS: Final = (
    Metric(name="auroc", formula=formulas.auroc, of="raw"),
    Metric(name="auprc_wrong", formula=formulas.auprc_wrong, of="raw"),
    Metric(name="auprc_correct", formula=formulas.auprc_correct, of="raw"),
    Metric(name="aurc", formula=formulas.aurc, of="raw", higher_is_better=False),
    Metric(name="e_aurc", formula=formulas.excess_aurc, of="raw", higher_is_better=False),
    Metric(name="prr", formula=formulas.rejection_ratio, of="raw"),
    Metric(name="accuracy_at_80", formula=formulas.accuracy_at_coverage, of="raw"),
    Metric(name="brier", formula=formulas.brier, of="probability", higher_is_better=False),
    Metric(name="brier_skill", formula=formulas.brier_skill, of="probability"),
    Metric(name="ece", formula=formulas.calibration_error, of="probability", higher_is_better=False, is_pooled=True),
)
EXACT: Final = "ece_if_exact"
"""The calibration error that the same probabilities would have, on as many rows, if each came true just so often."""


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
    of_each = counted(twice, np.tile(probability, 2), np.concatenate([wrong, 1 - wrong], axis=1))
    return float(formulas.calibration_error(of_each).mean())


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
            counts = counted(sample.wrong, scores, draws)
            found |= {metric.name: metric.formula(counts) for metric in asked}
    return found
