"""Measure requests per second through the guard, with and without batching, for 1 to 16 concurrent callers.

python -m benchmarks.throughput [--precision nf4] [--callers 8] [--each 4] [--threads 1]

The tier is the one that the packaged bundle was fitted to, so every answer is scored and ruled on; answers are a few
words long. With `--tokens`, answers have that length and no score: the longer they are, the less it matters that
prompts are computed no faster in a batch. The upper limit is transformers' own batched `generate` on as many prompts at
a time, without a guard, threads or waiting callers. Every line is written to `benchmarks/results/throughput.csv`.
"""

import csv
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
import transformers
import typer

from benchmarks.common import machine, show
from ilis_guard import Guard, Policy
from ilis_guard.cascade.loading import load_tier
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.lab.demo import QUESTIONS
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message, Precision

RESULTS: Final = Path(__file__).parent / "results" / "throughput.csv"
PRECISIONS: Final[tuple[Precision, ...]] = ("full", "nf4")
CALLERS: Final = (1, 2, 4, 8, 16)
TARGET: Final = 2.5
"""What 8 callers get done with batching, at least, for each request that one gets done without."""
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
    processor: float
    """Seconds of processor time of this process: what a driven server uses isn't in it."""
    latencies: tuple[float, ...]
    """Seconds, of each request."""

    @property
    def per_second(self) -> float:
        """Requests."""
        return len(self.latencies) / self.seconds

    @property
    def per_processor_second(self) -> float:
        """Requests. On a machine that others use too, the steadier number."""
        return len(self.latencies) / self.processor


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
    began, processor = time.perf_counter(), time.process_time()
    begin.wait()
    for thread in threads:
        thread.join()
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    if errors:
        raise errors[0]
    return Driven(seconds=seconds, processor=processor, latencies=tuple(latencies))


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table."""

    precision: Precision
    tokens: int | None
    """Of each answer; None for as many as it takes."""
    way: str
    """`alone` (each request by itself), `batched` (guard.yaml's `batch`) or `bare` (transformers, in batches)."""
    callers: int
    """Of `bare`, prompts in a batch."""
    driven: Driven


def measure(
    precision: Precision, tokens: int | None, *, batch: int, each: int, all_callers: Sequence[int]
) -> Iterator[Measured]:
    """Each number of callers in each way, one after the other on the same weights."""
    name = f"smollm2-135m-instruct-{precision}"
    config = read_config("benchmarks/bundles.yaml").tier(name)
    if tokens is None:
        changes: dict[str, object] = {"bundle": f"packaged:{name}"}
    else:
        changes = {"max_new_tokens": tokens, "decoding": {"min_new_tokens": tokens}}
    tier = load_tier(config.model_copy(update=changes))
    model = tier.model
    assert isinstance(model, LocalModel), "it isn't batched"
    tiers = {"alone": tier, "batched": replace(tier, model=BatchedModel(model, batch))}
    guards = {way: Guard(tiers=[tier], policy=Policy.parse(POLICY)) for way, tier in tiers.items()}
    model.generate_batch([_conversation(question) for question in QUESTIONS])  # the first pass of a shape is slower
    for callers in all_callers:
        # Each question as often as any other: their answers differ in length.
        prompts = QUESTIONS * max(1, round(each * callers / len(QUESTIONS)))
        for way, guard in guards.items():
            yield Measured(precision, tokens, way, callers, drive(guard.decide, prompts, callers))
        yield Measured(precision, tokens, "bare", callers, _bare(model, prompts, callers))


def _bare(model: LocalModel, prompts: Sequence[str], size: int) -> Driven:
    latencies: list[float] = []
    began, processor = time.perf_counter(), time.process_time()
    for start in range(0, len(prompts), size):
        asked = time.perf_counter()
        some = [_conversation(prompt) for prompt in prompts[start : start + size]]
        model.generate_bare_batch(some)
        latencies += [time.perf_counter() - asked] * len(some)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return Driven(seconds=seconds, processor=processor, latencies=tuple(latencies))


def _conversation(question: str) -> tuple[Message, ...]:
    return (Message(role="user", content=question),)


def main(
    precision: Annotated[list[str] | None, typer.Option(help="full, nf4; default both.")] = None,
    batch: Annotated[int, typer.Option(min=2, help="guard.yaml's `batch`.")] = 16,
    each: Annotated[int, typer.Option(min=1, help="About so many requests each caller makes.")] = 4,
    callers: Annotated[list[int] | None, typer.Option(min=1, help="Default 1, 2, 4, 8, 16.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Unscored answers of so many tokens; default the scored ones.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    to: Annotated[Path, typer.Option(help="The CSV file; what else it holds is kept.")] = RESULTS,
) -> None:
    """Measure, print a table for each precision, and write the CSV."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it partly
    for chosen in PRECISIONS:
        if precision and chosen not in precision:
            continue
        measured = list(measure(chosen, tokens, batch=batch, each=each, all_callers=callers or CALLERS))
        _print(measured, threads, batch)
        _write(to, measured, threads, batch)


def _print(measured: Sequence[Measured], threads: int, batch: int) -> None:
    found = {(each.way, each.callers): each.driven for each in measured}
    one, eight = found.get(("alone", 1)), found.get(("batched", 8))
    rows = []
    for each in measured:
        driven = each.driven
        rates = [driven.per_second, driven.per_processor_second]
        to_one = ["", ""] if one is None else [f"{driven.per_second / one.per_second:.2f}"]
        if one is not None:
            to_one.append(f"{driven.per_processor_second / one.per_processor_second:.2f}")
        latencies = np.percentile(driven.latencies, (50, 100))
        rows.append([str(each.callers), each.way, *(f"{value:.2f}" for value in (*rates, *latencies)), *to_one])
    headings = ("callers", "way", "a second", "a processor s", "median, s", "longest, s", "to one", "by processor")
    show(f"requests, SmolLM2 {measured[0].precision}, batch {batch}, {machine()}, {threads} thread", headings, rows)
    if one is not None and eight is not None:
        wall, processor = (getattr(eight, rate) / getattr(one, rate) for rate in ("per_second", "per_processor_second"))
        typer.echo(f"8 callers to one: {wall:.2f} by the clock, {processor:.2f} by processor time (target: {TARGET})")


COLUMNS: Final = (
    *("machine", "torch", "threads", "precision", "tokens", "way", "batch", "callers"),
    *("requests", "seconds", "processor_seconds", "requests_per_second", "median_seconds", "longest_seconds"),
)


def _write(path: Path, measured: Sequence[Measured], threads: int, batch: int) -> None:
    precision = measured[0].precision
    anew = {(precision, str(each.tokens or ""), str(each.callers)) for each in measured}
    kept: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [
                row for row in csv.DictReader(file) if (row["precision"], row["tokens"], row["callers"]) not in anew
            ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(kept)
        for each in measured:
            driven, size = each.driven, {"alone": 1, "batched": batch, "bare": each.callers}[each.way]
            spent = (driven.seconds, driven.processor, driven.per_second, *np.percentile(driven.latencies, (50, 100)))
            values = [machine(), torch.__version__, threads, precision, each.tokens, each.way, size, each.callers]
            values += [len(driven.latencies), *(f"{value:.3f}" for value in spent)]
            table.writerow(dict(zip(COLUMNS, values, strict=True)))


if __name__ == "__main__":
    typer.run(main)
