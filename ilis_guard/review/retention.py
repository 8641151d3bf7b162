"""What becomes of tickets that ended long ago: their texts are taken out, and in the end they are deleted."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, and_, delete, exists, select

from ilis_guard.errors import ReviewError
from ilis_guard.review.export import write
from ilis_guard.review.ledger import TicketStore
from ilis_guard.review.listing import history_of
from ilis_guard.review.record import record_of
from ilis_guard.review.schema import deliveries, history, tickets

REDACTED: Final = "[redacted]"
"""In place of every text. An empty one stays empty: which attempt was judged can still be told."""
_AT_ONCE: Final = 100
"""Tickets a transaction."""


def redact(ledger: TicketStore, *, older_than: float) -> int:
    """See `ReviewQueue.redact`."""
    _check(older_than)
    redacted = 0
    while done := _redact_some(ledger, older_than):
        redacted += done
    ledger.storage.forget()
    return redacted


def purge(ledger: TicketStore, *, older_than: float, export_to: Path | None) -> int:
    """See `ReviewQueue.purge`."""
    _check(older_than)
    before = ledger.clock() - older_than
    if export_to is None:
        with ledger.reading() as connection:
            ids = list(connection.scalars(select(tickets.c.id).where(_may_go(before))))
    else:
        if export_to.exists():
            raise ReviewError(f"the file {str(export_to)!r} is already there; give tickets that go a new one")
        ids = []
        write(export_to, _records(ledger, before, ids))
    purged = 0
    remaining = iter(ids)
    while some := list(islice(remaining, _AT_ONCE)):
        purged += _delete(ledger, some, before)
    ledger.storage.forget()
    return purged


def _check(older_than: float) -> None:
    if not older_than >= 0:  # also true for NaN
        raise ReviewError(f"an age is at least 0 seconds, got {older_than!r}")


def _may_go(before: float) -> ColumnElement[bool]:
    """Whether a ticket ended before a time, and every endpoint heard of it or never will."""
    still_to_come = exists().where(deliveries.c.ticket == tickets.c.id, deliveries.c.state == "pending")
    return and_(tickets.c.state != "open", tickets.c.ended_at <= before, ~still_to_come)


def _records(ledger: TicketStore, before: float, ids: list[str]) -> Iterator[Mapping[str, Any]]:
    """Everything about the tickets that are to go, whose ids are noted."""
    with ledger.reading() as connection:
        old = select(tickets).where(_may_go(before)).order_by(tickets.c.ended_at, tickets.c.id)
        for rows in connection.execution_options(yield_per=_AT_ONCE).execute(old).partitions():
            for row in rows:
                ids.append(row.id)
                yield record_of(row, history_of(connection, row.id), now=ledger.clock()).to_dict()


def _delete(ledger: TicketStore, ids: Sequence[str], before: float) -> int:
    with ledger.writing() as connection:
        # What somebody is just replaying is waited for; what is locked here can't be replayed any more.
        dead = select(deliveries.c.id).where(deliveries.c.ticket.in_(ids), deliveries.c.state != "pending")
        connection.execute(dead.order_by(deliveries.c.id).with_for_update())
        # Another purge may have been faster.
        still = select(tickets.c.id).where(tickets.c.id.in_(ids), _may_go(before)).with_for_update()
        found = list(connection.scalars(still))
        for rows in (deliveries, history):
            connection.execute(delete(rows).where(rows.c.ticket.in_(found)))
        connection.execute(delete(tickets).where(tickets.c.id.in_(found)))
    return len(found)


def _redact_some(ledger: TicketStore, older_than: float) -> int:
    with ledger.writing() as connection:
        now = ledger.clock()
        old = select(tickets).where(
            tickets.c.state != "open", tickets.c.ended_at <= now - older_than, tickets.c.redacted_at.is_(None)
        )
        rows = list(connection.execute(old.limit(_AT_ONCE).with_for_update(skip_locked=True)))
        for row in rows:
            ledger.change(connection, row, "redacted", at=now, values=_without_texts(row) | {"redacted_at": now})
    return len(rows)


def _without_texts(row: Row[Any]) -> dict[str, Any]:
    messages = [turn | {"content": _redacted(turn["content"])} for turn in row.request["messages"]]
    return {
        "request": row.request | {"messages": messages},
        # An error keeps its kind: its detail may quote the prompt. Rulings keep which rules decided: labels are facts.
        "attempts": [
            tried | {"text": _redacted(tried["text"]), "error": tried["error"] and tried["error"] | {"detail": ""}}
            for tried in row.attempts
        ],
        "rulings": [
            ruling | {"outcomes": [_without_facts(outcome) for outcome in ruling["outcomes"]]} for ruling in row.rulings
        ],
        "text": _redacted(row.text),
        "reason": _redacted(row.reason),
    }


def _without_facts(outcome: Mapping[str, Any]) -> dict[str, Any]:
    return {**outcome, "parts": [part | {"facts": {}} for part in outcome["parts"]], "detail": ""}


def _redacted(text: str) -> str:
    return REDACTED if text.strip() else ""
