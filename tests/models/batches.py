"""Requests that share passes: a gate that holds passes up, and calls that gather behind it."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message
from tests.watching import watch

Ask = Callable[..., list[Message]]
Agree = Callable[..., None]
WORDS = ["stop", "short", "long", "tool", "toolfirst", "line", "pause", "forever"]
LONG_ENOUGH = 60.0
"""Seconds after which a test that waits has failed."""


class Gate:
    """Counts the passes of a model, and holds chosen ones up."""

    def __init__(self, model: LocalModel) -> None:
        self.shapes: list[tuple[int, int]] = []
        """Rows and tokens of each pass."""
        self._reached: dict[int, threading.Event] = {}
        self._opened: dict[int, threading.Event] = {}
        self._handle = watch(model._model.get_input_embeddings(), self._passed)

    @property
    def batches(self) -> list[int]:
        """Rows of each batch; a prompt has three tokens at least."""
        return [rows for rows, tokens in self.shapes if tokens > 1]

    def close(self, number: int) -> None:
        self._reached[number], self._opened[number] = threading.Event(), threading.Event()

    def wait_for(self, number: int) -> None:
        assert self._reached[number].wait(LONG_ENOUGH)

    def open(self, number: int) -> None:
        self._opened[number].set()

    def take_away(self) -> None:
        self._handle.remove()
        for opened in self._opened.values():
            opened.set()

    def _passed(self, _module: object, inputs: Any, _output: object) -> None:
        self.shapes.append(tuple(inputs[0].shape))
        number = len(self.shapes)
        if number in self._opened:
            self._reached[number].set()
            assert self._opened[number].wait(LONG_ENOUGH)


def until(holds: Callable[[], bool]) -> None:
    given_up = time.monotonic() + LONG_ENOUGH
    while not holds():
        assert time.monotonic() < given_up
        time.sleep(0.001)


def together(
    model: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, calls: Sequence[Callable[[], Any]]
) -> list[Future[Any]]:
    """Begin calls that gather while the model is busy with another answer, of one pass, in their order."""
    busy_with = len(gate.shapes) + 1
    gate.close(busy_with)
    first = pool.submit(model.generate, ask("stop"))
    gate.wait_for(busy_with)
    futures = []
    for number, call in enumerate(calls, start=1):
        futures.append(pool.submit(call))
        until(lambda number=number: len(model._waiting) == number)  # type: ignore[misc]  # a lambda's default
    gate.open(busy_with)
    assert first.result(LONG_ENOUGH).text == ""
    return futures
