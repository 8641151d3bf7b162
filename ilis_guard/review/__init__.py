"""The human queue: escalated requests wait here, on disk, until a person gives a verdict."""

from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.record import TicketRecord

__all__ = ["ReviewQueue", "TicketRecord"]
