"""What every request passes: an id, a limit on its body, headers on its answer, and an end for what nobody caught."""

import traceback
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ilis_guard import events
from ilis_guard_server.problems import problem

BODY_BYTES: Final = 256 * 1024
"""A corrected answer of some 40,000 words. Larger bodies are refused before they are read."""
POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
YEAR: Final = 31_536_000


class Gate:
    """ASGI middleware around the whole application.

    Args:
        app: what it stands before.
        is_secure: whether reviewers come by https, so that browsers may be told never to come otherwise.
        body_bytes: by path: how large its bodies may be, where that isn't `BODY_BYTES`.
        responded: told the path and the status of each response.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        is_secure: bool,
        body_bytes: Mapping[str, int],
        responded: Callable[[str, int], None] = lambda _path, _status: None,
    ) -> None:
        self._app = app
        self._body_bytes = body_bytes
        self._responded = responded
        self._headers = HEADERS | ({"strict-transport-security": f"max-age={YEAR}"} if is_secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._responded(scope["path"], message["status"])
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("cache-control", "no-store")
                for name, value in self._headers.items():
                    headers[name] = value
            await send(message)

        try:
            limit = self._body_bytes.get(scope["path"], BODY_BYTES)
            await self._app(scope, _limited(receive, scope, limit), send_with_headers)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends here: a traceback's message may quote a prompt
            events.log().error(
                events.REQUEST_FAILED,
                request=request_id,
                method=scope["method"],
                path=scope["path"],
                status=500,
                error=type(error).__name__,
                where=_where(error),
            )
            if not started:
                await problem(500, request_id)(scope, receive, send_with_headers)


def _limited(receive: Receive, scope: Scope, limit: int) -> Receive:
    """The body as it comes, until it is too large."""
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


def _where(error: BaseException) -> str:
    """The innermost place, without the message."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
