"""What endpoints are to hear: written with the change that it tells of, in the same transaction.

A worker reads it later. So nothing is sent of a change that wasn't committed, and nothing that was committed is
forgotten, wherever a process dies.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from ilis_guard.config.review import EndpointSettings, Event
from ilis_guard.review.schema import deliveries


def put(
    connection: Connection,
    endpoints: Sequence[EndpointSettings],
    event: Event,
    *,
    ticket: str,
    queues: Sequence[str],
    data: dict[str, Any],
    at: float,
) -> None:
    """Write one pending delivery for each endpoint that hears of the event.

    Args:
        connection: inside the transaction of the change.
        endpoints: all that are configured.
        event: what happened.
        ticket: id of the ticket it happened to.
        queues: the queues it concerns; a ticket that moves concerns two.
        data: the thin payload, which holds no prompt and no answer.
        at: when.
    """
    rows = [
        {
            "id": uuid.uuid4().hex,
            "ticket": ticket,
            "endpoint": endpoint.name,
            "event": event,
            "data": data,
            "created_at": at,
            "state": "pending",
            "tries": 0,
            "next_try_at": at,
            "last_error": "",
            "leased_by": "",
        }
        for endpoint in endpoints
        if endpoint.receives(event, queues)
    ]
    if rows:
        connection.execute(deliveries.insert(), rows)
