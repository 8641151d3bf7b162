"""The human queue: escalated requests wait here, in a database, until a person gives a verdict."""

from ilis_guard.config.review import EVENTS, EndpointSettings, QueueSettings
from ilis_guard.review.listing import QueueCounts
from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.record import TicketEvent, TicketRecord
from ilis_guard.review.storage import migrate

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
