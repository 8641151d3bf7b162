"""Tidy CSV files: one row a figure."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ilis_guard.lab.evaluation.evaluate import Evaluation
from ilis_guard.lab.evaluation.shifting import LEVELS

SETS: Final = "sets.csv"
FIGURES: Final = "figures.csv"
DIFFERENCES: Final = "differences.csv"
TYPICALITY: Final = "typicality.csv"
IMPORTANCE: Final = "importance.csv"


def write_tables(evaluation: Evaluation, folder: Path) -> None:
    """Write all tables into a folder.

    Raises:
        OSError: a file can't be written.
    """
    _write(
        folder / SETS,
        ("dataset", "rows", "right", "share", "low", "high", "best_constant", "counts", "why_left_out"),
        (
            (one.name, one.rows, one.right, one.share, one.low, one.high, one.constant, one.counts, one.why_left_out)
            for one in evaluation.sets
        ),
    )
    _write(
        folder / FIGURES,
        (
            *("protocol", "method", "trained_on", "tested_on", "metric", "rows", "seeds"),
            *("value", "low", "high", "sd_over_seeds"),
        ),
        (
            (
                *(one.protocol, one.method, one.trained_on, one.tested_on, one.metric, one.rows, len(one.by_seed)),
                *(one.value, *one.interval, one.spread),
            )
            for one in evaluation.figures
        ),
    )
    _write(
        folder / DIFFERENCES,
        (
            *("protocol", "metric", "reference", "method", "value", "low", "high"),
            *("worst", "ahead", "of"),
        ),
        (
            (
                *(one.protocol, one.metric, one.reference, one.method, one.value, *one.interval),
                *(one.worst, one.ahead, len(one.of_each)),
            )
            for one in evaluation.differences
        ),
    )
    _write(
        folder / TYPICALITY,
        ("trained_on", "tested_on", "rows", "auroc", *(f"below_{level}" for level in LEVELS)),
        ((one.trained_on, one.tested_on, one.rows, one.auroc, *one.below) for one in evaluation.typicality),
    )
    pairs = evaluation.importance.pairs
    _write(
        folder / IMPORTANCE,
        ("feature", "first_layer", "second_layer", "share_of_gain"),
        (
            *(("map", i, j, pairs[i, j]) for i, j in np.argwhere(~np.eye(len(pairs), dtype=bool)).tolist()),
            *((name, None, None, share) for name, share in evaluation.importance.statistics.items()),
        ),
    )


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
