"""The deadline of a request, and work that is given up when it has passed."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import copy_context
from dataclasses import dataclass
from typing import Self, TypeVar

from ilis_guard.concurrency.cancellation import CancelToken
from ilis_guard.errors import BudgetError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The end of a request: its ``max_seconds`` are over, or whoever asked has left before."""

    max_seconds: float
    """What the policy's budget allows; infinity for any time."""
    at: float
    """On the clock of `time.monotonic`."""
    cancel_token: CancelToken | None = None
    """Of whoever asked; None where they can't leave."""

    @classmethod
    def after(cls, max_seconds: float | None, *, since: float, cancel_token: CancelToken | None = None) -> Self:
        """So many seconds after a time on that clock, None for any number, as long as somebody is there."""
        seconds = math.inf if max_seconds is None else max_seconds
        return cls(max_seconds=seconds, at=since + seconds, cancel_token=cancel_token)

    @property
    def left(self) -> float:
        """Seconds until then, at least 0, and at most as many as anything can wait."""
        return min(max(0.0, self.at - time.monotonic()), threading.TIMEOUT_MAX)

    def check(self) -> None:
        """See that it hasn't passed.

        Raises:
            BudgetError: it has.
            ClientDisconnected: whoever asked has left.
        """
        if self.cancel_token is not None:
            self.cancel_token.check()
        if not self.left:
            raise self.passed()

    def sleep(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ClientDisconnected: whoever asked has left meanwhile.
        """
        if self.cancel_token is None:
            time.sleep(seconds)
        else:
            self.cancel_token.sleep(seconds)

    def passed(self, what: str = "") -> BudgetError:
        """The error of whoever came too late.

        Args:
            what: about to be said of what was given up.
        """
        return BudgetError(f"the request's {self.max_seconds:g} seconds are over{what}")


def within(deadline: Deadline | None, work: Callable[[], T], *, ended: Callable[[], None]) -> T:
    """Do some work, and give it up when the deadline has passed: it may end later, and nobody hears of that.

    With a deadline it runs in a thread of its own, with the caller's context variables. That thread is a daemon: work
    that hangs keeps neither its caller nor the program from ending.

    Args:
        deadline: without one, or with any time, the work isn't given up and needs no thread.
        work: what to do.
        ended: called once the work has ended, however late that is, or couldn't be begun.

    Raises:
        BudgetError: the deadline has passed.
        BaseException: whatever the work raises.
    """
    if deadline is None or math.isinf(deadline.at):
        try:
            return work()
        finally:
            ended()
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
            ended()
            outcome.set_exception(error)
        else:
            ended()
            outcome.set_result(result)

    try:
        threading.Thread(target=copy_context().run, args=(run,), name="ilis-guard-call", daemon=True).start()
    except BaseException:
        ended()
        raise
    wait([outcome], timeout=deadline.left)
    if not outcome.done():
        raise deadline.passed("; the model was given up")
    return outcome.result()
