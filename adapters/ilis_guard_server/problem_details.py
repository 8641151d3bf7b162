"""Errors as API callers see them: problem details (RFC 9457) with a request id. The log holds the particulars."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ilis_guard import errors, events
from ilis_guard.errors import IlisGuardError, error_text
from ilis_guard_server.pages.templating import error_page

MEDIA_TYPE: Final = "application/problem+json"
_STATUS: Final[tuple[tuple[type[IlisGuardError], int, str], ...]] = (
    (errors.TicketNotFoundError, 404, "No ticket has this id."),
    (errors.TicketResolvedError, 409, "The ticket already ended with another verdict."),
    (errors.TicketExpiredError, 409, "The ticket was overdue and ended without a verdict."),
    (errors.TicketClaimedError, 409, "Somebody else has claimed the ticket, or your claim has ended."),
    (errors.TicketChangedError, 409, "The ticket has another version than the one that was looked at."),
    (errors.TicketConflictError, 409, "The ticket has changed; look at it again."),
    (errors.QueueStorageError, 503, "The queue's storage failed; try again later."),
    (errors.WebhookSignatureError, 401, "The signature is missing, wrong or too old."),
    (errors.ReviewError, 400, ""),
    (errors.RequestConflictError, 422, "This idempotency key was sent with another request; make a new one for each."),
    (errors.RequestError, 400, ""),
    (errors.ConfigError, 503, "The server's configuration is incomplete; try again later."),
    (IlisGuardError, 500, ""),
)
"""The status and the detail of each class, the most special first. Without a detail, a 400 shows the error's own
message, which says what the caller can mend; any other status shows its standard description."""
_OPENAI_TYPES: Final[Mapping[int, str]] = {401: "authentication_error", 429: "rate_limit_error"}
"""OpenAI's names for statuses; others are `invalid_request_error` or `server_error`."""


class ApiError(HTTPException):
    """A request is refused for a reason that the caller may read.

    Args:
        status: of HTTP.
        detail: a sentence: what is wrong, and what to do.
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
    """The same in the member that OpenAI's clients read."""

    message: str
    type: str
    """`invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`."""
    param: str | None
    """The parameter at fault."""
    code: str | None


class Problem(BaseModel):
    """Problem details, as defined by RFC 9457."""

    type: str = "about:blank"
    """A URN with the class of the error, where it is one of ours: ``urn:ilis-guard:error:TicketClaimedError``."""
    title: str
    status: int
    detail: str
    request_id: str
    """As in the log, and in the header `x-request-id`."""
    error: ErrorMember


def problem_response(
    status: int,
    request_id: str,
    *,
    detail: str = "",
    error: IlisGuardError | ApiError | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Make a response of a problem."""
    detail = detail or HTTPStatus(status).description or HTTPStatus(status).phrase
    kind = type(error).__name__ if isinstance(error, IlisGuardError) else ""
    problem = Problem(
        type=f"urn:ilis-guard:error:{kind}" if kind else "about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        request_id=request_id,
        error=ErrorMember(
            message=f"{detail} (request {request_id})",
            type=_OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            param=(error.param or None) if isinstance(error, ApiError) else None,
            code=error.code if isinstance(error, ApiError) else kind or None,
        ),
    )
    return JSONResponse(problem.model_dump(), status_code=status, headers=headers, media_type=MEDIA_TYPE)


def status_and_detail(error: IlisGuardError) -> tuple[int, str]:
    """The HTTP status of an error, and what callers may read about it."""
    status, detail = next((status, detail) for kind, status, detail in _STATUS if isinstance(error, kind))
    return status, error_text(error) if status == 400 else detail


def problem_of(error: IlisGuardError | ApiError, request_id: str) -> Response:
    """The problem that an error is to API callers."""
    if isinstance(error, ApiError):
        return problem_response(error.status_code, request_id, detail=str(error.detail), error=error)
    status, detail = status_and_detail(error)
    return problem_response(status, request_id, detail=detail, error=error)


async def handle_ilis_guard_error(request: Request, error: Exception) -> Response:
    """Respond to an error of ours."""
    assert isinstance(error, IlisGuardError)
    log_failure(request, error)
    status, detail = status_and_detail(error)
    return _response(request, status, detail=detail, error=error)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Respond to what the framework or a router refused."""
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return _response(request, error.status_code, detail=str(error.detail), error=error, headers=error.headers)
    return _response(request, error.status_code, headers=error.headers)


async def handle_validation_error(request: Request, error: Exception) -> Response:
    """Name the fields that are invalid, and not their values."""
    assert isinstance(error, RequestValidationError)
    fields = sorted({".".join(map(str, each["loc"][1:])) for each in error.errors()})
    return _response(request, 400, detail=f"These fields are missing or invalid: {', '.join(fields)}")


def log_failure(request: Request, error: IlisGuardError) -> None:
    """Log an error: 5xx is the operator's to mend, 4xx the caller's."""
    status, _ = status_and_detail(error)
    write = events.log().error if status >= 500 else events.log().info
    write(
        events.REQUEST_FAILED,
        request=request.state.request_id,
        method=request.method,
        path=request.scope["path"],
        status=status,
        error=f"{type(error).__name__}: {error_text(error)}" if status >= 500 else type(error).__name__,
    )


def _response(
    request: Request,
    status: int,
    *,
    detail: str = "",
    error: IlisGuardError | ApiError | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A page for browsers, problem details for all others."""
    if "text/html" in request.headers.get("accept", "") and not request.scope["path"].startswith("/v1/"):
        return error_page(request, status, detail=detail, headers=headers)
    return problem_response(status, request.state.request_id, detail=detail, error=error, headers=headers)
