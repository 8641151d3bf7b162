"""Prepare the environments, start the workers, measure in rounds, print and write the results."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import track

from benchmarks.common import STORY
from benchmarks.neighbours.environments import BUILD, prepare
from benchmarks.neighbours.report import WIDTH, processor_name, table, write_csv
from benchmarks.neighbours.roster import NEIGHBOURS, ROOT, Neighbour
from benchmarks.neighbours.rounds import Outcome, measure
from benchmarks.neighbours.worker import Worker
from ilis_guard.models.weights import converted_folder, packaged_weights

PROMPTS: Final = (
    STORY[0].content,
    "Describe a farmer's day from dawn to dusk, hour by hour and in great detail.",
    "Explain step by step and at length how bread is baked, from the grain to the loaf.",
)
"""Their answers run into any limit that is measured here."""
RESULTS: Final = ROOT / "benchmarks" / "results" / "neighbours.csv"
ENOUGH_PAIRS: Final = 7

console = Console(width=max(Console().width, WIDTH))


def chosen(only: list[str]) -> list[Neighbour]:
    """The neighbours of these names, or all."""
    names = [neighbour.name for neighbour in NEIGHBOURS]
    if unknown := set(only) - set(names):
        raise typer.BadParameter(f"no neighbour is called {sorted(unknown)!r}; there are {names!r}")
    return [neighbour for neighbour in NEIGHBOURS if not only or neighbour.name in only]


def enter(outcome: Outcome, torch: str, folder: Path, tokens: int, workers: ExitStack) -> Worker:
    """Prepare a neighbour's environment and start its worker there.

    Raises:
        NeighbourError: one of both fails.
    """
    neighbour = outcome.neighbour
    python = prepare(
        neighbour.environment, torch, lambda step: console.print(f"environment {neighbour.environment.name}: {step}")
    )
    console.print(f"{neighbour.title}: loading")
    command = [str(python), *neighbour.worker]
    worker = workers.enter_context(Worker(command, BUILD / f"{neighbour.name}.worker.log"))
    outcome.about = worker.load(folder, tokens)
    return worker


def main(
    pairs: Annotated[int, typer.Option(min=2, help="Rounds that are measured.")] = ENOUGH_PAIRS,
    tokens: Annotated[int, typer.Option(min=2, help="Length of an answer.")] = 48,
    only: Annotated[list[str] | None, typer.Option(help="Measure this one; may be given several times.")] = None,
    torch: Annotated[str, typer.Option(help="What pip installs first in each environment.")] = "torch==2.13.0",
) -> None:
    """Print what scoring costs in each library, scored / bare, and write it down after a full run."""
    outcomes = [Outcome(neighbour=neighbour) for neighbour in chosen(only or [])]
    folder = converted_folder(packaged_weights("smollm2-135m-instruct"))
    running: list[tuple[Outcome, Worker]] = []
    with ExitStack() as workers:
        for outcome in outcomes:
            with outcome.attempt():
                running.append((outcome, enter(outcome, torch, folder, tokens, workers)))
        measure(running, PROMPTS, tokens, track(range(pairs + 1), description="rounds", console=console))
    title = f"scored / bare, {tokens} tokens, medians of {pairs} pairs, SmolLM2-135M-Instruct, {processor_name()}"
    console.print(table(outcomes, title))
    for outcome in outcomes:
        console.print(f"{outcome.neighbour.title}: {outcome.neighbour.note}")
    if not only and pairs >= ENOUGH_PAIRS:
        write_csv(outcomes, tokens, RESULTS)
        console.print(f"every measurement: {RESULTS.relative_to(ROOT)}")
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
