"""Endpoints for operators: liveness, readiness and metrics."""

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from ilis_guard_server.dependencies import Client, GuardDep
from ilis_guard_server.openapi import problem_responses

health_router = APIRouter(tags=["operation"])
"""Also where the guard isn't served."""
router = APIRouter(tags=["operation"])


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Ready where all three hold. Models are loaded before the server accepts any connection."""

    status: Literal["ready", "not ready"]
    queue: bool
    """The human queue's database takes writes, or the guard has no queue."""
    policy: bool
    """The policy files, as they now stand, are in force."""
    serving: bool
    """The server wasn't told to stop."""


@health_router.get("/healthz", summary="Whether the process is alive")
async def get_health() -> Health:
    """It is, whatever state the queue's database is in."""
    return Health()


@router.get(
    "/readyz",
    summary="Whether the server is ready for requests",
    responses={503: {"description": "Not ready", "model": Readiness}},
)
async def get_readiness(response: Response, state: GuardDep) -> Readiness:
    """The status is 503 where one of the checks fails; the log says why."""
    queue = await state.probe.is_writable()
    _ = state.guard.policy  # reads its files again if they changed, which an idle guard doesn't
    policy, serving = not state.guard.policy_problem, not state.deadlines.is_shutting_down
    is_ready = queue and policy and serving
    if not is_ready:
        response.status_code = 503
    return Readiness(status="ready" if is_ready else "not ready", queue=queue, policy=policy, serving=serving)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problem_responses(401, 403, 500),
    },
)
async def get_metrics(state: GuardDep, client: Client) -> Response:
    """Names of rules, tiers and queues are labels; prompts, answers and callers' labels never are."""
    del client
    return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
