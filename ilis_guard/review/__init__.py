"""The human queue: escalated requests wait here, in a database, until a person gives a verdict."""

from ilis_guard.review.listing import QueueCounts
from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.record import Happening, TicketRecord
from ilis_guard.review.settings import EVENTS, QueueSettings, ReceiverSettings
from ilis_guard.review.storage import migrate

__all__ = [
    "EVENTS",
    "Happening",
    "QueueCounts",
    "QueueSettings",
    "ReceiverSettings",
    "ReviewQueue",
    "TicketRecord",
    "migrate",
]
