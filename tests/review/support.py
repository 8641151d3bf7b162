"""Helpers of the relay's tests."""

import asyncio
import base64
from collections.abc import Callable
from itertools import repeat
from typing import Any

from sqlalchemy import Row, select

from ilis_guard.review import ReviewQueue
from ilis_guard.review.relay import OutboxRelay
from ilis_guard.review.schema import deliveries
from tests.endpoint import HOST, PATIENCE, Endpoint

OLD = "whsec_" + base64.b64encode(b"o" * 32).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()


def to(endpoint: Endpoint, **changes: Any) -> dict[str, Any]:
    """Settings of an endpoint that is there, fast, and hears that tickets were created."""
    return {
        "name": "crm",
        "url": endpoint.url,
        "secret": "${HOOK_SECRET}",
        "events": ("ticket.created", "delivery.exhausted"),
        "per_second": 10_000.0,
    } | changes


def relay(queue: ReviewQueue) -> OutboxRelay:
    return OutboxRelay(queue, internal_hosts=[HOST], page="https://review.example.org/")


def rows(queue: ReviewQueue, *, endpoint: str = "crm") -> list[Row[Any]]:
    """An endpoint's deliveries, the earliest first."""
    with queue.store.database.reading() as connection:
        mine = select(deliveries).where(deliveries.c.endpoint == endpoint).order_by(deliveries.c.created_at)
        return list(connection.execute(mine))


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what a worker does meanwhile."""
    async with asyncio.timeout(PATIENCE):
        for pause in repeat(0.02):
            if is_so():
                return
            await asyncio.sleep(pause)


def states(queue: ReviewQueue, *, endpoint: str = "crm") -> list[str]:
    return [row.state for row in rows(queue, endpoint=endpoint)]
