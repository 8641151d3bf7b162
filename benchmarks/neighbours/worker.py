"""The driver's side of a worker, a process in a neighbour's environment that runs measurements on request."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from benchmarks.neighbours.roster import ROOT, NeighbourError

SCORED: Final = "scored"
BARE: Final = "bare"
BARE_SDPA: Final = "bare_sdpa"
"""Bare with the attention that transformers chooses by itself, where a neighbour needs another one."""
ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",  # processors are compared; some libraries would take a GPU by themselves
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # TruthTorchLM's litellm fetches prices while it is imported
    "PYTHONNOUSERSITE": "1",
}
Answer = TypeVar("Answer", bound=BaseModel)


class About(BaseModel):
    """What a worker says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: str
    """Of the library that is measured."""
    transformers: str
    torch: str
    packages: int
    """How many its environment holds, without pip and setuptools."""
    attention: str
    runs: list[str]


class Measured(BaseModel):
    """One run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    wall_seconds: float
    processor_seconds: float
    """Of all threads of the worker."""
    token_ids: list[int]
    """Of the answer."""


class Worker:
    """A worker's process.

    Args:
        command: what to start.
        log: where everything goes that the worker prints.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=inherited | ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def __enter__(self) -> Self:
        """The process runs already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process; it holds nothing worth waiting for."""
        self._process.kill()
        self._process.communicate()

    def load(self, folder: Path, tokens: int) -> About:
        """Have it load the weights; `tokens` is how many an answer has.

        Raises:
            NeighbourError: it can't.
        """
        return self._ask({"folder": str(folder), "tokens": tokens}, About)

    def run(self, run: str, prompt: str) -> Measured:
        """Have it run once.

        Raises:
            NeighbourError: it failed.
        """
        return self._ask({"run": run, "prompt": prompt}, Measured)

    def _ask(self, request: dict[str, Any], kind: type[Answer]) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and may have said why
        line = self._process.stdout.readline()
        if not line:
            raise NeighbourError(
                f"its worker ended with status {self._process.wait()} (what it printed: {self._log.name})"
            )
        try:
            answer = json.loads(line)
            if "error" in answer:
                raise NeighbourError(f"{answer['error']} (all of it: {self._log.name})")
            return kind.model_validate(answer)
        except ValueError as error:  # pydantic's is one, and so is json's
            raise NeighbourError(f"its worker's answer isn't one: {line!r} ({str(error).splitlines()[0]})") from error
