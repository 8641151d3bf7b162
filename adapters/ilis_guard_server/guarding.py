"""The guard's part of the application: its routers, and what they share."""

import time
from typing import Final

from anyio import CapacityLimiter
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from ilis_guard import Guard
from ilis_guard.config.server import ServerSettings
from ilis_guard.review import ReviewQueue
from ilis_guard_server import chat, completions, decisions, metrics, models, readiness
from ilis_guard_server.decisions import DecisionBody
from ilis_guard_server.keys import Keys
from ilis_guard_server.limits import Ending, Line
from ilis_guard_server.meter import Metrics
from ilis_guard_server.openai_requests import ChatRequest, CompletionRequest, DecisionRequest
from ilis_guard_server.openai_responses import ChatChunk, ChatCompletion, Completion
from ilis_guard_server.service import Service

ASKING: Final = ("/v1/chat/completions", "/v1/completions", "/v1/decisions")
"""Where requests to the guard go."""
FOR_CLIENTS: Final = (*ASKING, "/v1/models", "/v1/models/{model}", "/metrics")
"""Where a key is needed, if there are any."""
SHAPES: Final[tuple[type[BaseModel], ...]] = (
    ChatRequest,
    ChatCompletion,
    ChatChunk,
    CompletionRequest,
    Completion,
    DecisionRequest,
    DecisionBody,
)


def service_with(guard: Guard, settings: ServerSettings, review: ReviewQueue | None) -> Service:
    """What the guard's routers share.

    Raises:
        ConfigError: a key's hash isn't where the settings say it is.
    """
    line = Line(settings.max_concurrent, settings.max_waiting)
    return Service(
        guard=guard,
        settings=settings,
        review=review,
        keys=Keys(settings.api_keys),
        line=line,
        ending=Ending(),
        meter=Metrics(under_way=lambda: line.under_way, waiting=lambda: line.waiting),
        probes=CapacityLimiter(1),
        started_at=int(time.time()),
    )


def add_guard(app: FastAPI, service: Service) -> None:
    """Have an application answer for the guard."""
    app.state.service = service
    for one in (chat, completions, decisions, models, metrics, readiness):
        app.include_router(one.router)


def count(service: Service, path: str, status: int) -> None:
    """Count a response to one who asked the guard; other paths are anybody's invention."""
    if path in ASKING:
        service.meter.responded(path, status)


async def on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody hears it."""
    del request, error
    return Response(status_code=499)
