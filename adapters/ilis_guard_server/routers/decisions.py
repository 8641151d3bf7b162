"""Whole decisions: every attempt with its text, scores, statistics and signatures."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from ilis_guard_server.dependencies import Client, GuardDep, IdempotencyKey
from ilis_guard_server.guard_call import GuardCall, json_body
from ilis_guard_server.openapi import decision_response, problem_responses, request_body
from ilis_guard_server.schemas.requests import DecisionRequest
from ilis_guard_server.schemas.responses import DecisionBody, decision_headers

router = APIRouter(prefix="/v1", tags=["decisions"])


@router.post(
    "/decisions",
    summary="Ask the guard for its whole decision",
    responses={200: decision_response(DecisionBody), **problem_responses(400, 401, 403, 413, 415, 422, 429, 500, 503)},
    openapi_extra=request_body(DecisionRequest),
)
async def create_decision(
    request: Request,
    body: Annotated[DecisionRequest, Depends(json_body(DecisionRequest))],
    state: GuardDep,
    client: Client,
    key: IdempotencyKey,
) -> Response:
    """The decision as callers may see it: errors by kind and message, rules by id and outcome."""
    call = GuardCall.of(body, state, client=client, key=key, http=request)
    decision = await call.decide(request.receive)
    content = DecisionBody.model_validate(decision.for_callers()).model_dump()
    return JSONResponse(content, headers=decision_headers(decision))
