"""Retention: redact the texts of tickets that ended long ago, and delete the tickets in the end."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, and_, delete, exists, select

from ilis_guard import events
from ilis_guard.errors import ReviewError
from ilis_guard.review import decisions
from ilis_guard.review.export import write
from ilis_guard.review.record import record_of
from ilis_guard.review.schema import deliveries, history, tickets
from ilis_guard.review.store import BATCH_SIZE, TicketStore
from ilis_guard.text import is_blank

REDACTED: Final = "[redacted]"
"""Replaces every text but empty ones: so it stays visible which attempt was judged."""


def redact(store: TicketStore, *, older_than: float) -> int:
    """See `ReviewQueue.redact`."""
    _check_age(older_than)
    count = 0
    while batch := _redact_batch(store, older_than):
        count += batch
    decisions.forget(store, before=store.clock() - older_than)
    store.database.erase()
    events.log().info(events.TICKETS_REDACTED, tickets=count)
    return count


def purge(store: TicketStore, *, older_than: float, export_to: Path | None) -> int:
    """See `ReviewQueue.purge`."""
    _check_age(older_than)
    before = store.clock() - older_than
    if export_to is None:
        with store.database.reading() as connection:
            ids = list(connection.scalars(select(tickets.c.id).where(_is_deletable(before))))
    else:
        if export_to.exists():
            raise ReviewError(f"the file {str(export_to)!r} is already there; give tickets that go a new one")
        ids = []
        write(export_to, _records(store, before, ids))
    batches = (ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE))
    count = sum(_delete(store, batch, before) for batch in batches)
    decisions.forget(store, before=before)
    store.database.erase()
    events.log().info(events.TICKETS_PURGED, tickets=count)
    return count


def _check_age(older_than: float) -> None:
    if not older_than >= 0:  # also true for NaN
        raise ReviewError(f"an age is at least 0 seconds, got {older_than!r}")


def _is_deletable(before: float) -> ColumnElement[bool]:
    """Whether a ticket ended before a time and has no pending delivery."""
    has_pending = exists().where(deliveries.c.ticket == tickets.c.id, deliveries.c.state == "pending")
    return and_(tickets.c.state != "open", tickets.c.ended_at <= before, ~has_pending)


def _records(store: TicketStore, before: float, ids: list[str]) -> Iterator[Mapping[str, Any]]:
    """Yield everything about the tickets to delete; append their ids."""
    with store.database.reading() as connection:
        old = select(tickets).where(_is_deletable(before)).order_by(tickets.c.ended_at, tickets.c.id)
        for rows in connection.execution_options(yield_per=BATCH_SIZE).execute(old).partitions():
            for row in rows:
                ids.append(row.id)
                yield record_of(connection, row, now=store.clock()).to_dict()


def _delete(store: TicketStore, ids: Sequence[str], before: float) -> int:
    with store.database.writing() as connection:
        # Waits for a replay that is under way; what is locked here can't be replayed any more.
        dead = select(deliveries.c.id).where(deliveries.c.ticket.in_(ids), deliveries.c.state != "pending")
        connection.execute(dead.order_by(deliveries.c.id).with_for_update())
        # Another purge may have been faster.
        remaining = select(tickets.c.id).where(tickets.c.id.in_(ids), _is_deletable(before)).with_for_update()
        found = list(connection.scalars(remaining))
        for table in (deliveries, history):
            connection.execute(delete(table).where(table.c.ticket.in_(found)))
        connection.execute(delete(tickets).where(tickets.c.id.in_(found)))
    return len(found)


def _redact_batch(store: TicketStore, older_than: float) -> int:
    with store.database.writing() as connection:
        now = store.clock()
        old = select(tickets).where(
            tickets.c.state != "open", tickets.c.ended_at <= now - older_than, tickets.c.redacted_at.is_(None)
        )
        rows = list(connection.execute(old.limit(BATCH_SIZE).with_for_update(skip_locked=True)))
        for row in rows:
            store.change(connection, row, "redacted", at=now, values=_redacted_columns(row) | {"redacted_at": now})
    return len(rows)


def _redacted_columns(row: Row[Any]) -> dict[str, Any]:
    messages = [turn | {"content": _redacted(turn["content"])} for turn in row.request["messages"]]
    return {
        "request": row.request | {"messages": messages},
        # Of errors, only the detail may quote the prompt.
        "attempts": [
            attempt
            | {"text": _redacted(attempt["text"]), "error": attempt["error"] and attempt["error"] | {"detail": ""}}
            for attempt in row.attempts
        ],
        "rulings": [
            ruling | {"outcomes": [_redacted_outcome(outcome) for outcome in ruling["outcomes"]]}
            for ruling in row.rulings
        ],
        "text": _redacted(row.text),
        "reason": _redacted(row.reason),
    }


def _redacted_outcome(outcome: dict[str, Any]) -> dict[str, Any]:
    # Facts include labels, and details may quote them.
    obstacle = outcome["obstacle"]
    return outcome | {
        "parts": [part | {"facts": {}} for part in outcome["parts"]],
        "obstacle": obstacle and obstacle | {"detail": ""},
        "detail": "",
    }


def _redacted(text: str) -> str:
    return "" if is_blank(text) else REDACTED
