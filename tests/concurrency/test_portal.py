"""Results, errors, context variables and cancellation cross between threads and an event loop."""

import asyncio
import threading
from concurrent.futures import CancelledError
from contextvars import ContextVar

import pytest

from ilis_guard.concurrency.portal import LoopPortal, run_in_thread
from ilis_guard.errors import ClientDisconnected

LABEL: ContextVar[str] = ContextVar("label", default="unset")


async def test_thread_returns_its_result_with_the_callers_context() -> None:
    LABEL.set("caller")
    main = threading.get_ident()
    label, ident, is_daemon = await run_in_thread(
        lambda: (LABEL.get(), threading.get_ident(), threading.current_thread().daemon)
    )
    assert (label, is_daemon) == ("caller", True)
    assert ident != main


async def test_thread_raises_its_error_at_the_caller() -> None:
    def fail() -> None:
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        await run_in_thread(fail)


async def test_cancelled_caller_leaves_the_thread_behind() -> None:
    release, ended = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(10)
        ended.set()

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not ended.is_set()
    release.set()
    assert await asyncio.to_thread(ended.wait, 10)


async def test_portal_runs_coroutines_on_the_loop_with_the_threads_context() -> None:
    portal, main = LoopPortal(), threading.get_ident()

    async def read() -> tuple[str, int]:
        await asyncio.sleep(0)
        return LABEL.get(), threading.get_ident()

    def work() -> tuple[str, int]:
        LABEL.set("worker")
        return portal.call(read)

    assert await run_in_thread(work) == ("worker", main)


async def test_portal_raises_the_coroutines_error_in_the_thread() -> None:
    portal = LoopPortal()

    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await run_in_thread(lambda: portal.call(fail))


async def test_cancelled_portal_ends_coroutines_and_refuses_new_ones() -> None:
    portal, begun, cancelled = LoopPortal(), asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # cancelled once only: what ends the coroutine may await
            cancelled.set()

    worker = asyncio.create_task(run_in_thread(lambda: portal.call(hang)))
    await begun.wait()
    portal.cancel()
    with pytest.raises(ClientDisconnected):
        await worker
    await asyncio.wait_for(cancelled.wait(), 10)
    with pytest.raises(ClientDisconnected):
        await run_in_thread(lambda: portal.call(hang))
    with pytest.raises(ClientDisconnected):
        portal.check()


async def test_result_after_cancellation_reaches_nobody() -> None:
    portal, begun = LoopPortal(), asyncio.Event()

    async def insist() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "late"
        return "never"

    worker = asyncio.create_task(run_in_thread(lambda: portal.call(insist)))
    await begun.wait()
    portal.cancel()
    with pytest.raises(ClientDisconnected):
        await worker


async def test_coroutine_that_cancels_itself_disconnects_nobody() -> None:
    portal = LoopPortal()

    async def give_up() -> None:
        raise asyncio.CancelledError

    def work() -> None:
        with pytest.raises(CancelledError):
            portal.call(give_up)

    await run_in_thread(work)
