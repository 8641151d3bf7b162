"""Our own: a request in, the whole decision out."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ilis_guard.types import FinishReason, Label, Mode, Stage, TicketKind, TicketState, Verdict
from ilis_guard_server.asked import asked_of, read
from ilis_guard_server.clients import Client
from ilis_guard_server.deciding import decide
from ilis_guard_server.document import body_of, json_response
from ilis_guard_server.openai_requests import DecisionRequest
from ilis_guard_server.openai_responses import ErrorBody, Outcome, RulingBody, Told
from ilis_guard_server.problems import responses
from ilis_guard_server.service import TheService
from ilis_guard_server.telling import header

router = APIRouter(prefix="/v1", tags=["decisions"])


class ScoreBody(Told):
    """What a scorer said."""

    uncertainty: float
    typicality: float | None


class AttemptBody(Told):
    """One tier's try; fields as of `ilis_guard.Attempt`."""

    tier: str
    stage: Stage
    text: str
    uncertainty: float | None
    typicality: float | None
    prompt_score: ScoreBody | None
    prompt_seconds: float | None
    prompt_cost: float | None
    statistics: dict[str, float | None] | None
    seconds: float
    prompt_tokens: int
    tokens: int
    cost: float
    finish_reason: FinishReason | None
    stopped_at: int | None
    error: ErrorBody | None
    signatures: dict[str, list[list[float]]]


class TicketBody(Told):
    """The request before a person; fields as of `ilis_guard.Ticket`."""

    id: str
    queue: str
    state: TicketState
    kind: TicketKind
    created_at: float
    priority: int
    due_at: float | None
    version: int
    claimed_by: str
    claimed_until: float | None
    verdict: Verdict | None
    text: str
    reason: str
    ended_at: float | None


class ShadowBody(Told):
    """What a policy that only looks on would have decided."""

    policy: str
    action: Literal["answer", "abstain", "retry", "escalate"] | None
    rule: str | None
    rulings: list[RulingBody]
    error: ErrorBody | None


class DecisionBody(Told):
    """A decision; fields as of `ilis_guard.Decision`."""

    id: str
    created_at: float
    action: Outcome
    text: str
    uncertainty: float | None
    rule: str | None
    rulings: list[RulingBody]
    policy: str
    labels: dict[str, Label]
    prompt_length: int
    mode: Mode
    thresholds: dict[str, float | None]
    bundles: dict[str, str]
    shadow: ShadowBody | None
    cost: float
    ticket: TicketBody | None
    ticket_error: ErrorBody | None
    attempts: list[AttemptBody]


@router.post(
    "/decisions",
    summary="Ask the guard, and hear all of its decision",
    responses={200: json_response("DecisionBody"), **responses(400, 401, 403, 413, 415, 429, 500, 503)},
    openapi_extra=body_of("DecisionRequest"),
)
async def decisions(request: Request, service: TheService, client: Client) -> Response:
    """Every attempt with its text, its scores, its statistics and its signatures, and what became of it."""
    body = await read(request, DecisionRequest)
    decision = await decide(service, asked_of(body, service, client=client, request=request), request.receive)
    told: dict[str, Any] = decision.for_callers()
    return JSONResponse(DecisionBody.model_validate(told).model_dump(), headers=header(decision))
