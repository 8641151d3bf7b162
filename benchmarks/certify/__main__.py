"""Measure how often a certified threshold breaks its promise and how much it answers, beside MAPIE's risk control.

python -m benchmarks.certify [--draws 1000] [--seed 0]
"""

import csv
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from benchmarks.certify.populations import POPULATIONS, Population
from benchmarks.neighbours.environments import prepare
from benchmarks.neighbours.roster import ROOT, Environment
from ilis_guard.scoring import certify

MAPIE: Final = Environment(name="mapie", requirements=Path(__file__).parent / "mapie.txt")
OURS: Final = "ilis_guard"
METHODS: Final = ("default", "default, up to 0.89", "fixed sequence, 5 starts")
"""MAPIE's: its default (Bonferroni-Holm over 100 thresholds of confidence, 0 to 0.99), which names none where one of
its thresholds answers no row at all; the same up to 0.89; and a walk from the surest answers. With one start, which is
the latter's default, it names nothing: few rows are as sure as its first threshold."""
MAX_ERROR: Final = 0.1
CONFIDENCE: Final = 0.9
RESULTS: Final = ROOT / "benchmarks" / "results" / "certify.csv"
ENOUGH_DRAWS: Final = 1000

console = Console(width=max(Console().width, 130))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a method does on a population."""

    population: str
    rows: int
    method: str
    draws: int
    certified: float
    """Share of draws in which it names a threshold."""
    coverage: float
    """Mean share of all requests that are answered; none where it names no threshold."""
    broken: float
    """Share of draws in which more than `MAX_ERROR` of the answers are wrong."""


def measure(population: Population, draws: int, seed: int, python: Path) -> Iterator[Outcome]:
    """Draw calibration sets and give the same ones to every method."""
    random = np.random.default_rng(seed)
    drawn = [population.draw(random) for _ in range(draws)]
    ours = [certify(*rows, max_error=MAX_ERROR, confidence=CONFIDENCE).threshold for rows in drawn]
    yield _outcome(population, OURS, ours)
    with TemporaryDirectory() as folder:
        file, found = Path(folder) / "draws.npz", Path(folder) / "thresholds.npy"
        np.savez(file, uncertainty=np.array([u for u, _ in drawn]), wrong=np.array([w for _, w in drawn]))
        for method in METHODS:
            worker = [str(python), "-m", "benchmarks.certify.mapie_worker", method, str(file), str(found)]
            subprocess.run([*worker, str(MAX_ERROR), str(CONFIDENCE)], cwd=ROOT, check=True)
            theirs = np.load(found).tolist()
            yield _outcome(population, f"MAPIE, {method}", [None if np.isnan(each) else each for each in theirs])


def _outcome(population: Population, method: str, thresholds: list[float | None]) -> Outcome:
    truths = [population.truth(threshold) for threshold in thresholds]
    return Outcome(
        population=population.name,
        rows=population.rows,
        method=method,
        draws=len(thresholds),
        certified=float(np.mean([threshold is not None for threshold in thresholds])),
        coverage=float(np.mean([coverage for coverage, _ in truths])),
        broken=float(np.mean([error > MAX_ERROR for _, error in truths])),
    )


def write_csv(outcomes: list[Outcome], file: Path) -> None:
    """One line a population and method."""
    with file.open("w", newline="") as output:
        writer = csv.writer(output, lineterminator="\n")
        writer.writerow([*Outcome.__slots__, "max_error", "confidence"])
        for each in outcomes:
            values = [getattr(each, name) for name in Outcome.__slots__]
            rounded = [f"{value:.4f}" if isinstance(value, float) else value for value in values]
            writer.writerow([*rounded, MAX_ERROR, CONFIDENCE])


def main(draws: Annotated[int, typer.Option(min=2)] = ENOUGH_DRAWS, seed: int = 0) -> None:
    """Print the table; a full run is written down. Fails where our promise is broken oftener than chance explains."""
    python = prepare(MAPIE, None, lambda step: console.print(f"environment mapie: {step}"))
    table = Table(
        title=f"at most {MAX_ERROR:.0%} wrong, confidence {CONFIDENCE:.0%}, {draws} draws", title_justify="left"
    )
    for heading in ("population", "rows", "method"):
        table.add_column(heading, justify="left")
    for heading in ("certified", "coverage", "broken"):
        table.add_column(heading, justify="right")
    outcomes: list[Outcome] = []
    for population in POPULATIONS:
        console.print(population.name)
        for each in measure(population, draws, seed, python):
            shares = [f"{share:.1%}" for share in (each.certified, each.coverage, each.broken)]
            table.add_row(each.population, str(each.rows), each.method, *shares)
            outcomes.append(each)
    console.print(table)
    if draws >= ENOUGH_DRAWS:
        write_csv(outcomes, RESULTS)
    most = binom.ppf(0.9999, draws, 1 - CONFIDENCE) / draws
    if any(each.broken > most for each in outcomes if each.method == OURS):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
