"""Requests a second through the guard, with and without batching, for 1 to 16 concurrent callers.

python -m benchmarks.throughput [--precision nf4] [--each 3] [--threads 1]

The tier is the one that the shipped bundle was fitted to, so every answer is scored and ruled on. Beside it stands what
transformers' own batched `generate` does with as many prompts at a time, without guard, threads or anybody who waits:
the ceiling. Every line is written to `benchmarks/results/throughput.csv`.
"""

import csv
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import transformers
import typer

from benchmarks.common import machine, show
from ilis_guard import Guard, Policy
from ilis_guard.config import read_config
from ilis_guard.lab.demo import QUESTIONS
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.tiers import load_tier
from ilis_guard.types import Message, Precision

RESULTS: Final = Path(__file__).parent / "results" / "throughput.csv"
CALLERS: Final = (1, 2, 4, 8, 16)
TARGET: Final = 2.5
"""What 8 callers get done with batching, at least, for each request that one gets done without."""
FEWEST: Final = 6
"""Requests that one caller makes: a single answer's length is chance."""
POLICY: Final = """
version: 1
name: throughput
rules:
  - {id: sure, when: uncertainty < 0.5, do: answer}
  - {id: unsure, when: "true", do: abstain}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """What callers got done."""

    seconds: float
    """From the first request to the last answer."""
    latencies: tuple[float, ...]
    """Seconds, of each request."""

    @property
    def per_second(self) -> float:
        """Requests."""
        return len(self.latencies) / self.seconds


def drive(ask: Callable[[str], object], prompts: Sequence[str], callers: int) -> Driven:
    """Let so many callers ask all these prompts, each its next one as soon as it has an answer.

    Args:
        ask: asks anything anywhere, a guard in this process or a server; what it raises is raised here.
        prompts: as many as there are requests.
        callers: threads.
    """
    left = iter(prompts)
    latencies: list[float] = []
    errors: list[BaseException] = []
    taking, begin = threading.Lock(), threading.Barrier(callers + 1)

    def call() -> None:
        begin.wait()
        while not errors:
            with taking:
                prompt = next(left, None)
            if prompt is None:
                return
            asked = time.perf_counter()
            try:
                ask(prompt)
            except BaseException as error:  # noqa: BLE001 - whatever it is, a throughput of failures is none
                errors.append(error)
            latencies.append(time.perf_counter() - asked)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    begin.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if errors:
        raise errors[0]
    return Driven(seconds=seconds, latencies=tuple(latencies))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One line of the table."""

    precision: Precision
    way: str
    """`alone` (each request by itself), `batched` (guard.yaml's `batch`) or `bare` (transformers, in batches)."""
    callers: int
    """Of `bare`, prompts in a batch."""
    driven: Driven


def measure(precision: Precision, batch: int, each: int) -> Iterator[Measured]:
    """Each number of callers in each way, one after the other on the same weights."""
    tier = load_tier(
        read_config("benchmarks/bundles.yaml")
        .tier(f"smollm2-135m-instruct-{precision}")
        .model_copy(update={"bundle": f"packaged:smollm2-135m-instruct-{precision}"})
    )
    model = tier.model
    assert isinstance(model, LocalModel), "it isn't batched"
    tiers = {"alone": tier, "batched": replace(tier, model=BatchedModel(model, batch))}
    guards = {way: Guard(tiers=[tier], policy=Policy.parse(POLICY)) for way, tier in tiers.items()}
    model.generate_batch([_conversation(question) for question in QUESTIONS])  # the first pass of a shape is slower
    for callers in CALLERS:
        prompts = list(islice(cycle(QUESTIONS), max(FEWEST, each * callers)))
        for way, guard in guards.items():
            yield Measured(precision=precision, way=way, callers=callers, driven=drive(guard.decide, prompts, callers))
        yield Measured(precision=precision, way="bare", callers=callers, driven=_bare(model, prompts, callers))


def _bare(model: LocalModel, prompts: Sequence[str], size: int) -> Driven:
    latencies: list[float] = []
    began = time.perf_counter()
    for some in _batches(prompts, size):
        asked = time.perf_counter()
        model.generate_bare_batch([_conversation(prompt) for prompt in some])
        latencies += [time.perf_counter() - asked] * len(some)
    return Driven(seconds=time.perf_counter() - began, latencies=tuple(latencies))


def _batches(prompts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def _conversation(question: str) -> tuple[Message, ...]:
    return (Message(role="user", content=question),)


def main(
    precision: Annotated[list[str] | None, typer.Option(help="full, nf4; default both.")] = None,
    batch: Annotated[int, typer.Option(min=2, help="guard.yaml's `batch`.")] = 16,
    each: Annotated[int, typer.Option(min=1, help="Requests a caller makes.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    to: Annotated[Path, typer.Option(help="The CSV file; lines of other precisions in it are kept.")] = RESULTS,
) -> None:
    """Measure, print a table for each precision, and write the CSV."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it partly
    for chosen in precision or ("full", "nf4"):
        if chosen not in ("full", "nf4"):
            raise typer.BadParameter(f"full or nf4, got {chosen!r}")
        measured = list(measure(chosen, batch, each))
        _print(measured, threads, batch)
        _write(to, measured, threads, batch)


def _print(measured: Sequence[Measured], threads: int, batch: int) -> None:
    one = next(each for each in measured if (each.way, each.callers) == ("alone", 1)).driven.per_second
    rows = [
        [
            str(each.callers),
            each.way,
            f"{each.driven.per_second:.2f}",
            f"{each.driven.per_second / one:.2f}",
            *(f"{value:.1f}" for value in np.percentile(each.driven.latencies, (50, 100))),
        ]
        for each in measured
    ]
    headings = ("callers", "way", "requests/s", "to one alone", "median, s", "longest, s")
    title = f"SmolLM2 {measured[0].precision}, batch {batch}, {machine()}, {threads} torch thread(s)"
    show(title, headings, rows)
    eight = next(each for each in measured if (each.way, each.callers) == ("batched", 8)).driven.per_second / one
    typer.echo(f"8 callers with batching: {eight:.2f} times one caller (target: {TARGET})")


COLUMNS: Final = (
    *("machine", "torch", "threads", "precision", "way", "batch", "callers"),
    *("requests", "seconds", "requests_per_second", "median_seconds", "longest_seconds"),
)


def _write(path: Path, measured: Sequence[Measured], threads: int, batch: int) -> None:
    precision = measured[0].precision
    kept: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if row["precision"] != precision]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(kept)
        for each in measured:
            driven, size = each.driven, {"alone": 1, "batched": batch, "bare": each.callers}[each.way]
            spent = (driven.seconds, driven.per_second, *np.percentile(driven.latencies, (50, 100)))
            values = [machine(), torch.__version__, threads, precision, each.way, size, each.callers]
            values += [len(driven.latencies), *(f"{value:.3f}" for value in spent)]
            table.writerow(dict(zip(COLUMNS, values, strict=True)))


if __name__ == "__main__":
    typer.run(main)
