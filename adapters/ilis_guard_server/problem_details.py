"""What goes wrong, told outward: problem details (RFC 9457) with a request id. The particulars are in the log."""

import inspect
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ilis_guard import events
from ilis_guard.errors import (
    ConfigError,
    IlisGuardError,
    QueueStorageError,
    RequestError,
    ReviewError,
    TicketConflictError,
    TicketNotFoundError,
    WebhookSignatureError,
)
from ilis_guard_server.pages import error_page

MEDIA_TYPE: Final = "application/problem+json"
_STATUS: Final[tuple[tuple[type[IlisGuardError], int], ...]] = (
    (TicketNotFoundError, 404),
    (TicketConflictError, 409),
    (QueueStorageError, 503),
    (WebhookSignatureError, 401),
    (ReviewError, 400),
    (RequestError, 400),
    (ConfigError, 503),
    (IlisGuardError, 500),
)
_TYPES: Final[Mapping[int, str]] = {401: "authentication_error", 429: "rate_limit_error"}
"""OpenAI's words for statuses; those without one are `invalid_request_error` or `server_error`."""


class RefusedError(HTTPException):
    """A request is refused, for a reason that its sender may hear.

    Args:
        status: HTTP's.
        detail: a sentence: what, and what to do.
        param: the parameter at fault, as OpenAI's clients show it; empty for none.
        code: the reason in a word, as OpenAI's clients show it.
        headers: of the response.
    """

    def __init__(
        self, status: int, detail: str, *, param: str = "", code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.param = param
        self.code = code


class ErrorMember(BaseModel):
    """The same as OpenAI's clients look for it: what their exceptions show."""

    message: str
    type: str
    """`invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`."""
    param: str | None
    """The parameter at fault."""
    code: str | None


class Problem(BaseModel):
    """Problem details, as RFC 9457 has them."""

    type: str = "about:blank"
    """A URN that names our error, where it is one of ours: ``urn:ilis-guard:error:TicketClaimedError``."""
    title: str
    status: int
    detail: str
    request_id: str
    """As in the log, and in the header `x-request-id`."""
    error: ErrorMember


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: each of these statuses comes with a problem."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def problem(
    status: int,
    request_id: str,
    *,
    detail: str = "",
    of: IlisGuardError | RefusedError | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem as a response."""
    detail = detail or HTTPStatus(status).description or HTTPStatus(status).phrase
    kind = type(of).__name__ if isinstance(of, IlisGuardError) else ""
    told = Problem(
        type=f"urn:ilis-guard:error:{kind}" if kind else "about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        request_id=request_id,
        error=ErrorMember(
            message=f"{detail} (request {request_id})",
            type=_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            param=(of.param or None) if isinstance(of, RefusedError) else None,
            code=of.code if isinstance(of, RefusedError) else kind or None,
        ),
    )
    return JSONResponse(told.model_dump(), status_code=status, headers=headers, media_type=MEDIA_TYPE)


def failed(request_id: str) -> str:
    """What is said in the middle of a stream that failed: the problem, as JSON."""
    return bytes(problem(500, request_id).body).decode()


def status_of(error: IlisGuardError) -> int:
    """The status that an error of ours is told with."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def detail_of(error: IlisGuardError) -> str:
    """What is said outward: what the caller can mend as it is, everything else by its kind alone."""
    return str(error) if status_of(error) == 400 else inspect.getdoc(type(error)) or ""


async def on_our_error(request: Request, error: Exception) -> Response:
    """Tell an error of ours."""
    assert isinstance(error, IlisGuardError)
    status = status_of(error)
    log(request, status, error)
    return _told(request, status, detail=detail_of(error), of=error)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Tell what the framework or a router refused."""
    assert isinstance(error, HTTPException)
    if isinstance(error, RefusedError):
        return _told(request, error.status_code, detail=str(error.detail), of=error, headers=error.headers)
    return _told(request, error.status_code, headers=error.headers)


async def on_bad_input(request: Request, error: Exception) -> Response:
    """Tell which fields can't be used, and not what stood in them."""
    assert isinstance(error, RequestValidationError)
    fields = sorted({".".join(map(str, one["loc"][1:])) for one in error.errors()})
    return _told(request, 400, detail=f"These fields are missing or can't be used: {', '.join(fields)}")


def log(request: Request, status: int, error: IlisGuardError) -> None:
    """Note a failure: 5xx is ours to mend, 4xx the caller's."""
    write = events.log().error if status >= 500 else events.log().info
    write(
        events.REQUEST_FAILED,
        request=request.state.request_id,
        method=request.method,
        path=request.url.path,
        status=status,
        error=f"{type(error).__name__}: {error}" if status >= 500 else type(error).__name__,
    )


def _told(
    request: Request,
    status: int,
    *,
    detail: str = "",
    of: IlisGuardError | RefusedError | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """As a page where a person looks, as problem details for all else."""
    if "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/"):
        return error_page(request, status, detail=detail, headers=headers)
    return problem(status, request.state.request_id, detail=detail, of=of, headers=headers)
