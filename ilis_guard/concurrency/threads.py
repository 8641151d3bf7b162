"""Run work in threads, and stream events from a worker thread to a synchronous or asynchronous reader."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import Generic, TypeVar

from ilis_guard.concurrency.cancellation import CancelToken

T = TypeVar("T")


def start_thread(work: Callable[[], T], *, name: str = "ilis-guard-call") -> Future[T]:
    """Run work in a thread of its own, with the caller's context variables.

    The thread is a daemon, so that a model that hangs doesn't keep the program from ending.

    Returns:
        A future of the result, or of the error, whatever its class. It can't be cancelled.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must receive it
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True).start()
    return future


class EventChannel(Generic[T]):
    """Carries events from a worker to one reader. The worker sends without waiting, unless it chooses to.

    Args:
        deliver: passes an event, or the worker's future once it is done, to the reader; never blocks.
        cancel_token: cancelled when the reader has disconnected.
    """

    def __init__(self, deliver: "Callable[[T | Future[None]], None]", cancel_token: CancelToken) -> None:
        self.cancel_token = cancel_token
        """Cancelled when the reader has disconnected."""
        self._deliver = deliver
        self._sent = 0
        self._requested = 0
        self._changed = threading.Condition()

    def send(self, event: T) -> None:
        """Send an event, for the worker."""
        with self._changed:
            self._sent += 1
        self._deliver(event)

    def wait_for_request(self) -> None:
        """Wait until the reader has read every event and requests another, for the worker.

        Raises:
            ClientDisconnected: the reader has disconnected.
        """
        with self._changed:
            self.cancel_token.wait_for(self._changed, lambda: self._requested > self._sent)

    def request(self) -> None:
        """Request the next event, for the reader."""
        with self._changed:
            self._requested += 1
            self._changed.notify_all()

    def start(self, work: "Callable[[EventChannel[T]], None]") -> Future[None]:
        """Start the worker, for the reader."""
        worker = start_thread(lambda: work(self), name="ilis-guard-stream")
        worker.add_done_callback(self._deliver)
        return worker


def stream_events(
    work: Callable[[EventChannel[T]], None], cancel_token: CancelToken | None = None
) -> Generator[T, None, None]:
    """Run work in a thread, and yield the events that it sends; its error is raised here.

    Closing the iterator cancels the token and waits until the work has ended.
    """
    delivered: SimpleQueue[T | Future[None]] = SimpleQueue()
    channel = EventChannel[T](delivered.put, cancel_token or CancelToken())
    worker = channel.start(work)
    try:
        while True:
            channel.request()
            event = delivered.get()
            if isinstance(event, Future):
                event.result()
                return
            yield event
    finally:
        channel.cancel_token.cancel()
        worker.exception()  # which waits for the work's end


async def astream_events(
    work: Callable[[EventChannel[T]], None], cancel_token: CancelToken | None = None
) -> AsyncGenerator[T, None]:
    """As `stream_events`, without blocking the event loop: closing the iterator doesn't wait for the work's end."""
    loop = asyncio.get_running_loop()
    delivered: asyncio.Queue[T | Future[None]] = asyncio.Queue()

    def deliver(event: T | Future[None]) -> None:
        try:
            loop.call_soon_threadsafe(delivered.put_nowait, event)
        except RuntimeError:  # the loop is closed, and its readers are gone
            channel.cancel_token.cancel()

    channel = EventChannel[T](deliver, cancel_token or CancelToken())
    channel.start(work)
    try:
        while True:
            channel.request()
            event = await delivered.get()
            if isinstance(event, Future):
                event.result()
                return
            yield event
    finally:
        channel.cancel_token.cancel()


def stream_steps(work: Callable[[Callable[[T], None]], None]) -> Generator[T, None, None]:
    """Run work in a thread, and yield what it passes to the function that it is given, only as far as it is requested.

    That function waits until the next step is requested: what nobody requests isn't computed. Closing the iterator
    raises `ClientDisconnected` in it.
    """

    def run(channel: EventChannel[T]) -> None:
        def report(step: T) -> None:
            channel.send(step)
            channel.wait_for_request()

        work(report)

    return stream_events(run)
