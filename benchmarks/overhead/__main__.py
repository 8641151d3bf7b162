"""``python -m benchmarks.overhead``."""

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.overhead.cases import cases
from benchmarks.overhead.models import load
from benchmarks.overhead.pairs import measure, worst
from benchmarks.overhead.report import CSV, append_to_csv, draw, print_table, read_csv

OVER_A_SECOND = 1.0
"""Seconds: a run that takes longer should cost at most 1.01, any other at most 1.03."""


app = typer.Typer(help="What guarding costs.")


@app.command("run")
def main(
    seconds: Annotated[
        float, typer.Option(min=0, help="A case gets about so long, and at least 7 pairs, 5 of long runs.")
    ] = 20,
    only: Annotated[str, typer.Option(help="Only cases whose name holds this.")] = "",
    to: Annotated[Path, typer.Option(help="The CSV file to write, pair by pair.")] = CSV,
    everything: Annotated[
        bool, typer.Option("--everything", help="The longest cases on every model: an hour instead of half.")
    ] = False,
) -> None:
    """Measure guarded / bare, case by case."""
    wanted = [case for case in cases(everything=everything) if only in str(case)]
    to.unlink(missing_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        overall = bar.add_task("cases", total=len(wanted))
        for key, alike in groupby(wanted, key=lambda case: (case.model, case.precision, case.tokens)):
            model = load(*key)
            for case in alike:
                task = bar.add_task(str(case), total=None)
                tell = lambda done, pairs, task=task: bar.update(task, completed=done, total=pairs)  # noqa: E731
                append_to_csv(to, measure(case, model, seconds, tell))
                bar.remove_task(task)
                bar.advance(overall)
    show(to)


@app.command()
def show(to: Annotated[Path, typer.Argument(help="A CSV file of measured pairs.")] = CSV) -> None:
    """Print the table of what was measured, and draw it."""
    measured = read_csv(to)
    print_table(measured)
    typer.echo(
        f"the dearest case: {worst(measured):.3f}; of those whose bare run takes over a second: "
        f"{worst(measured, at_least=OVER_A_SECOND):.3f} (medians of processor time)"
    )
    if to == CSV:
        draw(measured)


if __name__ == "__main__":
    app()
