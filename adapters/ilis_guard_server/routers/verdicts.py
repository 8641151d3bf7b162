"""Verdicts that reviewers give in other tools, signed as Standard Webhooks are."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from ilis_guard.config.secrets import resolve_secret
from ilis_guard.errors import ReviewError
from ilis_guard.review.signing import verify
from ilis_guard_server.dependencies import PageDep
from ilis_guard_server.openapi import problem_responses, request_body, required_header
from ilis_guard_server.schemas.requests import VerdictMessage
from ilis_guard_server.schemas.responses import ResolvedTicket

_HEADERS: Final = [
    required_header("webhook-id", "The message's id, the same whenever it is sent again."),
    required_header("webhook-timestamp", "Seconds since the epoch; at most 5 minutes away from now."),
    required_header("webhook-signature", "`v1,` and the HMAC-SHA256 of `id.timestamp.body` in base64."),
]

router = APIRouter(prefix="/v1", tags=["review"])


async def signed_message(request: Request, state: PageDep) -> VerdictMessage:
    """Read a message whose sender knows the secret; the signature is over the body's bytes as they came.

    Raises:
        HTTPException: 404: the operator takes no verdicts from other tools.
        WebhookSignatureError: it isn't signed.
        ReviewError: it isn't a verdict.
    """
    reference = state.settings.verdict_secret
    if reference is None:
        raise HTTPException(404)
    body = await request.body()
    secret = await run_in_threadpool(resolve_secret, reference)
    verify(secret, request.headers, body)
    try:
        return VerdictMessage.model_validate_json(body)
    except ValidationError as invalid:
        fields = sorted({".".join(map(str, each["loc"])) or "the whole body" for each in invalid.errors()})
        raise ReviewError(f"these fields are missing or invalid: {', '.join(fields)}") from None


@router.post(
    "/tickets/{ticket}/verdict",
    summary="End a ticket with a verdict",
    responses=problem_responses(400, 401, 404, 409, 413, 500, 503),
    openapi_extra=request_body(VerdictMessage) | {"parameters": _HEADERS},
)
def resolve_ticket(
    ticket: str, message: Annotated[VerdictMessage, Depends(signed_message)], state: PageDep
) -> ResolvedTicket:
    """The same verdict again, with the same text, changes nothing and is answered alike.

    The status is 409 where the ticket ended otherwise, somebody else has claimed it, or it has another version.
    """
    if message.ticket != ticket:
        raise ReviewError(f"the verdict is on ticket {message.ticket}, and was sent to another one's address")
    resolved = state.review.resolve(
        message.ticket,
        message.verdict,
        text=message.text,
        reason=message.reason,
        reviewer=message.reviewer,
        version=message.version,
    )
    return ResolvedTicket.of(resolved)
