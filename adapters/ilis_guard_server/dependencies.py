"""What path functions depend on: the application's state, its API clients and its signed-in users."""

import asyncio
import hmac
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final

from fastapi import Depends, Form, Header, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import Response

from ilis_guard import Guard, events
from ilis_guard.concurrency.portal import run_in_thread
from ilis_guard.config.addresses import is_loopback
from ilis_guard.config.review import PageSettings
from ilis_guard.config.server import ServerSettings
from ilis_guard.errors import QueueStorageError, log_detail
from ilis_guard.policy import Policy
from ilis_guard.review import ReviewQueue
from ilis_guard.scoring import TypicalMaps
from ilis_guard_server.auth import SESSION_SECONDS, Credentials, Sessions, SignInLimit, User, Users
from ilis_guard_server.limits import ConcurrencyLimiter, Deadlines, PendingWork
from ilis_guard_server.metrics import Metrics
from ilis_guard_server.problem_details import ApiError

PROBE_SECONDS: Final = 1.0
NO_CLIENT: Final = ""
"""The client's name on a server without API keys."""
_BEARER: Final = HTTPBearer(auto_error=False, scheme_name="key")


class QueueProbe:
    """Whether the queue's database takes writes.

    It is asked at most once a second, and by one probe at a time, however many ask: each probe is a commit, and
    anybody may ask.

    Args:
        review: the queue; None where the guard has none, and then nothing is amiss.
    """

    def __init__(self, review: ReviewQueue | None) -> None:
        self._review = review
        self._running: asyncio.Future[bool] | None = None
        self._ended_at = -math.inf

    async def is_writable(self) -> bool:
        """Ask, or take the answer of another who has just asked."""
        if self._review is None:
            return True
        if self._running is None or (self._running.done() and time.monotonic() - self._ended_at >= PROBE_SECONDS):
            self._running = asyncio.ensure_future(run_in_thread(partial(_writes, self._review)))
            self._running.add_done_callback(self._end)
        # Who stops waiting doesn't stop the probe of the others.
        return await asyncio.shield(self._running)

    def _end(self, _: object) -> None:
        self._ended_at = time.monotonic()


def _writes(review: ReviewQueue) -> bool:
    try:
        review.probe()
    except QueueStorageError as error:
        events.log().warning(events.QUEUE_UNREACHABLE, error=log_detail(error))
        return False
    return True


class GuardState:
    """State of the endpoints that ask the guard.

    Args:
        guard: the guard.
        settings: of the server.
        review: the queue, to see whether it can be reached; None where the guard has none.

    Raises:
        ConfigError: the hash of an API key isn't where guard.yaml says it is.
    """

    def __init__(self, guard: Guard, settings: ServerSettings, review: ReviewQueue | None) -> None:
        self.guard = guard
        self.settings = settings
        keys = {each.name: each.key for each in settings.api_keys}
        self.keys = Credentials(keys, command="ilis-guard api-key", shut_out=events.API_KEY_UNREADABLE)
        self.limiter = limiter = ConcurrencyLimiter(settings.max_concurrent, settings.max_waiting)
        self.deadlines = Deadlines()
        self.pending_work = PendingWork()
        self.metrics = Metrics(in_flight=lambda: limiter.in_flight, waiting=lambda: limiter.waiting)
        self.probe = QueueProbe(review)
        self.started_at = int(time.time())
        """Seconds since the epoch."""


class PageState:
    """State of the reviewers' page and of verdicts from other tools.

    Args:
        settings: of the page.
        review: the queue.
        policy: returns the policy in force: its thresholds are shown on tickets that it escalated.
        typical_maps: the typical maps of right and wrong answers, by tier; tiers without any are left out.
        clock: seconds since the epoch, as the queue's.

    Raises:
        ConfigError: the hash of a token isn't where guard.yaml says it is.
    """

    def __init__(
        self,
        settings: PageSettings,
        *,
        review: ReviewQueue,
        policy: Callable[[], Policy],
        typical_maps: Mapping[str, TypicalMaps],
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.review = review
        self.policy = policy
        self.typical_maps = typical_maps
        self.clock = clock
        self.users = Users(settings)
        self.sessions = Sessions()
        self.sign_in_limit = SignInLimit()
        self.is_secure = settings.url.startswith("https:")
        """Whether reviewers come by https."""
        self.cookie = "__Host-ilis_guard" if self.is_secure else "ilis_guard"
        """Browsers keep a `__Host-` cookie from being set by anybody but this very host, by https."""

    def set_cookie(self, response: Response, name: str, value: str, seconds: float = SESSION_SECONDS) -> None:
        """Set a cookie that scripts can't read and other sites can't send."""
        response.set_cookie(
            name, value, max_age=int(seconds), path="/", secure=self.is_secure, httponly=True, samesite="strict"
        )


# Asynchronous: FastAPI runs other functions in threads, which requests would have to wait for.


async def guard_state(request: Request) -> GuardState:
    """Get the guard's state."""
    state: GuardState = request.app.state.guard
    return state


async def page_state(request: Request) -> PageState:
    """Get the page's state."""
    state: PageState = request.app.state.page
    return state


GuardDep = Annotated[GuardState, Depends(guard_state)]
PageDep = Annotated[PageState, Depends(page_state)]


# API clients.


def require_client(
    request: Request, state: GuardDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> str:
    """Require an API key, or, on a server without keys, a program on this machine; the name of the key.

    Raises:
        ApiError: 401 or 403.
    """
    if not state.keys:
        _require_local_program(request)
        return NO_CLIENT
    found = None if credentials is None else state.keys.find(credentials.credentials.strip())
    if found is None:
        _log_refused_key(request)
        raise ApiError(
            401,
            "This needs an API key that the server knows: Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return found[0]


Client = Annotated[str, Depends(require_client)]


_KeyHeader = Annotated[
    str | None,
    Header(
        alias="idempotency-key",
        description="Of your own making, a new one for each request: sent again, the request gets the same decision.",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
    ),
]


def one_key(request: Request, key: _KeyHeader = None) -> str | None:
    """The idempotency key of a request; None where it has none.

    Raises:
        ApiError: 400, it has several: a proxy would take the one, and the server the other.
    """
    if len(set(request.headers.getlist("idempotency-key"))) > 1:
        raise ApiError(400, "There are several idempotency-key headers; send one.", code="several_idempotency_keys")
    return key


IdempotencyKey = Annotated[str | None, Depends(one_key)]


def _require_local_program(request: Request) -> None:
    """Refuse other machines, and web pages that a browser on this machine shows, by whatever name they found us."""
    # Where the header is no host's name, the URL has the server's own address instead.
    is_named = request.url.netloc == request.headers.get("host")
    if not is_named or not is_loopback(request.url.hostname or "") or "origin" in request.headers:
        _log_refused_key(request)
        raise ApiError(
            403,
            "Without API keys, only programs on this machine may send requests, to a loopback address.",
            code="no_api_keys",
        )


def _log_refused_key(request: Request) -> None:
    address = "" if request.client is None else request.client.host
    events.log().warning(events.AUTH_FAILED, request=request.state.request_id, address=address)


# Users of the reviewers' page.


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentUser(User):
    """The user who is signed in."""

    csrf: str
    by_token: bool
    """Whether they signed in with a token, and not through the proxy."""


class SignInRequiredError(Exception):
    """Nobody is signed in."""


def find_user(request: Request, state: PageState) -> CurrentUser | None:
    """The signed-in user; None where nobody is, or where the token or the proxy no longer vouches for them."""
    session = state.sessions.get(request.cookies.get(state.cookie, ""))
    if session is None:
        return None
    if session.token_hash:
        user = state.users.find_by_hash(session.name, session.token_hash)
    else:
        user = state.users.find_by_proxy(request)
    if user is None or user.name != session.name:
        return None
    return CurrentUser(name=user.name, role=user.role, csrf=session.csrf, by_token=bool(session.token_hash))


def require_user(request: Request, state: PageDep) -> CurrentUser:
    """Require a signed-in user.

    Raises:
        SignInRequiredError: nobody is signed in.
    """
    user = find_user(request, state)
    if user is None:
        raise SignInRequiredError
    return user


UserDep = Annotated[CurrentUser, Depends(require_user)]


def require_csrf(request: Request, user: UserDep, csrf: Annotated[str, Form()] = "") -> CurrentUser:
    """Require a form of our own, sent by a signed-in user.

    Raises:
        HTTPException: 403: another site may have sent the form.
    """
    require_same_site(request)
    if not hmac.compare_digest(csrf.encode(), user.csrf.encode()):
        raise HTTPException(403)
    return user


CsrfUserDep = Annotated[CurrentUser, Depends(require_csrf)]


def require_reviewer(user: CsrfUserDep) -> CurrentUser:
    """Require a form of our own, sent by a reviewer.

    Raises:
        HTTPException: 403: the user is a viewer.
    """
    if not user.is_reviewer:
        raise HTTPException(403)
    return user


ReviewerDep = Annotated[CurrentUser, Depends(require_reviewer)]


def require_same_site(request: Request) -> None:
    """Refuse a request that, as its browser says, another site sent.

    Raises:
        HTTPException: 403.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403)
