"""The application: routers on one house, behind one gate."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles

from ilis_guard import __version__, secrets
from ilis_guard.errors import IlisGuardError
from ilis_guard.policy import Policy
from ilis_guard.review import ReviewQueue, signing
from ilis_guard.review.page import PageSettings
from ilis_guard.scoring import TypicalMaps
from ilis_guard_server import health, queue_page, signing_in, ticket_page, verdicts
from ilis_guard_server.access import SignInNeededError, on_sign_in_needed
from ilis_guard_server.gate import Gate
from ilis_guard_server.house import House
from ilis_guard_server.people import People
from ilis_guard_server.problems import on_bad_input, on_http_error, on_our_error
from ilis_guard_server.sessions import Sessions, SignInLimit

STATIC: Final = Path(__file__).parent / "static"


Work = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Something that goes on until the event is set, such as delivering webhooks."""


def create_app(
    settings: PageSettings,
    *,
    review: ReviewQueue,
    policy: Policy,
    typical: Mapping[str, TypicalMaps] | None = None,
    beside: Sequence[Work] = (),
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """Build the application.

    Args:
        settings: of the page.
        review: the queue; whoever opened it closes it.
        policy: the one in use.
        typical: by tier, what right and wrong answers look like inside.
        beside: what goes on beside the requests for as long as the application runs.
        clock: seconds since the epoch, the queue's own.

    Raises:
        ConfigError: somebody's token hash, or the secret of verdicts, isn't where the settings say it is.
    """
    if settings.verdict_secret is not None:
        signing.check(secrets.referred(settings.verdict_secret))
    app = FastAPI(
        title="ilis_guard",
        version=__version__,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=lambda _: _working(beside),
        middleware=[Middleware(Gate, is_secure=settings.url.startswith("https:"))],
        exception_handlers={
            IlisGuardError: on_our_error,
            HTTPException: on_http_error,
            RequestValidationError: on_bad_input,
            SignInNeededError: on_sign_in_needed,
        },
    )
    app.state.house = House(
        review=review,
        page=settings,
        policy=policy,
        typical=typical or {},
        clock=clock,
        people=People(settings),
        sessions=Sessions(),
        sign_in_limit=SignInLimit(),
    )
    for router in (health.router, verdicts.router, signing_in.router, queue_page.router, ticket_page.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


@asynccontextmanager
async def _working(beside: Sequence[Work]) -> AsyncIterator[None]:
    """What goes on beside the requests; at the end it is told to stop and waited for."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for work in beside:
            tasks.create_task(work(stop))
        yield
        stop.set()
