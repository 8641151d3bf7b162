"""How much is worked on at once, and for how long."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from ilis_guard_server.problems import RefusedError

T = TypeVar("T")

LONGEST_RETRY_AFTER: Final = 60
"""Seconds. Clients give up rather than wait longer."""
_WEIGHT: Final = 0.2
"""Of the newest request in the mean of how long requests take."""
STOPPING: Final = "the server is being stopped"
TOO_LONG: Final = "the request took longer than the server's time-out"


class TimeOver(Exception):  # noqa: N818 - not a failure: what was under way is given up, and the policy decides
    """What was waited for is given up; says why."""


class Ending:
    """When what is under way must end: at a time-out of its own, or when the server stops."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Future[str]] = set()
        self._has_come = False
        self.is_near = False
        """The server was told to stop: what is under way may still end by itself, and no new work should come."""

    def begin(self, seconds: float) -> None:
        """The server was told to stop: in so many seconds everything ends. Called in the event loop."""
        if not self.is_near:
            self.is_near = True
            asyncio.get_running_loop().call_later(seconds, self._end)

    @contextmanager
    def within(self, seconds: float) -> Iterator["asyncio.Future[str]"]:
        """What says why, once the time of what is done meanwhile is over."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[str] = loop.create_future()
        timer = loop.call_later(seconds, _say, over, TOO_LONG)
        self._under_way.add(over)
        if self._has_come:
            _say(over, STOPPING)
        try:
            yield over
        finally:
            timer.cancel()
            self._under_way.discard(over)

    def _end(self) -> None:
        self._has_come = True
        for over in self._under_way:
            _say(over, STOPPING)


async def unless_over(over: "asyncio.Future[str]", awaited: Awaitable[T]) -> T:
    """What is waited for; it is cancelled once the time is over.

    Raises:
        TimeOver: it is.
    """
    task = asyncio.ensure_future(awaited)
    try:
        waited_for: set[asyncio.Future[Any]] = {task, over}
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    raise TimeOver(over.result())


class Line:
    """The line before the guard: so many are worked on at once, so many wait, and nobody else is let in.

    Args:
        places: who is worked on at once.
        waiting: who may wait.
        clock: seconds, of a clock that can't be set.
    """

    def __init__(self, places: int, waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = asyncio.Semaphore(places)
        self._places = places
        self._most_waiting = waiting
        self._clock = clock
        self._mean_seconds = 1.0
        self.under_way = 0
        self.waiting = 0

    async def enter(self, over: "asyncio.Future[str]") -> "Place":
        """Wait for a place.

        Raises:
            RefusedError: 429 where the line is full or no place came free in time, 503 where the server stops.
        """
        if self._free.locked() and self.waiting >= self._most_waiting:
            raise self._busy("Too many requests wait already.")
        self.waiting += 1
        entering = asyncio.ensure_future(self._free.acquire())
        try:
            await unless_over(over, entering)
        except asyncio.CancelledError:
            if not entering.cancelled():
                # Whoever leaves just when their turn has come leaves it to the next.
                self._free.release()
            raise
        except TimeOver as why:
            if str(why) == STOPPING:
                # It hasn't begun, so it may safely be asked elsewhere.
                raise RefusedError(
                    503, "The server is being stopped.", code="stopping", headers={"retry-after": "1"}
                ) from None
            raise self._busy("No place came free in time.") from None
        finally:
            self.waiting -= 1
        self.under_way += 1
        return Place(self, self._clock())

    def leave(self, since: float) -> None:
        """Give a place back; places do it."""
        self._mean_seconds += _WEIGHT * (self._clock() - since - self._mean_seconds)
        self.under_way -= 1
        self._free.release()

    def _busy(self, detail: str) -> RefusedError:
        wait = math.ceil(self._mean_seconds * (self.waiting + 1) / self._places)
        retry_after = str(min(max(wait, 1), LONGEST_RETRY_AFTER))
        return RefusedError(429, detail, code="too_many_requests", headers={"retry-after": retry_after})


class Place:
    """Somebody's place; a context manager that gives it back."""

    def __init__(self, line: Line, since: float) -> None:
        self._line = line
        self._since = since

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._line.leave(self._since)


def _say(over: "asyncio.Future[str]", why: str) -> None:
    if not over.done():
        over.set_result(why)
