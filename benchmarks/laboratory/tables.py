"""Tables of an evaluation: the committed CSV files, and the command's output."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.common import show
from benchmarks.laboratory.targets import Target
from ilis_guard.lab.attempt_schema import HarvestManifest
from ilis_guard.lab.evaluation.bootstrap import MetricEstimate
from ilis_guard.lab.evaluation.evaluate import REFERENCE, Evaluation
from ilis_guard.lab.evaluation.tables import COMPARED, write_tables

TARGETS: Final = "targets.csv"
MANIFESTS: Final = "manifests.csv"
OF_EACH_SET: Final = ("auroc", "auprc_correct")
"""Metrics that are committed set by set; all others as means, and where one fares worst in the differences."""


def write_summary(evaluation: Evaluation, targets: Sequence[Target], folder: Path) -> None:
    """Write what is committed: `ilis-guard evaluate`'s tables with fewer rows, how answers came about, and the targets.

    No text of a question or an answer is in it.

    Raises:
        OSError: a file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(
        replace(
            evaluation,
            estimates=tuple(one for one in evaluation.estimates if _is_kept(one)),
            differences=tuple(one for one in evaluation.differences if one.metric in COMPARED),
        ),
        folder,
    )
    write_csv(folder / TARGETS, [field.name for field in fields(Target)], [_target(one) for one in targets])
    rows = [manifest_row(one) for one in evaluation.manifests]
    write_csv(folder / MANIFESTS, list(rows[0]), [list(row.values()) for row in rows])


def show_sets(evaluation: Evaluation) -> None:
    """Print every set, how often the model is right on it, and whether it counts."""
    rows = [
        [
            one.name,
            str(one.rows),
            f"{one.share:.1%}",
            f"{one.low:.1%} to {one.high:.1%}",
            "-" if one.constant is None else f"{one.constant:.1%}",
            one.why_left_out or "counts",
        ]
        for one in evaluation.sets
    ]
    show("the sets", ("set", "rows", "right", "95 % interval", "best constant", "counts, or why not"), rows)


def show_targets(targets: Sequence[Target]) -> None:
    """Print what was expected and what came of it."""
    said = {True: "reached", False: "missed", None: ""}
    rows = [[one.what, one.wanted, one.found or "not measured", said[one.is_reached]] for one in targets]
    show(f"{REFERENCE}, in hundredths", ("target", "wanted", "found", ""), rows)


def _is_kept(estimate: MetricEstimate) -> bool:
    """Of pairs of sets, there are hundreds: the reference's matrix is kept, and means of all others'."""
    if not estimate.is_of_one_set:
        return True
    if estimate.protocol == "one-to-one":
        return (estimate.method, estimate.metric) == (REFERENCE, "auroc")
    return estimate.metric in OF_EACH_SET


def _target(one: Target) -> list[str]:
    reached = "" if one.is_reached is None else str(one.is_reached)
    return [one.what, one.wanted, one.found, reached]


def manifest_row(one: HarvestManifest) -> dict[str, Any]:
    """How answers came about."""
    return {
        "model": one.model,
        "precision": one.tapped().precision,
        "dtype": one.tapped().dtype,
        "fingerprint": str(one.fingerprint),
        "max_new_tokens": one.max_new_tokens,
        "questions_sha256": one.questions,
        **one.versions,
    }


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table.

    Raises:
        OSError: it can't be written.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)
