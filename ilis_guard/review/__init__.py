"""The human queue: tickets wait in a database until a person gives a verdict."""

from ilis_guard.config.review import EVENTS, EndpointSettings, QueueSettings
from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.record import QueueCounts, TicketEvent, TicketRecord
from ilis_guard.review.store import migrate

__all__ = [
    "EVENTS",
    "EndpointSettings",
    "QueueCounts",
    "QueueSettings",
    "ReviewQueue",
    "TicketEvent",
    "TicketRecord",
    "migrate",
]
