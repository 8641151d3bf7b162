"""Server-sent events: texts as they come, comments that keep the line open, and an end when the client leaves."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ilis_guard_server.deciding import ClientGoneError, gone_of
from ilis_guard_server.limits import Place

KEEP_ALIVE_SECONDS: Final = 10.0
"""Proxies cut lines on which nothing is said for a minute or less."""
SEND_SECONDS: Final = 30.0
"""A client that takes nothing for so long is as good as gone."""
KEEP_ALIVE: Final = ": keep-alive\n\n"
DONE: Final = "data: [DONE]\n\n"

Noting = Callable[[Awaitable[None]], Awaitable[None]]


class EventStream(Response):
    """A response whose client may leave at any time.

    Args:
        texts: what is said, one event each; closed when the client leaves.
        place: in line; given back at the end.
        failed: the last event, where the texts fail.
        noting: around all of it, told of a client that left.
    """

    media_type = "text/event-stream"

    def __init__(
        self, texts: AsyncGenerator[str, None], *, place: Place, failed: Callable[[], str], noting: Noting
    ) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._texts = texts
        self._place = place
        self._failed = failed
        self._noting = noting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond."""
        del scope
        with self._place, suppress(ClientGoneError):  # as it wanted
            await self._noting(self._respond(receive, send))

    async def _respond(self, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(gone_of(receive))
        try:
            async with aclosing(self._texts):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                try:
                    while (text := await self._next(gone, send)) is not None:
                        await _say(send, f"data: {text}\n\n")
                except ClientGoneError:
                    raise
                except Exception:
                    # The status is sent already: clients look for an error among the events.
                    await _say(send, f"data: {self._failed()}\n\n")
                    raise
                await _say(send, DONE, more=False)
        finally:
            gone.cancel()

    async def _next(self, gone: "asyncio.Future[None]", send: Send) -> str | None:
        """The next text; None at the end."""
        coming: asyncio.Future[str | None] = asyncio.ensure_future(anext(self._texts, None))
        try:
            either: set[asyncio.Future[Any]] = {coming, gone}
            while not coming.done():
                await asyncio.wait(either, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    raise ClientGoneError
                if not coming.done():
                    await _say(send, KEEP_ALIVE)
            return coming.result()
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})


async def _say(send: Send, text: str, *, more: bool = True) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
    except TimeoutError:
        raise ClientGoneError from None
