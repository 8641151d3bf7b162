"""The tables of an evaluation: for the terminal and the page, and as CSV files with one estimate a row."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ilis_guard.lab.evaluation.bootstrap import MEAN, POOLED, Difference, MetricEstimate
from ilis_guard.lab.evaluation.evaluate import Evaluation
from ilis_guard.lab.evaluation.ood import LEVELS
from ilis_guard.lab.evaluation.trials import ProtocolName
from ilis_guard.lab.metrics import EXACT

SETS: Final = "sets.csv"
METRICS: Final = "metrics.csv"
DIFFERENCES: Final = "differences.csv"
TYPICALITY: Final = "typicality.csv"
IMPORTANCE: Final = "importance.csv"
PROTOCOL_NAMES: Final[Mapping[ProtocolName, str]] = {
    "in-distribution": "in-distribution",
    "one-to-one": "one to another",
    "leave-one-set-out": "leave-one-set-out",
    "refitted": "refitted, other precision",
    "applied": "applied, other precision",
}
METRIC_NAMES: Final[Mapping[str, str]] = {
    "auroc": "AUROC",
    "auprc_wrong": "AUPRC, wrong",
    "auprc_correct": "AUPRC, right",
    "aurc": "AURC",
    "e_aurc": "E-AURC",
    "prr": "PRR",
    "accuracy_at_80": "accuracy at 80 %",
    "brier": "Brier",
    "brier_skill": "Brier skill",
    "ece": "ECE, pooled",
}
COMPARED: Final = ("auroc", "auprc_wrong", "auprc_correct", "brier")
"""Metrics in which the reference is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of methods."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Each starts with its name."""


def protocols(evaluation: Evaluation) -> list[ProtocolName]:
    """Return the protocols that have trials, in the order of tables."""
    known = {trial.protocol for trial in evaluation.trials}
    return [name for name in PROTOCOL_NAMES if name in known]


def by_protocol(evaluation: Evaluation) -> Table:
    """Tabulate the mean AUROC over sets, of every method under every protocol."""
    names = protocols(evaluation)
    return Table(
        title="AUROC, mean over sets, with 95 % bootstrap intervals",
        columns=("method", *(PROTOCOL_NAMES[name] for name in names)),
        rows=tuple(
            (method, *(format_estimate(evaluation.estimate(name, method, MEAN, "auroc")) for name in names))
            for method in evaluation.methods
        ),
    )


def ahead(evaluation: Evaluation) -> Table:
    """Tabulate the reference's lead over every other method in mean AUROC, under every protocol."""
    names = protocols(evaluation)
    found = {(one.protocol, one.method): one for one in evaluation.differences if one.metric == "auroc"}
    return Table(
        title="AUROC: fused less the other, in hundredths, with paired 95 % intervals",
        columns=("fused less", *(PROTOCOL_NAMES[name] for name in names)),
        rows=tuple(
            (method, *(_signed(found[name, method]) for name in names))
            for method in evaluation.methods
            if all((name, method) in found for name in names)
        ),
    )


def by_metric(evaluation: Evaluation, protocol: ProtocolName) -> Table:
    """Tabulate all metrics of every method under one protocol."""
    return Table(
        title="mean over sets, with 95 % bootstrap intervals; ECE of all test rows together",
        columns=("method", *METRIC_NAMES.values(), "ECE if exact"),
        rows=tuple(
            (
                method,
                *(format_estimate(_metric(evaluation, protocol, method, metric)) for metric in METRIC_NAMES),
                format_estimate(evaluation.estimate(protocol, method, POOLED, EXACT)),
            )
            for method in evaluation.methods
        ),
    )


def by_set(evaluation: Evaluation, protocol: ProtocolName) -> Table:
    """Tabulate the AUROC of every method on every set."""
    tested = {trial.tested_on for trial in evaluation.trials if trial.protocol == protocol}
    names = [one.name for one in evaluation.sets if one.name in tested]
    return Table(
        title="AUROC on each set",
        columns=("set", *evaluation.methods),
        rows=tuple(
            (
                name,
                *(format_value(evaluation.estimate(protocol, method, name, "auroc")) for method in evaluation.methods),
            )
            for name in names
        ),
    )


def compared(evaluation: Evaluation, protocol: ProtocolName) -> Table:
    """Tabulate the reference less every other method."""
    found = {(one.method, one.metric): one for one in evaluation.differences if one.protocol == protocol}
    methods = [name for name in evaluation.methods if (name, COMPARED[0]) in found]
    return Table(
        title="the difference, in hundredths, with paired 95 % intervals",
        columns=("fused less", *(METRIC_NAMES[metric] for metric in COMPARED), "AUROC ahead on"),
        rows=tuple(
            (
                method,
                *(format_difference(found[method, metric]) for metric in COMPARED),
                f"{found[method, 'auroc'].ahead} of {len(found[method, 'auroc'].of_each)}",
            )
            for method in methods
        ),
    )


def format_estimate(estimate: MetricEstimate | None) -> str:
    """Format as ``.912 (.897 to .926)``; a dash where there is none."""
    if estimate is None:
        return "-"
    if not len(estimate.drawn):
        return _digits(estimate.value)
    low, high = estimate.interval
    return f"{_digits(estimate.value)} ({_digits(low)} to {_digits(high)})"


def format_value(estimate: MetricEstimate | None) -> str:
    """Format the value alone."""
    return "-" if estimate is None else _digits(estimate.value)


def format_difference(one: Difference) -> str:
    """Format as ``+3.1 (+1.2 to +4.9), worst -0.4``."""
    return f"{_signed(one)}, worst {100 * one.worst:+.1f}"


def protocol_tables(evaluation: Evaluation, protocol: ProtocolName) -> list[Table]:
    """Return all tables of one protocol."""
    found = [by_metric(evaluation, protocol)]
    if evaluation.differences:
        found.append(compared(evaluation, protocol))
    if protocol != "one-to-one":
        found.append(by_set(evaluation, protocol))
    return found


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
        folder / METRICS,
        (
            *("protocol", "method", "trained_on", "tested_on", "metric", "rows", "seeds"),
            *("value", "low", "high", "sd_over_seeds"),
        ),
        (
            (
                *(one.protocol, one.method, one.trained_on, one.tested_on, one.metric, one.rows, len(one.by_seed)),
                *(one.value, *one.interval, one.spread),
            )
            for one in evaluation.estimates
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


def _metric(evaluation: Evaluation, protocol: str, method: str, metric: str) -> MetricEstimate | None:
    """The pooled estimate where there is one: one to one, rows aren't pooled."""
    pooled = evaluation.estimate(protocol, method, POOLED, metric) if metric == "ece" else None
    return pooled or evaluation.estimate(protocol, method, MEAN, metric)


def _signed(one: Difference) -> str:
    value, low, high = (100 * number for number in (one.value, *one.interval))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _digits(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
