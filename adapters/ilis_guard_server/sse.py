"""Server-sent events: data as it comes, comments that keep the connection open, and an end when the client leaves."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ilis_guard.concurrency.race import cancel, race
from ilis_guard.errors import ClientDisconnected, RequestConflictError
from ilis_guard_server.guard_call import GuardCall, disconnection
from ilis_guard_server.limits import Slot
from ilis_guard_server.problem_details import ApiError, problem_of, problem_response

KEEP_ALIVE_SECONDS: Final = 10.0
"""Proxies close connections that are silent for a minute or less."""
SEND_SECONDS: Final = 30.0
"""A client that reads nothing for so long counts as disconnected."""
_KEEP_ALIVE: Final = ": keep-alive\n\n"
_DONE: Final = "data: [DONE]\n\n"


class EventStream(Response):
    """A streamed response whose client may disconnect at any time.

    FastAPI's own event streams neither time out a client that doesn't read, nor end with an error event.

    Args:
        data: of one event each; closed when the client disconnects.
        call: the call that the data comes from.
        slot: of the call; freed at the end.
    """

    media_type = "text/event-stream"

    def __init__(self, data: AsyncGenerator[str, None], *, call: GuardCall, slot: Slot) -> None:
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._data = data
        self._call = call
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond."""
        del scope
        with self._slot, suppress(ClientDisconnected):
            await self._call.watch(self._respond(receive, send))

    async def _respond(self, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(disconnection(receive))
        try:
            async with aclosing(self._data):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                try:
                    while (data := await self._next(gone, send)) is not None:
                        await _send(send, f"data: {data}\n\n")
                except ClientDisconnected:
                    raise
                except (ApiError, RequestConflictError) as error:
                    await _send(send, f"data: {bytes(problem_of(error, self._call.id).body).decode()}\n\n", more=False)
                    return
                except Exception:
                    # The status is sent already: clients look for an error among the events.
                    problem = bytes(problem_response(500, self._call.id).body).decode()
                    await _send(send, f"data: {problem}\n\n")
                    raise
                await _send(send, _DONE, more=False)
        finally:
            gone.cancel()

    async def _next(self, gone: "asyncio.Future[Exception]", send: Send) -> str | None:
        """The data of the next event; None at the end."""
        coming: asyncio.Future[str | None] = asyncio.ensure_future(anext(self._data, None))
        try:
            while not (await race(asyncio.wait({coming}, timeout=KEEP_ALIVE_SECONDS), gone))[0]:
                await _send(send, _KEEP_ALIVE)
            return coming.result()
        finally:
            await cancel(coming)


async def _send(send: Send, text: str, *, more: bool = True) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
    except TimeoutError:
        raise ClientDisconnected("the client reads nothing") from None
