"""Webhooks in: verdicts that reviewers give in another tool, signed as our own webhooks are.

Standard Webhooks sign the id, the time and the body, and not the address: so the body names its ticket, or a verdict
on one ticket could be sent on to another's address.
"""

from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.concurrency import run_in_threadpool

from ilis_guard.config import secrets
from ilis_guard.errors import ReviewError
from ilis_guard.review.signing import verify
from ilis_guard.types import Ticket, TicketState, Verdict
from ilis_guard_server.house import House, TheHouse
from ilis_guard_server.problems import responses

# PostgreSQL takes no NUL in a text.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]

router = APIRouter(prefix="/v1", tags=["review"])


class VerdictMessage(BaseModel):
    """What a tool sends."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ticket: str = Field(pattern=r"^[0-9a-f]{32}$")
    """The same as in the address."""
    verdict: Verdict
    text: Text = ""
    """The right answer, with the verdict `correct` and only with it."""
    reason: Text = ""
    """Why."""
    reviewer: Text = Field(default="", max_length=100)
    """Who decided so, as the ticket will show it. Where somebody has it claimed, only they may end it."""
    version: int | None = Field(default=None, ge=1)
    """The version of the ticket that they looked at; without one, the verdict is on whatever it is now."""


class ResolvedTicket(BaseModel):
    """The ticket as the verdict left it."""

    id: str
    queue: str
    state: TicketState
    version: int
    verdict: Verdict
    text: str
    reason: str
    ended_at: float
    """Seconds since the epoch, UTC."""

    @classmethod
    def of(cls, ticket: Ticket) -> "ResolvedTicket":
        """Of a ticket that has ended."""
        return cls.model_validate(ticket.to_dict() | {"verdict": ticket.verdict}, strict=True)


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": description}


# What is signed are the bytes as they came: the body is read as such, and the document is told by hand what it holds.
_BY_HAND: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "ticket",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            "description": "The ticket's id, whole.",
        },
        _header("webhook-id", "The message's id, the same whenever it is sent again."),
        _header("webhook-timestamp", "Seconds since the epoch; at most 5 minutes away from now."),
        _header("webhook-signature", "`v1,` and the HMAC-SHA256 of `id.timestamp.body` in base64."),
    ],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/VerdictMessage"}}},
    },
}


@router.post(
    "/tickets/{ticket}/verdict",
    summary="End a ticket with a verdict",
    response_model=ResolvedTicket,
    responses=responses(400, 401, 404, 409, 413, 500, 503),
    openapi_extra=_BY_HAND,
)
async def give_verdict(request: Request, house: TheHouse) -> ResolvedTicket:
    """The same verdict again, with the same text, changes nothing and is answered alike.

    It answers 409 where the ticket already ended otherwise, somebody else has it claimed, or it has another version.
    """
    body = await request.body()
    message = await run_in_threadpool(_message, house, request, body)
    if message.ticket != request.path_params["ticket"]:
        raise ReviewError(f"the verdict is on ticket {message.ticket}, and was sent to another one's address")
    ticket = await run_in_threadpool(
        house.review.resolve,
        message.ticket,
        message.verdict,
        text=message.text,
        reason=message.reason,
        reviewer=message.reviewer,
        version=message.version,
    )
    return ResolvedTicket.of(ticket)


def _message(house: House, request: Request, body: bytes) -> VerdictMessage:
    """What was sent, once it is certain who sent it."""
    reference = house.page.verdict_secret
    if reference is None:
        raise HTTPException(404)
    verify(secrets.resolve_secret(reference), request.headers, body)
    try:
        return VerdictMessage.model_validate_json(body)
    except ValidationError as problems:
        fields = sorted({".".join(map(str, one["loc"])) or "the whole body" for one in problems.errors()})
        raise ReviewError(f"these fields are missing or can't be used: {', '.join(fields)}") from None
