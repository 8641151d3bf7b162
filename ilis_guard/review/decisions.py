"""Decisions that callers gave an id: each is made once, and kept for a while for callers that ask again."""

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, delete, select

from ilis_guard.errors import DecisionRecordedError
from ilis_guard.review.database import retried_idempotent
from ilis_guard.review.record import ticket_of
from ilis_guard.review.schema import SMALL_COLUMNS, decisions, tickets
from ilis_guard.review.store import BATCH_SIZE, TicketStore
from ilis_guard.types import DecisionRecord, TicketWaiter

KEEP_SECONDS: Final = 24 * 3600.0
"""How long a decision is kept under its id."""


def add(store: TicketStore, connection: Connection, record: DecisionRecord) -> None:
    """Add a decision, and forget some that were kept long enough.

    Args:
        store: for its clock.
        connection: inside a writing transaction.
        record: the decision.

    Raises:
        DecisionRecordedError: another process has recorded one under this id.
    """
    now = store.clock()
    too_old = select(decisions.c.id).where(decisions.c.created_at < now - KEEP_SECONDS)
    # Each leaves to the others what they delete already.
    some = too_old.order_by(decisions.c.created_at).limit(BATCH_SIZE).with_for_update(skip_locked=True)
    connection.execute(delete(decisions).where(decisions.c.id.in_(connection.scalars(some).all())))
    connection.execute(
        delete(decisions).where(decisions.c.id == record.id, decisions.c.created_at < now - KEEP_SECONDS)
    )
    values = {"id": record.id, "created_at": now, "digest": record.digest, "decision": dict(record.values)}
    if not store.database.insert_new(connection, decisions, values, unique="id"):
        raise DecisionRecordedError(f"there is a decision {record.id!r} already")


@retried_idempotent
def create(store: TicketStore, record: DecisionRecord, *, before_commit: Callable[[], None]) -> None:
    """See `ReviewQueue.record_decision`."""
    with store.database.writing() as connection:
        add(store, connection, record)
        before_commit()


@retried_idempotent
def find(store: TicketStore, id: str, *, waiter: TicketWaiter) -> DecisionRecord | None:  # noqa: A002 - its word
    """See `ReviewQueue.find_decision`."""
    now = store.clock()
    kept = select(decisions).where(decisions.c.id == id, decisions.c.created_at >= now - KEEP_SECONDS)
    with store.database.reading() as connection:
        row = connection.execute(kept).one_or_none()
        if row is None:
            return None
        ticket = connection.execute(select(*SMALL_COLUMNS).where(tickets.c.decision == id)).one_or_none()
    return DecisionRecord(
        id=row.id,
        digest=row.digest,
        values=row.decision,
        ticket=None if ticket is None else ticket_of(ticket, now=now, waiter=waiter),
    )


def forget(store: TicketStore, *, before: float) -> None:
    """Forget all decisions that were made before a time: they hold texts, as tickets do."""
    with store.database.writing() as connection:
        connection.execute(delete(decisions).where(decisions.c.created_at <= before))
