"""A request on its way: into a place in line, through the guard, to its decision, whatever ends it early."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import TypeVar

from starlette.types import Receive

from ilis_guard import Retraction, StreamEvent, TextDelta, events
from ilis_guard.types import Decision
from ilis_guard_server.asked import Asked
from ilis_guard_server.limits import Place, TimeOver, unless_over
from ilis_guard_server.service import Service

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client left, so nobody wants what was under way."""


async def decide(service: Service, asked: Asked, receive: Receive) -> Decision:
    """Decide on a request that is answered as a whole.

    Args:
        service: the application's.
        asked: the request.
        receive: tells of a client that leaves.

    Raises:
        RefusedError: there is no place for it.
        ClientGoneError: the client left; the generation has ended.
    """
    place = await unless_gone(enter(service), receive)
    with place:
        return await noting_if_gone(service, asked, unless_gone(_last(stream(service, asked)), receive))


async def enter(service: Service) -> Place:
    """Wait for a place in line.

    Raises:
        RefusedError: there is none.
    """
    with service.ending.within(service.settings.timeout_seconds) as over:
        return await service.line.enter(over)


async def stream(service: Service, asked: Asked) -> AsyncGenerator[StreamEvent, None]:
    """The events of a request that has a place; the last is its decision.

    Where its time is over, or the server's, the generation is ended, and the decision is what the policy says of a
    request whose tiers all failed: it is escalated, if the policy escalates such.
    """
    since, is_shown = time.monotonic(), False
    with service.ending.within(service.settings.timeout_seconds) as over:
        asking = asked.request
        guarded = service.guard.astream(asking.messages, labels=asking.labels, stop=asking.stop, mode=asked.mode)
        try:
            async with aclosing(guarded):
                while True:
                    event = await unless_over(over, anext(guarded))
                    if isinstance(event, Decision):
                        break
                    is_shown = is_shown or isinstance(event, TextDelta)
                    if isinstance(event, Retraction):
                        service.meter.retracted()
                        is_shown = False
                    yield event
        except TimeOver as why:
            if is_shown:
                service.meter.retracted()
                yield Retraction(reason="out_of_time")
            given_up = service.guard.without_models(str(why))
            event = await asyncio.to_thread(given_up.decide, asking.messages, labels=asking.labels, stop=asking.stop)
    _tell(service, asked, event, time.monotonic() - since)
    yield event


async def unless_gone(awaited: Coroutine[None, None, T], receive: Receive) -> T:
    """What is waited for; it is cancelled when the client leaves.

    Raises:
        ClientGoneError: it left.
    """
    task, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(gone_of(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        await _cancelled(task)
        await _cancelled(gone)
    raise ClientGoneError


async def noting_if_gone(service: Service, asked: Asked, awaited: Coroutine[None, None, T]) -> T:
    """What is waited for; where the client leaves, that is counted and logged."""
    since = time.monotonic()
    try:
        return await awaited
    except ClientGoneError:
        service.meter.gone()
        events.log().info(
            events.CLIENT_DISCONNECTED,
            request=asked.id,
            client=asked.client,
            path=asked.path,
            seconds=time.monotonic() - since,
        )
        raise


async def gone_of(receive: Receive) -> None:
    """Wait until the client is gone; its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _last(coming: AsyncGenerator[StreamEvent, None]) -> Decision:
    async with aclosing(coming):
        async for event in coming:
            if isinstance(event, Decision):
                return event
    raise AssertionError("the decision is always the last event")


async def _cancelled(task: "asyncio.Future[T]") -> None:
    """End a task, and wait until it has."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


def _tell(service: Service, asked: Asked, decision: Decision, seconds: float) -> None:
    service.meter.decided(decision, seconds)
    events.log().info(
        events.REQUEST_DECIDED,
        request=asked.id,
        decision=decision.id,
        client=asked.client,
        path=asked.path,
        mode=asked.mode,
        seconds=seconds,
    )
