"""Await something until something else happens, and cancel what lost."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def race(awaited: Awaitable[T], against: Awaitable[Exception]) -> T:
    """Await something; once `against` is done first, cancel it and raise the exception that `against` returned.

    The awaitable that lost has ended when this returns or raises, also when the caller is cancelled. Where both are
    done, `awaited` has won. A future given as `against` is not cancelled, so it may be used in many races.

    Args:
        awaited: what the result comes from.
        against: returns the exception to raise; a coroutine is cancelled once `awaited` is done.

    Raises:
        Exception: `awaited` raised it, or `against` returned it.
    """
    task, other = asyncio.ensure_future(awaited), asyncio.ensure_future(against)
    contestants: set[asyncio.Future[Any]] = {task, other}
    try:
        await asyncio.wait(contestants, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise other.result()
    finally:
        await cancel(task)
        if other is not against:
            await cancel(other)


async def cancel(task: "asyncio.Future[Any]") -> None:
    """Cancel a task, and wait until it has ended."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
