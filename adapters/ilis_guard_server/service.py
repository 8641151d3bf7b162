"""What the guard's routers share, and how they get at it."""

from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from ilis_guard import Guard
from ilis_guard.config.server import ServerSettings
from ilis_guard.review import ReviewQueue
from ilis_guard_server.keys import Keys
from ilis_guard_server.limits import Ending, Line
from ilis_guard_server.meter import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One application's guard, and the limits that stand before it."""

    guard: Guard
    settings: ServerSettings
    review: ReviewQueue | None
    """The queue, to see whether it can be reached; None where the guard has none."""
    keys: Keys
    line: Line
    ending: Ending
    meter: Metrics
    probes: CapacityLimiter
    """The thread that looks whether the queue can be reached; requests, which have the others, can't take it."""
    started_at: int
    """Seconds since the epoch."""


async def service_of(request: Request) -> Service:
    """The application's service; at once, where FastAPI has a function that isn't async wait for a thread."""
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]
