"""Measure PyTorch's share of the guard's cost: bare runs, runs with empty hooks on every tapped module, guarded runs.

    python -m benchmarks.hooks [--rounds 15]

One prompt of 64 tokens, 32 new ones, SmolLM2 at full precision, one thread. Each round runs the three in
random order, so that none benefits from the run before it.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import track
from torch import nn

from benchmarks.common import machine, show
from benchmarks.overhead.models import SMOLLM2, load, prompts

PROMPT, TOKENS = 64, 32


@contextmanager
def empty_hooks(modules: Sequence[nn.Module]) -> Iterator[None]:
    """What PyTorch does for a hook that does nothing."""
    handles = [module.register_forward_hook(lambda *_: None) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def main(rounds: Annotated[int, typer.Option(min=5)] = 15) -> None:
    """Print what empty hooks and the guard add, by processor time."""
    model = load(SMOLLM2, "full", TOKENS)
    asked = prompts(model, 1, PROMPT)
    modules = [point.module for point in model._points]  # noqa: SLF001 - what is tapped, and nobody else asks

    def hooked() -> None:
        with empty_hooks(modules):
            model.generate_bare_batch(asked)

    runs: dict[str, Callable[[], object]] = {
        "bare": lambda: model.generate_bare_batch(asked),
        "empty hooks": hooked,
        "guarded": lambda: model.generate_batch(asked),
    }
    spent: dict[str, list[float]] = {name: [] for name in runs}
    lots = random.Random(0)  # noqa: S311 - nothing is secret here
    for _ in track(range(rounds), description="rounds"):
        for name in lots.sample(list(runs), k=len(runs)):
            since = time.process_time()
            runs[name]()
            spent[name].append(time.process_time() - since)
    show(
        f"processor time beside bare runs, medians of {rounds} rounds and quartiles, {machine()}, one thread",
        ("run", "ratio", "added, ms a token", "quartiles"),
        [[name, *_told(times, spent["bare"])] for name, times in spent.items()],
    )


def _told(times: Sequence[float], bare: Sequence[float]) -> list[str]:
    pairs = list(zip(times, bare, strict=True))
    added = [(both - alone) * 1000 / TOKENS for both, alone in pairs]
    low, middle, high = statistics.quantiles(added, n=4)
    ratio = statistics.median(both / alone for both, alone in pairs)
    return [f"{ratio:.3f}", f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]


if __name__ == "__main__":
    typer.run(main)
