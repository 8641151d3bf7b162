"""Trials -> figures of each set and their means over sets, with bootstrap intervals over sets."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64

from benchmarks.learning_curve.trials import Setting, Trial
from ilis_guard.lab.evaluation.bootstrap import MEAN, POOLED
from ilis_guard.lab.metrics import INTERVAL, ScoreCounts, auroc

RESAMPLES: Final = 2000
Name = str


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveFigure:
    """A figure of a setting: of a set, or over all."""

    setting: Setting
    name: Name
    left_out: str
    """A set's name, `MEAN` or `POOLED`."""
    value: float
    low: float | None = None
    """Of the 95 % percentile bootstrap interval over sets."""
    high: float | None = None


def curve_figures(trials: Sequence[Trial]) -> list[CurveFigure]:
    """Compute all figures of all settings."""
    found: list[CurveFigure] = []
    for setting in dict.fromkeys(trial.setting for trial in trials):
        of_sets: dict[str, list[Trial]] = {}
        for trial in trials:
            if trial.setting == setting:
                of_sets.setdefault(trial.left_out, []).append(trial)
        for name, formula in FIGURES.items():
            values = {left_out: formula(of_set) for left_out, of_set in of_sets.items()}
            known = {left_out: value for left_out, value in values.items() if value is not None}
            found += [
                CurveFigure(setting=setting, name=name, left_out=left_out, value=value)
                for left_out, value in known.items()
            ]
            if known:
                found.append(_mean(setting, name, np.array(list(known.values()))))
        if all(trial.probability is not None for of_set in of_sets.values() for trial in of_set):
            found.append(_pooled(setting, list(of_sets.values())))
    return found


def _auroc(trials: Sequence[Trial]) -> float:
    return float(np.mean([auroc(trial.wrong, trial.raw) for trial in trials]))


def _ece(trials: Sequence[Trial]) -> float | None:
    """Over all draws at once: of a hundred rows in ten bins even exact probabilities are off by a tenth."""
    probability = [trial.probability for trial in trials if trial.probability is not None]
    if len(probability) < len(trials):
        return None
    counts = ScoreCounts.of(np.concatenate([trial.wrong for trial in trials]), np.concatenate(probability))
    return float(counts.calibration_error()[0])


def _coverage(trials: Sequence[Trial]) -> float | None:
    answered = [trial.answered for trial in trials if trial.answered is not None]
    return float(np.mean(np.concatenate(answered))) if answered else None


def _error(trials: Sequence[Trial]) -> float | None:
    wrong = [trial.wrong[trial.answered] for trial in trials if trial.answered is not None]
    outcomes = np.concatenate(wrong) if wrong else np.empty(0)
    return float(outcomes.mean()) if len(outcomes) else None


def _refused(trials: Sequence[Trial]) -> float | None:
    return float(np.mean([trial.refused for trial in trials])) if trials[0].setting.labels else None


FIGURES: Final[dict[Name, Callable[[Sequence[Trial]], float | None]]] = {
    "auroc": _auroc,
    "ece": _ece,
    "certified coverage": _coverage,
    "error of certified": _error,
    "refused": _refused,
}
"""Of a set: mean over draws, but `ece` and `error of certified`, which are over all draws' rows. `certified coverage`
is the share of unseen requests that the certified threshold answers, and `refused` the share of draws whose labels
taught nothing."""


def _mean(setting: Setting, name: Name, values: Float64[np.ndarray, " sets"]) -> CurveFigure:
    drawn = values[_resamples(len(values))].mean(axis=1)
    return _over_sets(setting, name, MEAN, float(values.mean()), drawn)


def _pooled(setting: Setting, of_sets: Sequence[Sequence[Trial]]) -> CurveFigure:
    """The calibration error of all sets' rows together."""

    def together(sets: Sequence[int]) -> float:
        value = _ece([trial for one in sets for trial in of_sets[one]])
        assert value is not None, "the caller has checked"
        return value

    drawn = np.array([together(sets) for sets in _resamples(len(of_sets), RESAMPLES // 10).tolist()])
    return _over_sets(setting, "ece", POOLED, together(range(len(of_sets))), drawn)


def _resamples(sets: int, size: int = RESAMPLES) -> np.ndarray:
    return np.random.default_rng(0).integers(sets, size=(size, sets))


def _over_sets(setting: Setting, name: Name, left_out: str, value: float, drawn: np.ndarray) -> CurveFigure:
    low, high = np.percentile(drawn, INTERVAL).tolist()
    return CurveFigure(setting=setting, name=name, left_out=left_out, value=value, low=low, high=high)


SETTINGS: Final = tuple(field.name for field in fields(Setting))
HEADINGS: Final = (*SETTINGS, "figure", "set", "value", "low", "high")


def write_figures(found: Sequence[CurveFigure], path: Path) -> None:
    """Write a table, a line a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADINGS)
        for one in found:
            numbers = ["" if number is None else f"{number:.4f}" for number in (one.value, one.low, one.high)]
            writer.writerow([*(getattr(one.setting, name) for name in SETTINGS), one.name, one.left_out, *numbers])


def find(found: Sequence[CurveFigure], setting: Setting, name: Name, left_out: str = MEAN) -> CurveFigure | None:
    """One of the figures."""
    return next((one for one in found if (one.setting, one.name, one.left_out) == (setting, name, left_out)), None)
