"""What all commands share: where they print, how they show progress, what goes into the log, their common options."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import structlog
import typer
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

# Without emoji codes: rich would show the answer "1:100:2" as 1💯2.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)

Config = Annotated[Path, typer.Option("--config", "-c", help="The operator's file.")]
GUARD_YAML = Path("guard.yaml")


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """A bar that appears once there is a step to tell of, and goes when all are done."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(step: str, done: int, steps: int) -> None:
            if "weights" not in tasks or bar.tasks[tasks["weights"]].finished:
                tasks["weights"] = bar.add_task(step, total=steps)
            bar.update(tasks["weights"], description=f"preparing weights (once): {step}", completed=done)

        waiting = bar.add_task("loading models", total=None)
        yield tell
        bar.remove_task(waiting)


def bar() -> Progress:
    """A bar for work whose steps are counted."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    )


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for one piece of work; told how much is done and how much there is.

    What was done before the first time that it's told doesn't count for the time that remains.
    """
    with bar() as shown:
        task: TaskID | None = None

        def tell(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = shown.add_task(what, total=total, completed=done)
            shown.update(task, completed=done)

        yield tell


@contextmanager
def step_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each step of a piece of work; told the step, how much of it is done, and how much there is."""
    with bar() as shown:
        tasks: dict[str, TaskID] = {}

        def tell(step: str, done: int, steps: int) -> None:
            if step not in tasks:
                tasks[step] = shown.add_task(step, total=steps)
            shown.update(tasks[step], completed=done)

        yield tell


def configure_logs() -> None:
    """Standard output is for what was asked for: events go to standard error, from warnings up."""
    # It warns of a missing bfloat16 kernel that `models.local` switches off on purpose.
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
