"""Trials -> metrics of each pair of sets, differences between scorer and probe, and their means over the matrix."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final, Literal

import numpy as np

from benchmarks.paper_table.matrix import PROBES, SCORERS
from ilis_guard.lab.evaluation.bootstrap import Draws, MetricDraws, Sample, interval, measure
from ilis_guard.lab.evaluation.trials import ProtocolName, Trial
from ilis_guard.lab.metrics import Metric, ScoreCounts, Values

Setting = Literal["full", "applied", "refitted"]
"""Fitted and tested at full precision; fitted there and tested at 4 bits; fitted and tested at 4 bits."""
Cells = Literal["in-distribution", "off-diagonal"]
"""Of the matrix: tested on the set that it was trained on, or on another one."""

METRICS: Final = (
    Metric(name="auprc_correct", formula=ScoreCounts.auprc_correct, of="raw"),
    Metric(name="auprc_wrong", formula=ScoreCounts.auprc_wrong, of="raw"),
    Metric(name="brier_as_fitted", formula=ScoreCounts.brier, of="raw", higher_is_better=False),
    Metric(name="brier", formula=ScoreCounts.brier, of="probability", higher_is_better=False),
    Metric(name="auroc", formula=ScoreCounts.auroc, of="raw"),
)
"""`raw` is each method's own probability of being wrong; `probability` the same, calibrated on rows of the set that it
was trained on."""
NAMES: Final[Mapping[str, str]] = {
    "auprc_correct": "AUPRC, right",
    "auprc_wrong": "AUPRC, wrong",
    "brier_as_fitted": "Brier, as fitted",
    "brier": "Brier, calibrated",
    "auroc": "AUROC",
}
SETTINGS: Final[Mapping[Setting, str]] = {
    "full": "full precision",
    "applied": "4 bits, fitted at full precision",
    "refitted": "4 bits, refitted",
}
CELLS: Final[tuple[Cells, ...]] = ("in-distribution", "off-diagonal")
PAIRS: Final = tuple((scorer, probe) for scorer in SCORERS for probe in PROBES)
_SETTING_OF: Final[Mapping[ProtocolName, Setting]] = {
    "in-distribution": "full",
    "one-to-one": "full",
    "applied": "applied",
    "applied-one-to-one": "applied",
    "refitted": "refitted",
    "refitted-one-to-one": "refitted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A method's metrics on one set after training on one."""

    setting: Setting
    method: str
    trained_on: str
    tested_on: str
    rows: int
    """Distinct questions tested."""
    metrics: Mapping[str, MetricDraws]
    """Means over seeds, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellDifference:
    """A scorer's metric less a probe's, on the same rows, in points; positive where the scorer is better."""

    setting: Setting
    scorer: str
    probe: str
    trained_on: str
    tested_on: str
    metric: str
    points: float
    drawn: Values

    @property
    def cells(self) -> Cells:
        """Which part of the matrix it is in."""
        return "in-distribution" if self.trained_on == self.tested_on else "off-diagonal"

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile bootstrap interval over questions."""
        return interval(self.drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanDifference:
    """The mean over the diagonal or over all other cells, in points."""

    setting: Setting
    cells: Cells
    scorer: str
    probe: str
    metric: str
    points: float
    low: float
    high: float
    worst: float
    """Of all cells."""
    ahead: int
    """On how many cells the scorer is better."""
    of: int
    """How many cells there are."""


def format_points(points: float, low: float, high: float) -> str:
    """Format as ``+3.1 (+1.2 to +4.9)``; without an interval where none is known."""
    return f"{points:+.1f} ({low:+.1f} to {high:+.1f})" if isfinite(low) else f"{points:+.1f}"


def matrix_cells(trials: Iterable[Trial]) -> list[Cell]:
    """Compute the metrics of each method, setting and pair of sets, with draws of questions that all methods share."""
    draws = Draws()
    grouped: dict[tuple[Setting, str, str, str], list[Trial]] = {}
    for trial in trials:
        key = (_SETTING_OF[trial.protocol], trial.method, trial.trained_on, trial.tested_on)
        grouped.setdefault(key, []).append(trial)
    found = []
    for (setting, method, trained_on, tested_on), of_cell in grouped.items():
        by_seed = [measure(Sample.of([trial], draws), METRICS) for trial in of_cell]
        found.append(
            Cell(
                setting=setting,
                method=method,
                trained_on=trained_on,
                tested_on=tested_on,
                rows=len(np.unique(np.concatenate([trial.places for trial in of_cell]))),
                metrics={
                    metric.name: MetricDraws(
                        value=float(np.mean([of_seed[metric.name].value for of_seed in by_seed])),
                        drawn=np.mean([of_seed[metric.name].drawn for of_seed in by_seed], axis=0),
                    )
                    for metric in METRICS
                },
            )
        )
    return found


def cell_differences(cells: Sequence[Cell]) -> list[CellDifference]:
    """Compare every scorer with every probe, cell by cell."""
    known = {(one.setting, one.method, one.trained_on, one.tested_on): one.metrics for one in cells}
    pairs = dict.fromkeys((one.setting, one.trained_on, one.tested_on) for one in cells)
    found = []
    for scorer, probe in PAIRS:
        for setting, trained_on, tested_on in pairs:
            ours, theirs = (known[setting, method, trained_on, tested_on] for method in (scorer, probe))
            for metric in METRICS:
                sign = 100 if metric.higher_is_better else -100
                found.append(
                    CellDifference(
                        setting=setting,
                        scorer=scorer,
                        probe=probe,
                        trained_on=trained_on,
                        tested_on=tested_on,
                        metric=metric.name,
                        points=sign * (ours[metric.name].value - theirs[metric.name].value),
                        drawn=sign * (ours[metric.name].drawn - theirs[metric.name].drawn),
                    )
                )
    return found


def mean_differences(differences: Sequence[CellDifference]) -> list[MeanDifference]:
    """Average over the diagonal, and over all other cells."""
    grouped: dict[tuple[Setting, Cells, str, str, str], list[CellDifference]] = {}
    for one in differences:
        grouped.setdefault((one.setting, one.cells, one.scorer, one.probe, one.metric), []).append(one)
    found = []
    for (setting, cells, scorer, probe, metric), group in grouped.items():
        low, high = interval(np.mean([one.drawn for one in group], axis=0))
        points = [one.points for one in group]
        found.append(
            MeanDifference(
                setting=setting,
                cells=cells,
                scorer=scorer,
                probe=probe,
                metric=metric,
                points=float(np.mean(points)),
                low=low,
                high=high,
                worst=min(points),
                ahead=sum(value > 0 for value in points),
                of=len(points),
            )
        )
    return found
