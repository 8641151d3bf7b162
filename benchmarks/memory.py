"""Measure the peak resident memory of guarded and of bare generation, each in its own process.

    python -m benchmarks.memory [--runs 3]

Linux only: the peak is reset through /proc before it is measured.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from benchmarks.common import show
from benchmarks.overhead.models import Shape, load, prompts

MIB = 1024
TOKENS = (32, 256, 2048)
PROMPT = 32
MODEL = Shape(layers=12, hidden=576)
"""SmolLM2's width and vocabulary, and room for 2,048 tokens, which SmolLM2 hasn't."""


def kibibytes(name: str) -> int:
    """A figure of this process, such as VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {name}")


def peak_growth(*, guarded: bool, tokens: int) -> int:
    """KiB by which one generation raises the peak above what the loaded, warmed-up model holds."""
    model = load(MODEL, "full", tokens)
    (asked,) = prompts(model, 1, PROMPT)
    model.generate_bare(asked)
    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("VmRSS")
    if guarded:
        model.generate(asked)
    else:
        model.generate_bare(asked)
    return kibibytes("VmHWM") - before


def in_own_process(*, guarded: bool, tokens: int) -> float:
    """MiB, measured in a fresh process, whose allocator keeps little of what was freed: the peak is what is held."""
    code = f"from benchmarks.memory import peak_growth; print(peak_growth(guarded={guarded}, tokens={tokens}))"
    kept = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept)
    return int(done.stdout.split()[-1]) / MIB


def main(runs: Annotated[int, typer.Option(min=3)] = 3) -> None:
    """Print the peak of guarded and bare generation, and what guarding adds."""
    rows = []
    for tokens in TOKENS:
        peaks: dict[bool, list[float]] = {True: [], False: []}
        for _ in track(range(runs), description=f"{tokens} tokens"):
            for guarded in (True, False):
                peaks[guarded].append(in_own_process(guarded=guarded, tokens=tokens))
        with_guard, bare = statistics.median(peaks[True]), statistics.median(peaks[False])
        rows.append([str(tokens), f"{bare:.1f}", f"{with_guard:.1f}", f"{with_guard - bare:.1f}"])
    show(
        f"peak growth of resident memory, MiB, medians of {runs}, {MODEL} at full precision",
        ("generated tokens", "bare", "guarded", "difference"),
        rows,
    )


if __name__ == "__main__":
    typer.run(main)
