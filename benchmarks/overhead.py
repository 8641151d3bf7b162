"""What guarding costs: guarded against bare generation of the same tokens, in turn, one thread.

python -m benchmarks.overhead [--pairs 25] [--tokens 48]
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.progress import track

from benchmarks.common import STORY, load, show
from ilis_guard.types import Precision


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall clock and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(precision: Precision, pairs: int, tokens: int) -> list[str]:
    """One row of the table."""
    model = load(precision, max_new_tokens=tokens)
    guarded = model.generate(STORY)
    if guarded.tokens != tokens or guarded.text != model.generate_bare(STORY):
        raise SystemExit(f"the two don't generate the same {tokens} tokens: got {guarded.tokens}")
    ratios: list[tuple[float, float]] = []
    seconds: list[float] = []
    for pair in track(range(pairs), description=precision):
        # Every other pair starts with the guarded run, so that a drift of the machine favours neither.
        calls = [lambda: model.generate(STORY), lambda: model.generate_bare(STORY)]
        first, second = (timed(call) for call in (calls if pair % 2 else reversed(calls)))
        with_guard, bare = (first, second) if pair % 2 else (second, first)
        ratios.append((with_guard[0] / bare[0], with_guard[1] / bare[1]))
        seconds.append(bare[0])
    wall, processor = zip(*ratios, strict=True)
    return [
        precision,
        f"{statistics.median(seconds):.2f}",
        f"{statistics.median(wall):.3f}",
        f"{min(wall):.3f} to {max(wall):.3f}",
        f"{statistics.median(processor):.3f}",
    ]


def main(
    pairs: Annotated[int, typer.Option(min=7)] = 25,
    tokens: Annotated[int, typer.Option(min=2)] = 48,
) -> None:
    """Print guarded / bare for SmolLM2 at full precision and NF4."""
    precisions: tuple[Precision, ...] = ("full", "nf4")
    show(
        f"guarded / bare, {tokens} tokens, {pairs} pairs, SmolLM2-135M-Instruct",
        ("precision", "bare, s (median)", "ratio, wall (median)", "range", "ratio, processor (median)"),
        [measure(precision, pairs, tokens) for precision in precisions],
    )


if __name__ == "__main__":
    typer.run(main)
