"""Render a table as one HTML file that loads nothing and runs no scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import jinja2

from benchmarks.paper_table.differences import NAMES, PAIRS, SETTINGS
from benchmarks.paper_table.published import FIGURES, HEADINGS, HEADLINE, OverviewRow
from benchmarks.paper_table.tables import CONVENTION, MEAN_HEADINGS, SET_HEADINGS, PaperTable

STEPS: Final = (1, 2.5, 5, 10, 20)
"""Points from which on a cell has the next colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """A cell of a heat map."""

    text: str
    colour: str
    """A class of the page: ``p`` or ``n`` and a step, or nothing."""
    interval: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """The matrix of one setting and metric."""

    title: str
    names: tuple[str, ...]
    rows: tuple[tuple[HeatCell, ...], ...]
    """By the set trained on; each has a cell for every set tested on."""


def heat_maps(table: PaperTable) -> list[HeatMap]:
    """Make the heat maps of the headline's scorer and probe."""
    shown = [one for one in table.differences if (one.scorer, one.probe) == HEADLINE and one.metric in FIGURES]
    order = list(SETTINGS)
    shown.sort(key=lambda one: (order.index(one.setting), FIGURES.index(one.metric), one.trained_on, one.tested_on))
    found = []
    for (setting, metric), group in groupby(shown, key=lambda one: (one.setting, one.metric)):
        rows = [list(row) for _, row in groupby(group, key=lambda one: one.trained_on)]
        found.append(
            HeatMap(
                title=f"{SETTINGS[setting]}: {NAMES[metric]}",
                names=tuple(row[0].trained_on for row in rows),
                rows=tuple(tuple(_cell(one.points, one.interval) for one in row) for row in rows),
            )
        )
    return found


def page(table: PaperTable, overview: Sequence[OverviewRow], *, command: str) -> str:
    """Render the page.

    Args:
        table: the results of a model.
        overview: all models beside the paper.
        command: the command line that made it.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("page.html").read_text("utf-8"))
    return template.render(
        table=table,
        convention=CONVENTION,
        overview_lines=[row.values() for row in overview],
        overview_headings=HEADINGS,
        pairs=PAIRS,
        headline=HEADLINE,
        mean_headings=MEAN_HEADINGS,
        set_headings=SET_HEADINGS,
        heat_maps=heat_maps(table),
        steps=STEPS,
        command=command,
    )


def _cell(points: float, interval: tuple[float, float]) -> HeatCell:
    step = sum(abs(points) >= least for least in STEPS)
    low, high = interval
    return HeatCell(
        text=f"{points:+.1f}",
        colour=f"{'p' if points > 0 else 'n'}{step}" if step else "",
        interval=f"{low:+.1f} to {high:+.1f}",
    )
