"""The application: routers, middleware and error handlers around a guard, a reviewers' page, or both."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from ilis_guard import Guard, __version__
from ilis_guard.config.review import PageSettings
from ilis_guard.config.secrets import resolve_secret
from ilis_guard.config.server import ServerSettings
from ilis_guard.errors import ClientDisconnected, ConfigError, IlisGuardError
from ilis_guard.policy import Policy
from ilis_guard.review import ReviewQueue, signing
from ilis_guard.scoring import TypicalMaps
from ilis_guard_server.dependencies import GuardState, PageState, SignInRequiredError
from ilis_guard_server.limits import PendingWork
from ilis_guard_server.middleware import RequestMiddleware
from ilis_guard_server.openapi import install_openapi
from ilis_guard_server.problem_details import handle_http_error, handle_ilis_guard_error, handle_validation_error
from ilis_guard_server.routers import decisions, openai, operations, sign_in, tickets, verdicts

STOP_SECONDS: Final = 10
"""How long requests in flight may take once the server is told to stop, and tickets to be stored after that; the
guard's requests have time of their own before."""
_STATIC: Final = Path(__file__).parent / "static"

BackgroundTask = Callable[[asyncio.Event], Coroutine[Any, Any, None]]
"""Runs until the event is set, such as the delivery of webhooks."""


def create_app(
    settings: PageSettings | None = None,
    *,
    policy: Policy,
    review: ReviewQueue | None = None,
    typical_maps: Mapping[str, TypicalMaps] | None = None,
    guard: Guard | None = None,
    server: ServerSettings | None = None,
    background: Sequence[BackgroundTask] = (),
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """Build the application: the reviewers' page, the guard, or both.

    Args:
        settings: of the page; None for no page, and then for no verdicts from other tools.
        policy: the policy in force; where there is a guard, the guard's, which may change.
        review: the queue, which the page needs; whoever opened it closes it.
        typical_maps: the typical maps of right and wrong answers, by tier.
        guard: answers requests over HTTP; whoever built it closes it.
        server: settings of the guard's endpoints.
        background: tasks that run as long as the application does.
        clock: seconds since the epoch, the queue's own.

    Raises:
        ConfigError: the hash of a token or of an API key, or the secret of verdicts, isn't where the settings say it
            is; or there is a page and no queue.
    """
    guard_state = None if guard is None else GuardState(guard, server or ServerSettings(), review)
    is_secure = settings is not None and settings.url.startswith("https:")
    app = FastAPI(
        title="ilis_guard",
        version=__version__,
        openapi_url=None,  # see `install_openapi`
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # such redirects lead to the host that the request names, whoever's it is
        lifespan=lambda _: _run_in_background(background, None if guard_state is None else guard_state.pending_work),
        middleware=[Middleware(RequestMiddleware, is_secure=is_secure, guard=guard_state)],
        exception_handlers={
            IlisGuardError: handle_ilis_guard_error,
            HTTPException: handle_http_error,
            RequestValidationError: handle_validation_error,
            SignInRequiredError: sign_in.handle_sign_in_required,
            ClientDisconnected: _handle_disconnect,
            ClientDisconnect: _handle_disconnect,  # in the middle of a body
        },
    )
    app.include_router(operations.health_router)
    if settings is not None:
        if review is None:
            raise ConfigError("the reviewers' page shows a queue's tickets, and there is no queue; give it one")
        if settings.verdict_secret is not None:
            signing.check(resolve_secret(settings.verdict_secret))
        app.state.page = PageState(
            settings,
            review=review,
            policy=(lambda: policy) if guard is None else (lambda: guard.policy),
            typical_maps=typical_maps or {},
            clock=clock,
        )
        for router in (verdicts.router, sign_in.router, tickets.router):
            app.include_router(router)
        app.mount("/static", StaticFiles(directory=_STATIC))
    if guard_state is not None:
        app.state.guard = guard_state
        for router in (openai.router, decisions.router, operations.router):
            app.include_router(router)
    install_openapi(app, needs_key=guard_state is not None and bool(guard_state.keys))
    return app


@asynccontextmanager
async def _run_in_background(tasks: Sequence[BackgroundTask], pending_work: PendingWork | None) -> AsyncIterator[None]:
    """Run tasks in the background; at the end, tell them to stop and wait for them, and for tickets to be stored."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(task(stop))
        yield
        if pending_work is not None:
            await pending_work.wait(STOP_SECONDS)
        stop.set()


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    """Nobody reads this response; its status is counted."""
    del request, error
    return Response(status_code=499)
