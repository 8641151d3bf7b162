"""Stepwise: a call that reports as it goes, turned into an iterator that its consumer may leave at any step."""

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Generic, TypeVar

from ilis_guard.types import Generation, Step

T = TypeVar("T")


class Unfolding:
    """An answer that is shown bit by bit: what each step adds to the text."""

    def __init__(self) -> None:
        self._shown = ""

    def step(self, generation: Generation) -> Step:
        """The next step, at a generation as far as it has come."""
        # Half a character decodes to a replacement sign: it is shown once its other half has come.
        text = generation.text if generation.finish_reason else generation.text.rstrip("\ufffd")
        token = text[len(self._shown) :] if text.startswith(self._shown) else ""
        self._shown += token
        return Step(token=token, generation=generation)


class _Left(BaseException):
    """The consumer took no more; not an Exception, so that nobody on the way takes it for a failure."""


class _Reporter(Generic[T]):
    """The two ends of a line between a worker and its consumer: never is one ahead of the other."""

    def __init__(self) -> None:
        self.reports: SimpleQueue[T | BaseException | None] = SimpleQueue()
        self.wanted: SimpleQueue[bool] = SimpleQueue()

    def report(self, step: T) -> None:
        self.reports.put(step)
        self.wait()

    def wait(self) -> None:
        if not self.wanted.get():
            raise _Left


def stepwise(work: Callable[[Callable[[T], None]], None]) -> Generator[T, None, None]:
    """Run `work` in a thread of its own and yield what it reports, as the consumer asks for it.

    The work waits at each report until the next is wanted: what isn't asked for isn't computed. Where the iterator is
    closed or dropped, the work ends at its report. What it raises is raised here.
    """
    line: _Reporter[T] = _Reporter()

    def run() -> None:
        end: BaseException | None = None
        try:
            line.wait()
            work(line.report)
        except _Left:
            pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer must hear of it
            end = error
        line.reports.put(end)

    worker = threading.Thread(target=run, name="ilis-guard-stream", daemon=True)
    worker.start()
    going_on = True
    try:
        while True:
            line.wanted.put(True)
            step = line.reports.get()
            if step is None:
                going_on = False
                return
            if isinstance(step, BaseException):
                going_on = False
                raise step
            yield step
    finally:
        if going_on:
            line.wanted.put(False)
        worker.join()
