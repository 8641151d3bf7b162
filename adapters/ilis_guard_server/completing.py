"""What both kinds of OpenAI's completions do: decide, and tell the decision whole or while it comes."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Final, Protocol

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from ilis_guard import StreamEvent
from ilis_guard.types import Decision
from ilis_guard_server.asked import Asked
from ilis_guard_server.deciding import decide, enter, noting_if_gone, stream, unless_gone
from ilis_guard_server.event_stream import EventStream
from ilis_guard_server.problems import failed
from ilis_guard_server.service import Service
from ilis_guard_server.telling import header

ASKED_STATUSES: Final = (400, 401, 403, 404, 413, 415, 429, 500, 503)


class Telling(Protocol):
    """How one completion is told."""

    def whole(self, decision: Decision) -> BaseModel:
        """A decision in one piece."""

    def chunks(self, events: AsyncGenerator[StreamEvent, None]) -> AsyncGenerator[str, None]:
        """A decision on its way."""


async def completed(request: Request, service: Service, asked: Asked, telling: Telling, *, streams: bool) -> Response:
    """Decide on a request that was read.

    Raises:
        RefusedError: there is no place for it.
        ClientGoneError: the client left; the generation has ended.
    """
    if not streams:
        decision = await decide(service, asked, request.receive)
        return JSONResponse(telling.whole(decision).model_dump(), headers=header(decision))
    return EventStream(
        telling.chunks(stream(service, asked)),
        place=await unless_gone(enter(service), request.receive),
        failed=partial(failed, asked.id),
        noting=partial(noting_if_gone, service, asked),
    )
