"""How many requests the guard works on at once, and for how long."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, Literal

from ilis_guard.concurrency.race import race
from ilis_guard_server.problem_details import ApiError

MAX_RETRY_AFTER: Final = 60
"""Seconds. Clients give up rather than wait longer."""
_NEWEST_WEIGHT: Final = 0.2
"""Of the newest request in the exponential mean of how long requests take."""

Reason = Literal["timeout", "shutdown"]
"""Why work is given up: the request's own time is over, or the server stops."""


class DeadlinePassed(Exception):  # noqa: N818 - not a failure: the work is given up, and the policy decides
    """The deadline of a request has passed."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason

    @property
    def description(self) -> str:
        """The reason in words, for attempts' errors."""
        return {
            "timeout": "the request took longer than the server's time-out",
            "shutdown": "the server is being stopped",
        }[self.reason]


Deadline = asyncio.Future[Exception]
"""Gets a `DeadlinePassed` as its result when the deadline passes."""


class Deadlines:
    """Deadlines of the requests in flight: each ends at its own time-out, and all of them when the server stops."""

    def __init__(self) -> None:
        self._open: set[Deadline] = set()
        self._have_passed = False
        self.is_shutting_down = False
        """The server was told to stop: requests in flight may still end, and no new ones should come."""

    def begin_shutdown(self, seconds: float) -> None:
        """Let all deadlines pass in so many seconds. Call it in the event loop."""
        if not self.is_shutting_down:
            self.is_shutting_down = True
            asyncio.get_running_loop().call_later(seconds, self._pass_all)

    @contextmanager
    def open(self, seconds: float) -> Iterator[Deadline]:
        """Open a deadline in so many seconds, for the work that is done in this context."""
        loop = asyncio.get_running_loop()
        deadline: Deadline = loop.create_future()
        timer = loop.call_later(seconds, _pass, deadline, "timeout")
        self._open.add(deadline)
        if self._have_passed:
            _pass(deadline, "shutdown")
        try:
            yield deadline
        finally:
            timer.cancel()
            self._open.discard(deadline)

    def _pass_all(self) -> None:
        self._have_passed = True
        for deadline in self._open:
            _pass(deadline, "shutdown")


class PendingWork:
    """Work that goes on after its request was answered, such as tickets that are being stored."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[object]] = set()

    def add(self, work: Awaitable[object]) -> None:
        """Hold work until it has ended; nobody receives its result or its error."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._remove)

    async def wait(self, seconds: float) -> None:
        """Wait until all of it has ended, for so many seconds at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _remove(self, task: "asyncio.Future[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # so that asyncio doesn't report it


Slot = ExitStack
"""A request's slot; a context manager that frees it."""


class ConcurrencyLimiter:
    """Admits so many requests at once, lets so many others wait in order, and refuses the rest.

    Args:
        max_concurrent: how many are admitted at once.
        max_waiting: how many may wait.
        clock: seconds, monotonic.
    """

    def __init__(self, max_concurrent: int, max_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = asyncio.Semaphore(max_concurrent)
        self._max_concurrent = max_concurrent
        self._max_waiting = max_waiting
        self._clock = clock
        self._mean_seconds = 1.0
        self.in_flight = 0
        self.waiting = 0

    async def admit(self, deadline: Deadline) -> Slot:
        """Wait for a free slot.

        Raises:
            ApiError: 429 where too many wait, or no slot came free in time; 503 where the server stops.
        """
        if self._free.locked() and self.waiting >= self._max_waiting:
            raise self._busy("Too many requests wait already.")
        self.waiting += 1
        acquiring = asyncio.ensure_future(self._free.acquire())
        try:
            await race(acquiring, deadline)
        except asyncio.CancelledError:
            if not acquiring.cancelled():
                # The slot came at the very moment at which the client left: the next one gets it.
                self._free.release()
            raise
        except DeadlinePassed as passed:
            if passed.reason == "shutdown":
                # The request hasn't begun, so the client may safely send it elsewhere.
                raise ApiError(
                    503, "The server is being stopped.", code="stopping", headers={"retry-after": "1"}
                ) from None
            raise self._busy("No place came free in time.") from None
        finally:
            self.waiting -= 1
        self.in_flight += 1
        slot = Slot()
        slot.callback(self._release, self._clock())
        return slot

    def _release(self, since: float) -> None:
        self._mean_seconds += _NEWEST_WEIGHT * (self._clock() - since - self._mean_seconds)
        self.in_flight -= 1
        self._free.release()

    def _busy(self, detail: str) -> ApiError:
        wait = math.ceil(self._mean_seconds * (self.waiting + 1) / self._max_concurrent)
        retry_after = str(min(max(wait, 1), MAX_RETRY_AFTER))
        return ApiError(429, detail, code="too_many_requests", headers={"retry-after": retry_after})


def _pass(deadline: Deadline, reason: Reason) -> None:
    if not deadline.done():
        deadline.set_result(DeadlinePassed(reason))
