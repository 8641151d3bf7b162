"""The command `evaluate`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ilis_guard.cli.console import out, print_line, step_bars

if TYPE_CHECKING:  # with pyarrow, which not every command here needs
    from ilis_guard.lab.questions import Question

commands = typer.Typer()


@commands.command()
def evaluate(
    harvests: Annotated[list[Path], typer.Argument(metavar="HARVEST...", help="Harvested Parquet files of one model.")],
    to: Annotated[Path, typer.Option(help="The folder to write tables and report.html into.")],
    observations: Annotated[
        list[Path] | None, typer.Option(help="What `observe` wrote, a file for each harvest with sets that count.")
    ] = None,
    applied_to: Annotated[
        list[Path] | None, typer.Option(help="Harvests of the same questions at another precision.")
    ] = None,
    applied_observations: Annotated[list[Path] | None, typer.Option(help="As --observations, of --applied-to.")] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="The harvested questions, JSONL: finds sets on which a constant answer does as well."),
    ] = None,
    show_texts: Annotated[bool, typer.Option(help="Show questions and answers of the worst cases.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How often rows are split again.")] = 5,
) -> None:
    """Compare all methods on harvested answers, in-distribution and on sets never seen; write tables and a report."""
    from ilis_guard.cli.lab_tables import evaluation_view
    from ilis_guard.lab.evaluation.evaluate import Source, evaluate as run
    from ilis_guard.lab.evaluation.page import page
    from ilis_guard.lab.evaluation.tables import write_tables

    to.mkdir(parents=True, exist_ok=True)
    with step_bars() as progress:
        evaluation = run(
            Source(harvests=harvests, observations=observations or ()),
            applied=Source(harvests=applied_to, observations=applied_observations or ()) if applied_to else None,
            questions=_questions(questions, harvests) if questions else None,
            show_texts=show_texts,
            seeds=seeds,
            progress=progress,
        )
    # Readers of the report needn't know the files' folders.
    words = (Path(word).name if "/" in word else word for word in sys.argv[1:])
    report = page(evaluation, command=shlex.join(["ilis-guard", *words]))
    write_tables(evaluation, to)
    (to / "report.html").write_text(report, encoding="utf-8")
    out.print(evaluation_view(evaluation))
    print_line(f"tables and report in {to}")


def _questions(paths: list[Path], harvests: list[Path]) -> "list[Question]":
    """The questions that were harvested, by the key that they were grouped by then."""
    from ilis_guard.lab.attempts import read_attempts
    from ilis_guard.lab.questions import read_questions

    group_by = next((one for path in harvests if (one := read_attempts(path).harvest.group_by)), None)
    return [question for path in paths for question in read_questions(path, group_by=group_by)]
