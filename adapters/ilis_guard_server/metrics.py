"""What Prometheus reads."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from ilis_guard_server.clients import Client
from ilis_guard_server.problems import responses
from ilis_guard_server.service import TheService

router = APIRouter(tags=["operation"])


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Counters", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **responses(401, 403, 500),
    },
)
async def metrics(service: TheService, client: Client) -> Response:
    """Names of rules, tiers and queues are labels; prompts, answers and callers' labels never are."""
    del client
    return Response(service.meter.text(), media_type=CONTENT_TYPE_LATEST)
