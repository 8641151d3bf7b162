"""ASGI middleware around the application: request ids, body limits, security headers, and unexpected errors."""

import traceback
import uuid
from pathlib import Path
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ilis_guard import events
from ilis_guard_server.dependencies import GuardState
from ilis_guard_server.problem_details import problem_response

GUARD_PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/decisions")
"""Paths whose requests go to the guard: their bodies have a limit of their own, and their responses are counted. Any
other path may be made up, and so isn't a metric's label."""
MAX_BODY_BYTES: Final = 256 * 1024
"""Of all other paths: a corrected answer of some 40,000 words."""
_CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_ONE_YEAR: Final = 31_536_000
"""Seconds."""


class RequestMiddleware:
    """Gives each request an id, limits its body, adds headers to its response, and answers unexpected errors.

    Args:
        app: the application.
        is_secure: whether reviewers come by https, so that browsers are told to always do.
        guard: state of the endpoints that ask the guard; None where it isn't served.
    """

    def __init__(self, app: ASGIApp, *, is_secure: bool, guard: GuardState | None) -> None:
        self._app = app
        self._guard = guard
        self._headers = _HEADERS | ({"strict-transport-security": f"max-age={_ONE_YEAR}"} if is_secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        guard = self._guard if scope["path"] in GUARD_PATHS else None
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                if guard is not None:
                    guard.metrics.count_response(scope["path"], message["status"])
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("cache-control", "no-store")
                headers.update(self._headers)
            await send(message)

        try:
            limit = MAX_BODY_BYTES if guard is None else guard.settings.max_body_bytes
            await self._app(scope, _limited(receive, scope, limit), send_with_headers)
        except Exception as error:  # noqa: BLE001 - it must end here: its message may quote a prompt
            events.log().error(
                events.REQUEST_FAILED,
                request=request_id,
                method=scope["method"],
                path=scope["path"],
                status=500,
                error=type(error).__name__,
                where=_innermost_frame(error),
            )
            if not has_started:
                await problem_response(500, request_id)(scope, receive, send_with_headers)


def _limited(receive: Receive, scope: Scope, limit: int) -> Receive:
    """Receive a body of at most so many bytes, announced or not.

    FastAPI's own `max_body_size` answers a body that was announced too large in plain text, and not as a problem.
    """
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    left = limit

    async def receive_some() -> Message:
        nonlocal left
        if not announced.isdigit() or int(announced) > limit:
            raise HTTPException(413)
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413)
        return message

    return receive_some


def _innermost_frame(error: BaseException) -> str:
    """Where an error was raised, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
