"""The paper's published figures, and where they stand beside what was measured here.

arXiv:2603.22299, of ten data sets. What isn't known of it here: which class the AUPRC finds, whether "Brier" is a Brier
score or 1 less it, whether scorers were fitted again at 4 bits, and nearly all figures of single models.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.paper_table.differences import CELLS, SETTINGS, format_points
from benchmarks.paper_table.matrix import PROBES, SCORERS
from benchmarks.paper_table.models import model_name

MODELS: Final = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-14B", "mistralai/Mistral-7B-Instruct-v0.3")
ALL: Final = "all three"
SUMMARY: Final = "summary.csv"
HEADLINE: Final = (SCORERS[0], PROBES[0])
"""The scorer and the probe that the paper compares: both read the MLPs' outputs."""
FIGURES: Final = ("auprc_correct", "auprc_wrong", "brier_as_fitted", "brier")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFigure:
    """What the paper says of one part of its matrix, signature less probing, in points."""

    model: str
    precision: str
    cells: str
    auprc: str
    brier: str


PUBLISHED: Final = (
    PublishedFigure(model=ALL, precision=SETTINGS["full"], cells="in-distribution", auprc="within -1.8", brier="+4.9"),
    PublishedFigure(
        model=ALL, precision=SETTINGS["full"], cells="off-diagonal", auprc="up to +2.86", brier="up to +21.02"
    ),
    PublishedFigure(
        model=MODELS[1],
        precision="4 bits (refitted or not: not said)",
        cells="on average",
        auprc="+1.94",
        brier="+5.33",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewRow:
    """One part of one model's matrix."""

    model: str
    precision: str
    cells: str
    published_auprc: str = ""
    published_brier: str = ""
    measured: Mapping[str, str] = field(default_factory=dict)
    """By the names of `FIGURES`, where it was measured here."""

    def values(self) -> list[str]:
        """In the order of `HEADINGS`."""
        here = [self.measured.get(name, "") for name in FIGURES]
        return [self.model, self.precision, self.cells, self.published_auprc, self.published_brier, *here]


HEADINGS: Final = (
    *("model", "precision", "cells", "AUPRC, paper", "Brier, paper"),
    *("AUPRC right, here", "AUPRC wrong, here", "Brier as fitted, here", "Brier calibrated, here"),
)


def overview(results: Path) -> list[OverviewRow]:
    """Put the paper's figures and all models that were measured into one table; what nobody measured is empty.

    Args:
        results: a folder with a folder for each model.
    """
    rows = [
        OverviewRow(
            model=one.model,
            precision=one.precision,
            cells=one.cells,
            published_auprc=one.auprc,
            published_brier=one.brier,
        )
        for one in PUBLISHED
    ]
    folders = {path.parent.name: path for path in sorted(results.glob(f"*/{SUMMARY}"))}
    for model in MODELS:
        path = folders.pop(model_name(model), None)
        rows += _empty(model) if path is None else _measured(model, path)
    for name, path in folders.items():
        rows += _measured(name, path)
    return rows


def _empty(model: str) -> Iterator[OverviewRow]:
    for precision in SETTINGS.values():
        for cells in CELLS:
            yield OverviewRow(model=model, precision=precision, cells=cells)


def _measured(model: str, path: Path) -> Iterator[OverviewRow]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if (line["scorer"], line["probe"]) == HEADLINE]
    for setting, precision in SETTINGS.items():
        for cells in CELLS:
            known = {
                line["metric"]: format_points(*(float(line[name] or "nan") for name in ("points", "low", "high")))
                for line in lines
                if (line["setting"], line["cells"]) == (setting, cells)
            }
            yield OverviewRow(model=model, precision=precision, cells=cells, measured=known)
