"""Overdue tickets: they expire, or move to another queue, as was said when they came."""

from typing import Any, Final

from sqlalchemy import Connection, Row, or_, select

from ilis_guard import events
from ilis_guard.config.review import EXPIRE
from ilis_guard.review.ledger import TicketStore
from ilis_guard.review.schema import SMALL_COLUMNS, tickets

_AT_ONCE: Final = 100
"""Tickets a transaction."""


def sweep(ledger: TicketStore) -> int:
    """See `ReviewQueue.sweep`."""
    swept = 0
    while done := _sweep_some(ledger):
        swept += len(done)
        for row in done:
            events.log().info(events.TICKET_OVERDUE, ticket=row.id, queue=row.queue, overdue=row.overdue)
    return swept


def _sweep_some(ledger: TicketStore) -> list[Row[Any]]:
    """Some overdue tickets, as they were before."""
    with ledger.writing() as connection:
        now = ledger.clock()
        overdue = select(*SMALL_COLUMNS).where(
            tickets.c.state == "open",
            tickets.c.due_at <= now,
            # Who has it in hand may finish.
            or_(tickets.c.claimed_until.is_(None), tickets.c.claimed_until <= now),
        )
        # Several may sweep at once.
        some = overdue.order_by(tickets.c.due_at, tickets.c.id).limit(_AT_ONCE).with_for_update(skip_locked=True)
        rows = list(connection.execute(some))
        for row in rows:
            if row.overdue == EXPIRE:
                _expire(connection, ledger, row, now)
            else:
                _move(connection, ledger, row, now)
    return rows


def _expire(connection: Connection, ledger: TicketStore, row: Row[Any], now: float) -> None:
    values = {"state": "expired", "ended_at": now, "claimed_by": "", "claimed_until": None}
    ledger.change(connection, row, "expired", at=now, values=values, details={"was_due_at": row.due_at})


def _move(connection: Connection, ledger: TicketStore, row: Row[Any], now: float) -> None:
    """To the next queue, where it waits by that queue's rules, and no less urgently than before."""
    settings = ledger.settings(row.overdue)
    values = {
        "queue": row.overdue,
        "priority": max(row.priority, settings.priority),
        "due_at": None if settings.due is None else now + settings.due,
        "overdue": settings.overdue,
        "claimed_by": "",
        "claimed_until": None,
    }
    details = {"was_due_at": row.due_at, "moved_from": row.queue, "moved_to": row.overdue}
    ledger.change(connection, row, "moved", at=now, values=values, details=details)
