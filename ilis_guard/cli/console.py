r"""The terminal: output, tables, progress bars, logs, and the options that all commands share.

Texts of callers, models and files are escaped: their markup is printed literally, and characters that would control
the terminal (colours, cursor, clipboard, reading direction) are printed as ``\x1b`` or the like.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich import markup
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ilis_guard.types import Action

# Without emoji codes: rich would print the answer "1:100:2" as 1💯2.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)

Config = Annotated[Path, typer.Option("--config", "-c", help="The operator's file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
GUARD_YAML: Final = Path("guard.yaml")
SHORT_ID: Final = 8
"""Characters of an id in tables; commands take such a prefix for the id."""

_COLOURS: Final = {
    Action.ANSWER: "green",
    Action.ABSTAIN: "red",
    Action.RETRY: "yellow",
    Action.ESCALATE: "magenta",
}
# Control characters but tab and line feed, direction overrides, and half characters, which no terminal takes.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    """Escape a text of somebody else's for printing."""
    return markup.escape(_CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text))


def color_action(action: Action) -> str:
    """An action in its colour."""
    return f"[{_COLOURS[action]}]{action.value}[/]"


def format_time(seconds: float | None) -> str:
    """A time to the minute; empty where there is none."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def count(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_line(text: str) -> None:
    """Print one line on standard output, whatever the terminal's width."""
    out.print(text, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    print(json.dumps(value))  # noqa: T201 - rich would wrap the JSON


def make_table(*columns: str, title: str | None = None, right: Collection[str] = ()) -> Table:
    """Make an empty table that wraps long cells.

    Args:
        columns: the headings.
        title: stands above the table.
        right: the columns that are aligned to the right.
    """
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return table


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """A bar while models load. Call the result with the step of the weights' preparation, its number, and the total."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bars:
        weights: list[TaskID] = []

        def update(step: str, done: int, total: int) -> None:
            if not weights or bars.tasks[weights[-1]].finished:
                weights.append(bars.add_task(step, total=total))
            bars.update(weights[-1], description=f"preparing weights (once): {step}", completed=done)

        loading = bars.add_task("loading models", total=None)
        yield update
        bars.remove_task(loading)


@contextmanager
def step_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each step of a task. Call the result with the step, how much of it is done, and how much there is.

    The estimate of the remaining time leaves out what was done before a step's first call.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def update(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, completed=done)
            bars.update(tasks[step], completed=done)

        yield update


@contextmanager
def progress_bar(step: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for one task. Call the result with how much is done and how much there is."""
    with step_bars() as update:
        yield partial(update, step)


def configure_logs() -> None:
    """Write log events from warnings up to standard error; standard output is for the command's result."""
    import structlog

    # bitsandbytes warns of a missing bfloat16 kernel that `models.local` disables on purpose.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
