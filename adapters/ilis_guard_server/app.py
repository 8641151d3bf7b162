"""The application: routers on one house, behind one gate."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

from ilis_guard import Guard, __version__
from ilis_guard.config import secrets
from ilis_guard.config.review import PageSettings
from ilis_guard.config.server import ServerSettings
from ilis_guard.errors import ConfigError, IlisGuardError
from ilis_guard.policy import Policy
from ilis_guard.review import ReviewQueue, signing
from ilis_guard.scoring import TypicalMaps
from ilis_guard_server import health, queue_page, signing_in, ticket_page, verdicts
from ilis_guard_server.access import SignInNeededError, on_sign_in_needed
from ilis_guard_server.deciding import ClientGoneError
from ilis_guard_server.document import describe
from ilis_guard_server.gate import Gate
from ilis_guard_server.guarding import ASKING, FOR_CLIENTS, SHAPES, add_guard, count, on_client_gone, service_with
from ilis_guard_server.house import House
from ilis_guard_server.people import People
from ilis_guard_server.problems import Problem, on_bad_input, on_http_error, on_our_error
from ilis_guard_server.service import Service
from ilis_guard_server.sessions import Sessions, SignInLimit
from ilis_guard_server.verdicts import VerdictMessage

STATIC: Final = Path(__file__).parent / "static"


Work = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Something that goes on until the event is set, such as delivering webhooks."""


def create_app(
    settings: PageSettings | None = None,
    *,
    policy: Policy,
    review: ReviewQueue | None = None,
    typical: Mapping[str, TypicalMaps] | None = None,
    guard: Guard | None = None,
    server: ServerSettings | None = None,
    beside: Sequence[Work] = (),
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """Build the application: the reviewers' page, the guard, or both.

    Args:
        settings: of the page; None for none, and then verdicts aren't taken either.
        policy: the one in use; a guard's own, where there is a guard, may be another one by and by.
        review: the queue, which the page needs; whoever opened it closes it.
        typical: by tier, what right and wrong answers look like inside.
        guard: asked over HTTP; whoever built it closes it.
        server: how the guard is asked.
        beside: what goes on beside the requests for as long as the application runs.
        clock: seconds since the epoch, the queue's own.

    Raises:
        ConfigError: somebody's token hash, an API key's, or the secret of verdicts, isn't where the settings say it
            is; or there is a page and no queue.
    """
    service = None if guard is None else service_with(guard, server or ServerSettings(), review)
    app = FastAPI(
        title="ilis_guard",
        version=__version__,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=lambda _: _working(beside),
        middleware=[_gate(settings, service)],
        exception_handlers={
            IlisGuardError: on_our_error,
            HTTPException: on_http_error,
            RequestValidationError: on_bad_input,
            SignInNeededError: on_sign_in_needed,
            ClientGoneError: on_client_gone,
            ClientDisconnect: on_client_gone,  # in the middle of a body
        },
    )
    app.include_router(health.router)
    if settings is not None:
        if review is None:
            raise ConfigError("the reviewers' page shows a queue's tickets, and there is no queue; give it one")
        # A guard's policy may change under way.
        in_force = (lambda: policy) if guard is None else (lambda: guard.policy)
        _add_page(app, settings, review=review, in_force=in_force, typical=typical or {}, clock=clock)
    if service is not None:
        add_guard(app, service)
    needs_key = service is not None and bool(service.keys)
    describe(app, [Problem, VerdictMessage, *SHAPES], needs_key=dict.fromkeys(FOR_CLIENTS, needs_key))
    return app


def _gate(settings: PageSettings | None, service: Service | None) -> Middleware:
    is_secure = settings is not None and settings.url.startswith("https:")
    if service is None:
        return Middleware(Gate, is_secure=is_secure, body_bytes={})
    body_bytes = dict.fromkeys(ASKING, service.settings.max_body_bytes)
    return Middleware(Gate, is_secure=is_secure, body_bytes=body_bytes, responded=partial(count, service))


def _add_page(
    app: FastAPI,
    settings: PageSettings,
    *,
    review: ReviewQueue,
    in_force: Callable[[], Policy],
    typical: Mapping[str, TypicalMaps],
    clock: Callable[[], float],
) -> None:
    if settings.verdict_secret is not None:
        signing.check(secrets.resolve_secret(settings.verdict_secret))
    app.state.house = House(
        review=review,
        page=settings,
        in_force=in_force,
        typical=typical,
        clock=clock,
        people=People(settings),
        sessions=Sessions(),
        sign_in_limit=SignInLimit(),
    )
    for router in (verdicts.router, signing_in.router, queue_page.router, ticket_page.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC))


@asynccontextmanager
async def _working(beside: Sequence[Work]) -> AsyncIterator[None]:
    """What goes on beside the requests; at the end it is told to stop and waited for."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for work in beside:
            tasks.create_task(work(stop))
        yield
        stop.set()
