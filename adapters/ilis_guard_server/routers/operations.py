"""Whether requests should be sent here now."""

from typing import Literal

from anyio import to_thread
from fastapi import APIRouter, Response
from pydantic import BaseModel

from ilis_guard import events
from ilis_guard.errors import QueueStorageError
from ilis_guard_server.service import Service, TheService

router = APIRouter(tags=["operation"])


class Readiness(BaseModel):
    """All of these must be so. Models are loaded before the server takes requests at all."""

    status: Literal["ready", "not ready"]
    queue: bool
    """The human queue's database can be reached, or the guard has none."""
    policy: bool
    """The policy files, as they now stand, are in force."""
    serving: bool
    """The server wasn't told to stop."""


@router.get(
    "/readyz",
    summary="Whether requests should be sent here now",
    responses={503: {"description": "Not now", "model": Readiness}},
)
async def readyz(response: Response, service: TheService) -> Readiness:
    """It answers 503 where one of the checks fails; the log says why."""
    queue = await to_thread.run_sync(_reaches_queue, service, limiter=service.probes)
    _ = service.guard.policy  # looks at its files, which an idle guard doesn't
    policy, serving = not service.guard.policy_problem, not service.ending.is_near
    is_ready = queue and policy and serving
    if not is_ready:
        response.status_code = 503
    return Readiness(status="ready" if is_ready else "not ready", queue=queue, policy=policy, serving=serving)


def _reaches_queue(service: Service) -> bool:
    if service.review is None:
        return True
    try:
        service.review.probe()
    except QueueStorageError as error:
        events.log().warning(events.QUEUE_UNREACHABLE, error=f"{type(error).__name__}: {error}")
        return False
    return True
