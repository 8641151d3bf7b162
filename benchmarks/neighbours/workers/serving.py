"""Communication with the driver: one JSON object per line, in and out, whatever the library prints meanwhile."""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

Run = Callable[[str], list[int]]
"""Answers a prompt; gives the answer's tokens."""
INSTALLERS: Final = frozenset({"pip", "setuptools"})
"""In every environment from the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A library at work on a loaded model."""

    attention: str
    """The attention implementation that it runs with."""
    runs: Mapping[str, Run]
    """`scored`, and `bare` with the same attention; `bare_sdpa` too where that isn't sdpa."""


def serve(library: str, load: Callable[[Path, int], Subject]) -> None:
    """Load what the first line asks for, say what was loaded, then run what each further line asks for.

    Requests and answers, in this order:

        {"folder": ..., "tokens": ...}      {"version": ..., "transformers": ..., ...}, see `_about`
        {"run": ..., "prompt": ...}         {"wall_seconds": ..., "processor_seconds": ..., "token_ids": [...]}

    or, where something failed, `{"error": ...}`, after which the worker ends. It also ends with its input.

    Args:
        library: the package that is measured.
        load: is given the folder of the weights and how many tokens an answer has.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # From here on, what the library prints goes where its warnings go and can't be taken for an answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")

    try:
        order = json.loads(sys.stdin.readline())
        subject = load(Path(order["folder"]), order["tokens"])
        answer(_about(library, subject))
        for line in sys.stdin:
            request = json.loads(line)
            answer(_timed(subject.runs[request["run"]], request["prompt"]))
    except Exception as error:
        # Its first line alone: the whole of it stands in the log.
        answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        raise


def _about(library: str, subject: Subject) -> dict[str, Any]:
    packages = {distribution.name.lower() for distribution in metadata.distributions()}
    return {
        "version": metadata.version(library),
        "transformers": metadata.version("transformers"),
        "torch": metadata.version("torch"),
        "packages": len(packages - INSTALLERS),
        "attention": subject.attention,
        "runs": list(subject.runs),
    }


def _timed(run: Run, prompt: str) -> dict[str, Any]:
    gc.collect()  # so that no run pays for what the one before left behind
    wall, processor = time.perf_counter(), time.process_time()
    token_ids = run(prompt)
    return {
        "wall_seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "token_ids": token_ids,
    }
