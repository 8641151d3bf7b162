"""Deadlines of requests: check them, wait until them, and abandon work that passes them."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Self, TypeVar

from ilis_guard.concurrency.cancellation import CancelToken
from ilis_guard.concurrency.threads import start_thread
from ilis_guard.errors import BudgetError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The end of a request: its ``max_seconds`` are over, or its client has disconnected."""

    max_seconds: float
    """The policy's budget; infinity for none."""
    at: float
    """On the clock."""
    cancel_token: CancelToken | None = None
    """The client's; None where a client can't disconnect."""
    clock: Callable[[], float] = time.monotonic
    """Seconds, monotonic."""

    @classmethod
    def after(
        cls,
        max_seconds: float | None,
        *,
        since: float,
        cancel_token: CancelToken | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Build the deadline so many seconds after a time on that clock; None for no limit of time."""
        seconds = math.inf if max_seconds is None else max_seconds
        return cls(max_seconds=seconds, at=since + seconds, cancel_token=cancel_token, clock=clock)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, from 0 to `threading.TIMEOUT_MAX`, the most that a lock can wait."""
        return min(max(0.0, self.at - self.clock()), threading.TIMEOUT_MAX)

    def check(self) -> None:
        """Check the deadline.

        Raises:
            BudgetError: it has passed.
            ClientDisconnected: the client has disconnected.
        """
        if self.cancel_token is not None:
            self.cancel_token.raise_if_cancelled()
        if not self.remaining:
            raise self.error()

    def sleep(self, seconds: float) -> None:
        """Sleep.

        Raises:
            ClientDisconnected: the client has disconnected meanwhile.
        """
        if self.cancel_token is None:
            time.sleep(seconds)
        else:
            self.cancel_token.sleep(seconds)

    def error(self, consequence: str = "") -> BudgetError:
        """Build the error of a deadline that has passed.

        Args:
            consequence: appended to the message: ``; the model was given up``.
        """
        return BudgetError(f"the request's {self.max_seconds:g} seconds are over{consequence}")


def wait_until(condition: threading.Condition, is_met: Callable[[], bool], deadline: Deadline | None) -> bool:
    """Wait on a condition, which the caller has acquired, at most until a deadline.

    Returns:
        Whether it is met; if not, the deadline has passed.

    Raises:
        ClientDisconnected: the client has disconnected, even if the condition is met.
    """
    timeout = None if deadline is None else deadline.remaining
    if deadline is None or deadline.cancel_token is None:
        return condition.wait_for(is_met, timeout)
    return deadline.cancel_token.wait_for(condition, is_met, timeout)


def run_with_deadline(work: Callable[[], T], deadline: Deadline | None, *, on_end: Callable[[], None]) -> T:
    """Run work, and abandon it when a deadline has passed: it may end later, and its result is dropped.

    Work with a deadline runs in a daemon thread (`start_thread`), so that work that hangs blocks neither its caller nor
    the program's end.

    Args:
        work: what to run.
        deadline: work without one, or with an infinite one, runs in the caller's thread.
        on_end: called once, when the work has ended, however late that is, or couldn't be started.

    Raises:
        BudgetError: the deadline has passed.
        BaseException: any error of the work.
    """

    def run() -> T:
        try:
            return work()
        finally:
            on_end()

    if deadline is None or math.isinf(deadline.at):
        return run()
    try:
        future = start_thread(run)
    except BaseException:
        on_end()
        raise
    wait([future], timeout=deadline.remaining)
    if not future.done():
        raise deadline.error("; the model was given up")
    return future.result()
