"""Await a thread from an event loop, and run coroutines on an event loop from a thread."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ilis_guard.concurrency.interrupts import is_interrupt
from ilis_guard.concurrency.threads import start_thread
from ilis_guard.errors import ClientDisconnected

T = TypeVar("T")


async def run_in_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a thread of its own, with the caller's context variables; the event loop stays free.

    The thread isn't from the loop's pool: the work may wait for coroutines on the loop (`LoopPortal`), which may wait
    for the pool in their turn. It is a daemon, so that a model that hangs doesn't keep the program from ending.

    Cancelling the caller doesn't end the work: its result is dropped.
    """
    return await asyncio.wrap_future(start_thread(work))


class LoopPortal:
    """Runs coroutines on the event loop that it is created in, for worker threads that wait for them.

    anyio's `BlockingPortal` doesn't fit: its cancel scopes cancel a task again at each of its awaits. LangChain awaits
    its callbacks while a cancelled run ends, so tracers would never receive the end of that run. asyncio cancels once.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._is_cancelled = False

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine function on the loop, with this thread's context variables, and wait for its result.

        Raises:
            ClientDisconnected: the portal was cancelled, whatever the coroutine returned or raised after that.
            RuntimeError: the coroutine raised SystemExit or KeyboardInterrupt.
            BaseException: any other error of the coroutine.
        """

        async def run() -> T:
            try:
                return await work()
            except (SystemExit, KeyboardInterrupt) as error:
                if is_interrupt(error):
                    raise
                # A task that raises one of them ends the event loop, and all else that runs on it.
                raise RuntimeError(f"the coroutine raised {type(error).__name__}") from error

        with self._lock:
            self.check()
            future = asyncio.run_coroutine_threadsafe(run(), self._loop)
            self._pending.add(future)
        try:
            result = future.result()
        except Exception:
            self.check()
            raise
        finally:
            with self._lock:
                self._pending.discard(future)
        self.check()
        return result

    def cancel(self) -> None:
        """Cancel all coroutines under way, and refuse new ones."""
        with self._lock:
            self._is_cancelled = True
            pending = tuple(self._pending)
        for future in pending:
            future.cancel()

    def check(self) -> None:
        """Check that somebody still waits for results.

        Raises:
            ClientDisconnected: the portal was cancelled.
        """
        if self._is_cancelled:
            raise ClientDisconnected("the caller was cancelled") from None
