"""The figures that tables show, in words: the same in the terminal and on the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ilis_guard.lab.evaluation.bootstrap import EXACT
from ilis_guard.lab.evaluation.evaluate import Evaluation
from ilis_guard.lab.evaluation.figures import MEAN, POOLED, Difference, Figure
from ilis_guard.lab.evaluation.trials import ProtocolName

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
"""Metrics that the reference is compared in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Methods by row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Each begins with its name."""


def protocols(evaluation: Evaluation) -> list[ProtocolName]:
    """Those that there are trials of, in the order of tables."""
    known = {trial.protocol for trial in evaluation.trials}
    return [name for name in PROTOCOL_NAMES if name in known]


def by_protocol(evaluation: Evaluation) -> Table:
    """Mean AUROC over sets, of every method under every protocol."""
    names = protocols(evaluation)
    return Table(
        title="AUROC, mean over sets, with 95 % bootstrap intervals",
        columns=("method", *(PROTOCOL_NAMES[name] for name in names)),
        rows=tuple(
            (method, *(shown(evaluation.figure(name, method, MEAN, "auroc")) for name in names))
            for method in evaluation.methods
        ),
    )


def ahead(evaluation: Evaluation) -> Table:
    """How far the reference is ahead of every other method in mean AUROC, under every protocol."""
    names = protocols(evaluation)
    found = {(one.protocol, one.method): one for one in evaluation.differences if one.metric == "auroc"}
    return Table(
        title="AUROC: fused less the other, in hundredths, with paired 95 % intervals",
        columns=("fused less", *(PROTOCOL_NAMES[name] for name in names)),
        rows=tuple(
            (method, *(_apart(found[name, method]) for name in names))
            for method in evaluation.methods
            if all((name, method) in found for name in names)
        ),
    )


def by_metric(evaluation: Evaluation, protocol: ProtocolName) -> Table:
    """All metrics of every method under one protocol."""
    return Table(
        title="mean over sets, with 95 % bootstrap intervals; ECE of all test rows together",
        columns=("method", *METRIC_NAMES.values(), "ECE if exact"),
        rows=tuple(
            (
                method,
                *(shown(_told(evaluation, protocol, method, metric)) for metric in METRIC_NAMES),
                shown(evaluation.figure(protocol, method, POOLED, EXACT)),
            )
            for method in evaluation.methods
        ),
    )


def by_set(evaluation: Evaluation, protocol: ProtocolName) -> Table:
    """AUROC of every method on every set."""
    tested = {trial.tested_on for trial in evaluation.trials if trial.protocol == protocol}
    names = [one.name for one in evaluation.sets if one.name in tested]
    return Table(
        title="AUROC on each set",
        columns=("set", *evaluation.methods),
        rows=tuple(
            (name, *(short(evaluation.figure(protocol, method, name, "auroc")) for method in evaluation.methods))
            for name in names
        ),
    )


def compared(evaluation: Evaluation, protocol: ProtocolName) -> Table:
    """The reference less every other method."""
    found = {(one.method, one.metric): one for one in evaluation.differences if one.protocol == protocol}
    methods = [name for name in evaluation.methods if (name, COMPARED[0]) in found]
    return Table(
        title="the difference, in hundredths, with paired 95 % intervals",
        columns=("fused less", *(METRIC_NAMES[metric] for metric in COMPARED), "AUROC ahead on"),
        rows=tuple(
            (
                method,
                *(difference(found[method, metric]) for metric in COMPARED),
                f"{found[method, 'auroc'].ahead} of {len(found[method, 'auroc'].of_each)}",
            )
            for method in methods
        ),
    )


def shown(figure: Figure | None) -> str:
    """``.912 (.897 to .926)``; a dash where there is none."""
    if figure is None:
        return "-"
    if not len(figure.drawn):
        return _short(figure.value)
    low, high = figure.interval
    return f"{_short(figure.value)} ({_short(low)} to {_short(high)})"


def short(figure: Figure | None) -> str:
    """The value alone."""
    return "-" if figure is None else _short(figure.value)


def difference(one: Difference) -> str:
    """``+3.1 (+1.2 to +4.9), worst -0.4``."""
    return f"{_apart(one)}, worst {100 * one.worst:+.1f}"


def of_protocol(evaluation: Evaluation, protocol: ProtocolName) -> list[Table]:
    """All that the page shows of one protocol."""
    found = [by_metric(evaluation, protocol)]
    if evaluation.differences:
        found.append(compared(evaluation, protocol))
    if protocol != "one-to-one":
        found.append(by_set(evaluation, protocol))
    return found


def _told(evaluation: Evaluation, protocol: str, method: str, metric: str) -> Figure | None:
    """A pooled metric where there is one: one to one, rows aren't pooled."""
    pooled = evaluation.figure(protocol, method, POOLED, metric) if metric == "ece" else None
    return pooled or evaluation.figure(protocol, method, MEAN, metric)


def _apart(one: Difference) -> str:
    value, low, high = (100 * number for number in (one.value, *one.interval))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)
