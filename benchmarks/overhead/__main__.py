"""``python -m benchmarks.overhead``."""

from itertools import groupby
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.overhead.cases import cases
from benchmarks.overhead.models import load
from benchmarks.overhead.pairs import Measured, measure, worst
from benchmarks.overhead.report import draw, print_table, write_csv

OVER_A_SECOND = 1.0
"""Seconds: a run that takes longer should cost at most 1.01, any other at most 1.03."""


def main(
    seconds: Annotated[
        float, typer.Option(min=0, help="A case gets about so long, and at least 7 pairs, 5 of long runs.")
    ] = 20,
    only: Annotated[str, typer.Option(help="Only cases whose name holds this; nothing is written then.")] = "",
    everything: Annotated[
        bool, typer.Option("--everything", help="The longest cases on every model: an hour instead of half.")
    ] = False,
) -> None:
    """Print guarded / bare, case by case."""
    wanted = [case for case in cases(everything=everything) if only in str(case)]
    measured: list[Measured] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        overall = bar.add_task("cases", total=len(wanted))
        for key, alike in groupby(wanted, key=lambda case: (case.model, case.precision, case.tokens)):
            model = load(*key)
            for case in alike:
                task = bar.add_task(str(case), total=None)
                tell = lambda done, pairs, task=task: bar.update(task, completed=done, total=pairs)  # noqa: E731
                measured.append(measure(case, model, seconds, tell))
                bar.remove_task(task)
                bar.advance(overall)
    print_table(measured)
    typer.echo(
        f"the dearest case: {worst(measured):.3f}; of those whose bare run takes over a second: "
        f"{worst(measured, at_least=OVER_A_SECOND):.3f} (medians of processor time)"
    )
    if not only:
        write_csv(measured)
        draw(measured)


if __name__ == "__main__":
    typer.run(main)
