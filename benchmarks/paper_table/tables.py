"""What is written and printed of a table: CSV files, and the console's tables."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, Final

from benchmarks.common import show
from benchmarks.laboratory.tables import MANIFESTS, manifest_row, write_csv
from benchmarks.paper_table.differences import (
    METRICS,
    NAMES,
    PAIRS,
    SETTINGS,
    Cell,
    CellDifference,
    MeanDifference,
    format_points,
)
from benchmarks.paper_table.published import HEADINGS, PUBLISHED, SUMMARY, OverviewRow
from ilis_guard.cli.console import out
from ilis_guard.lab.attempt_schema import HarvestManifest
from ilis_guard.lab.evaluation.sets import QuestionSet

SETS: Final = "sets.csv"
CELLS_FILE: Final = "cells.csv"
DIFFERENCES: Final = "differences.csv"
OVERVIEW: Final = "overview.csv"
CONVENTION: Final = (
    "Points are hundredths: the scorer's less the probe's, positive where the scorer is better. Of the Brier score "
    "(mean squared error, lower is better) it is the probe's less the scorer's, the difference of 1 - Brier. AUPRC is "
    "at finding right answers, and at finding wrong ones. Brier is of each method's own probabilities as fitted, and "
    "of those calibrated, all alike, on rows of the set trained on. Of the paper it isn't known here which AUPRC "
    'it means, whether its "Brier" is 1 - MSE, and whether it calibrates: read its signs with that in mind.'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """The results of one model."""

    model: str
    seeds: int
    manifests: tuple[HarvestManifest, ...]
    sets: tuple[QuestionSet, ...]
    """At full precision."""
    other_sets: tuple[QuestionSet, ...]
    """At 4 bits, of those that count at full precision."""
    cells: tuple[Cell, ...]
    differences: tuple[CellDifference, ...]
    means: tuple[MeanDifference, ...]

    def set_rows(self) -> list[list[str]]:
        """A row for each set and precision."""
        return [
            [
                precision,
                one.name,
                str(one.rows),
                f"{one.share:.1%}",
                "" if one.constant is None else f"{one.constant:.1%}",
                one.why_left_out or "counts",
            ]
            for precision, sets in (("full", self.sets), ("nf4", self.other_sets))
            for one in sets
        ]

    def mean_rows(self, scorer: str, probe: str) -> list[list[str]]:
        """A row for each setting and part of the matrix; parts without a cell have none."""
        found: dict[tuple[str, str], dict[str, MeanDifference]] = {}
        for one in self.means:
            if (one.scorer, one.probe) == (scorer, probe):
                found.setdefault((SETTINGS[one.setting], one.cells), {})[one.metric] = one
        rows = []
        for where, metrics in found.items():
            ordered = [metrics[name] for name in NAMES]
            points = [format_points(one.points, one.low, one.high) for one in ordered]
            rows.append([*where, str(ordered[0].of), *points])
        return rows


SET_HEADINGS: Final = ("precision", "set", "rows", "right", "best constant", "counts, or why not")
MEAN_HEADINGS: Final = ("fitted and tested at", "cells", "how many", *NAMES.values())


def write_table_files(table: PaperTable, folder: Path) -> None:
    """Write what is committed of a model. No text of a question or an answer is in it.

    Raises:
        OSError: a file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / SETS, SET_HEADINGS, table.set_rows())
    names = [metric.name for metric in METRICS]
    write_csv(
        folder / CELLS_FILE,
        ("setting", "method", "trained_on", "tested_on", "rows", *names),
        (
            [
                *(one.setting, one.method, one.trained_on, one.tested_on, one.rows),
                *(_number(one.metrics[name].value, ".4f") for name in names),
            ]
            for one in table.cells
        ),
    )
    write_csv(
        folder / DIFFERENCES,
        ("setting", "scorer", "probe", "trained_on", "tested_on", "metric", "points", "low", "high"),
        (
            [
                *(one.setting, one.scorer, one.probe, one.trained_on, one.tested_on, one.metric),
                *(_number(value, "+.2f") for value in (one.points, *one.interval)),
            ]
            for one in table.differences
        ),
    )
    columns = [field.name for field in fields(MeanDifference)]
    write_csv(
        folder / SUMMARY,
        columns,
        ([_cell(getattr(one, name)) for name in columns] for one in table.means),
    )
    # A model's folder is nobody's business; its fingerprint tells which one it is.
    rows = [manifest_row(one) | {"model": table.model} for one in table.manifests]
    write_csv(folder / MANIFESTS, list(rows[0]), [list(row.values()) for row in rows])


def write_overview(rows: Sequence[OverviewRow], folder: Path) -> None:
    """Write the table of all models beside the paper's figures."""
    write_csv(folder / OVERVIEW, HEADINGS, (row.values() for row in rows))


def show_table(table: PaperTable) -> None:
    """Print the sets, the means for each scorer and probe, and the paper's figures: what 80 columns hold."""
    show(f"{table.model}: the sets", SET_HEADINGS, table.set_rows())
    for scorer, probe in PAIRS:
        # The last column, AUROC, is in the files and on the page.
        rows = [
            [f"{setting}; {cells} ({size})", *(one.replace(" (", "\n(") for one in points[:-1])]
            for setting, cells, size, *points in table.mean_rows(scorer, probe)
        ]
        show(f"{scorer} less {probe}, points, means over (so many) cells", ("", *list(NAMES.values())[:-1]), rows)
    published = [[one.model, one.precision, one.cells, one.auprc, one.brier] for one in PUBLISHED]
    show("the paper's signature less its probe", HEADINGS[:5], published)
    out.print(CONVENTION, highlight=False)


def _cell(value: Any) -> str:
    return _number(value, "+.2f") if isinstance(value, float) else str(value)


def _number(value: float, form: str) -> str:
    return format(value, form) if isfinite(value) else ""
