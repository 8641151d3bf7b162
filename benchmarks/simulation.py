"""Measure the simulation of two policies on a million recorded attempts, on one core.

python -m benchmarks.simulation [--rows 1000000] [--old default] [--new cost-first]
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from benchmarks.common import machine, show
from ilis_guard.lab.attempt_schema import AttemptManifest, AttemptTier, schema_of
from ilis_guard.lab.attempts import AttemptTable, write_attempts
from ilis_guard.types import STATISTICS

TIERS = ("small", "large")
MANIFEST = AttemptManifest(
    origin="harvest",
    tiers=tuple(AttemptTier(name=tier, bundle="made", prompt_bundle="made") for tier in TIERS),
)


def table(rows: int, seed: int = 0) -> pa.Table:
    """A table of attempts of so many rows, half of them each tier's; no two rows have the same numbers."""
    random = np.random.default_rng(seed)
    requests = rows // len(TIERS)
    topics = np.array([json.dumps({"topic": topic}) for topic in ("law", "medicine", "sport", "travel")])
    labels = topics[random.integers(len(topics), size=requests)]
    hardness = random.normal(size=requests)
    return pa.concat_tables([_tier(random, tier, hardness - larger, labels) for larger, tier in enumerate(TIERS)])


def _tier(random: np.random.Generator, tier: str, hardness: np.ndarray, labels: np.ndarray) -> pa.Table:
    requests = len(hardness)
    wrong = random.random(requests) < 1 / (1 + np.exp(-2 * hardness))

    def told(noise: float) -> np.ndarray:
        """An uncertainty that knows more or less."""
        return np.asarray(1 / (1 + np.exp(-2 * (hardness + noise * random.normal(size=requests)))))

    columns: dict[str, Any] = {
        "id": [f"request-{number}" for number in range(requests)],
        "tier": [tier] * requests,
        "dataset": [""] * requests,
        "split": ["unseen"] * requests,
        "stage": ["answer"] * requests,
        "uncertainty": told(0.3),
        "typicality": random.random(requests),
        "calibrated": [True] * requests,
        "prompt_calibrated": [True] * requests,
        "prompt_uncertainty": told(1.0),
        "prompt_typicality": random.random(requests),
        **{name: -random.random(requests) for name in STATISTICS},
        "tokens": random.integers(1, 64, size=requests),
        "seconds": random.exponential(0.5, requests),
        "cost": random.exponential(0.01, requests),
        "prompt_seconds": random.exponential(0.05, requests),
        "prompt_cost": random.exponential(0.001, requests),
        "prompt_tokens": random.integers(1, 400, size=requests),
        "prompt_length": np.arange(requests) % 400,
        "text_length": random.integers(1, 300, size=requests),
        "finish_reason": ["stop"] * requests,
        "error": [""] * requests,
        "labels": labels,
        "wrong": wrong,
        "probability": pa.nulls(requests, pa.float64()),
    }
    return pa.table(columns, schema=schema_of(MANIFEST))


def main(
    rows: Annotated[int, typer.Option(min=1000)] = 1_000_000, old: str = "default", new: str = "cost-first"
) -> None:
    """Make the table, run the command on one core, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scored.parquet"
        write_attempts(path, AttemptTable(manifest=MANIFEST, table=table(rows)))
        page = Path(folder) / "page.html"
        command = [
            sys.executable,
            "-c",
            "from ilis_guard.cli import main; main()",
            "policy",
            "simulate",
            old,
            new,
            "--on",
            str(path),
        ]
        core = min(os.sched_getaffinity(0))
        started = time.perf_counter()
        subprocess.run([*command, "--html", str(page)], check=True, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
        seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cells = [f"{rows:,}", f"{seconds:.1f}", f"{used.ru_utime + used.ru_stime:.1f}", f"{used.ru_maxrss / 1024:,.0f}"]
    title = f"policy simulate {old} {new}, one core of {machine()}"
    show(title, ("rows", "seconds", "of which on the processor", "most memory, MiB"), [cells])


if __name__ == "__main__":
    typer.run(main)
