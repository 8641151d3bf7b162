"""From a worker in a thread of its own to a reader elsewhere, or in an event loop, who may leave at any time."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from ilis_guard.concurrency.cancellation import CancelToken
from ilis_guard.errors import ClientDisconnected

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    """The worker has ended; nothing follows."""

    error: BaseException | None


class EventChannel(Generic[T]):
    """What a worker tells its reader. The worker goes on at its own pace, however slowly the reader reads.

    Args:
        put: hands over to the reader; never waits.
    """

    def __init__(self, put: Callable[[T | _End], None]) -> None:
        self.cancel_token = CancelToken()
        """The reader's."""
        self._put = put
        self._told = 0
        self._asked = 0
        self._changed = threading.Condition()

    def tell(self, event: T) -> None:
        """Let the reader have something."""
        with self._changed:
            self._told += 1
        self._put(event)

    def catch_up(self) -> None:
        """Wait until the reader has read everything and asks for more.

        Raises:
            ClientDisconnected: they have left.
        """
        with self.cancel_token.waking(self._changed), self._changed:
            self._changed.wait_for(lambda: self._asked > self._told or self.cancel_token.is_cancelled)
        self.cancel_token.check()

    def ask(self) -> None:
        """For the reader: say that the next one is wanted."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def begin(self, work: "Callable[[EventChannel[T]], None]") -> threading.Thread:
        """For the reader: have the work done in a thread of its own, with the reader's context variables."""

        def run() -> None:
            error: BaseException | None = None
            try:
                work(self)
            except ClientDisconnected:
                pass
            except BaseException as raised:  # noqa: BLE001 - whatever it is, the reader must hear of it
                error = raised
            self._put(_End(error))

        # A daemon: a model that hangs doesn't keep the program from ending.
        worker = threading.Thread(target=copy_context().run, args=(run,), name="ilis-guard-stream", daemon=True)
        worker.start()
        return worker


def read(work: Callable[[EventChannel[T]], None]) -> Generator[T, None, None]:
    """Do some work in a thread of its own, and yield what it tells; what it raises is raised here.

    Closing the iterator waits for the work to end, which it does as soon as it sees that its reader has left.
    """
    told: SimpleQueue[T | _End] = SimpleQueue()
    feed = EventChannel[T](told.put)
    worker = feed.begin(work)
    try:
        while True:
            feed.ask()
            event = told.get()
            if not isinstance(event, _End):
                yield event
            elif event.error is None:
                return
            else:
                raise event.error
    finally:
        feed.cancel_token.cancel()
        worker.join()


async def aread(work: Callable[[EventChannel[T]], None]) -> AsyncGenerator[T, None]:
    """As `read`, in an event loop, which never waits: who leaves doesn't wait for the work to end either."""
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[T | _End] = asyncio.Queue()

    def put(event: T | _End) -> None:
        try:
            loop.call_soon_threadsafe(told.put_nowait, event)
        except RuntimeError:  # the loop is closed, and its readers are gone
            feed.cancel_token.cancel()

    feed = EventChannel[T](put)
    feed.begin(work)
    try:
        while True:
            feed.ask()
            event = await told.get()
            if not isinstance(event, _End):
                yield event
            elif event.error is None:
                return
            else:
                raise event.error
    finally:
        feed.cancel_token.cancel()
