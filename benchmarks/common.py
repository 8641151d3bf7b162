"""Models and table output that several benchmarks share."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
import transformers
from rich.console import Console
from rich.table import Table

from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message, Precision

SMOLLM2: Final = "packaged:smollm2-135m-instruct"
STORY: Final = (Message(role="user", content="Tell me a long story about a lighthouse, a storm and a lost ship."),)
"""A question whose answer runs into any limit that is measured here."""


def load(precision: Precision, max_new_tokens: int) -> LocalModel:
    """SmolLM2, with one torch thread: what is measured doesn't depend on the machine's other cores."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it partly
    return LocalModel.load(SMOLLM2, precision=precision, max_new_tokens=max_new_tokens)


def machine() -> str:
    """The processor's name and how many of its cores are ours."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
