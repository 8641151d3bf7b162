"""Looking at the queue: tickets by what they are like, one with everything, and how many there are."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, or_, select

from ilis_guard.errors import ReviewError
from ilis_guard.review.claims import most_urgent_first
from ilis_guard.review.ledger import TicketStore, row_of
from ilis_guard.review.record import TicketRecord, record_of
from ilis_guard.review.schema import SMALL_COLUMNS, history, tickets
from ilis_guard.types import TicketState

MOST: Final = 100_000
"""Tickets in one list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """How many tickets a queue has."""

    queue: str
    open: int
    claimed: int
    overdue: int
    """Of the open and claimed ones: those whose time is up."""
    resolved: int
    expired: int


def listed(
    ledger: TicketStore,
    *,
    state: TicketState | None,
    queue: str | None,
    claimed_by: str | None,
    is_overdue: bool,
    limit: int,
    now: float,
) -> Sequence[Row[Any]]:
    """See `ReviewQueue.list`."""
    if state is not None and state not in get_args(TicketState):
        raise ReviewError(f"a ticket is 'open', 'claimed', 'resolved' or 'expired', got the state {state!r}")
    if limit < 1:
        raise ReviewError(f"the limit must be at least 1, got {limit!r}")
    if limit > MOST:
        raise ReviewError(f"the limit {limit!r} is too large; the most is {MOST}")
    query = select(*SMALL_COLUMNS).order_by(*most_urgent_first()).limit(limit)
    if state is not None:
        query = query.where(_stands(state, now))
    if queue is not None:
        query = query.where(tickets.c.queue == queue)
    if claimed_by is not None:
        query = query.where(tickets.c.claimed_by == claimed_by, _stands("claimed", now))
    if is_overdue:
        query = query.where(_is_overdue(now))
    with ledger.reading() as connection:
        return connection.execute(query).all()


def prompts(ledger: TicketStore, ids: Collection[str]) -> dict[str, str]:
    """See `ReviewQueue.prompts`."""
    query = select(tickets.c.id, tickets.c.request).where(tickets.c.id.in_(ids))
    with ledger.reading() as connection:
        return {row.id: str(row.request["messages"][-1]["content"]) for row in connection.execute(query)}


def counts(ledger: TicketStore, *, now: float) -> list[QueueCounts]:
    """See `ReviewQueue.counts`."""
    query = select(
        tickets.c.queue,
        _count(_stands("open", now), "open"),
        _count(_stands("claimed", now), "claimed"),
        _count(_is_overdue(now), "overdue"),
        _count(_stands("resolved", now), "resolved"),
        _count(_stands("expired", now), "expired"),
    )
    with ledger.reading() as connection:
        rows = connection.execute(query.group_by(tickets.c.queue).order_by(tickets.c.queue)).mappings()
        return [QueueCounts(**row) for row in rows]


def probe(ledger: TicketStore) -> None:
    """See `ReviewQueue.probe`."""
    with ledger.reading() as connection:
        connection.execute(select(tickets.c.id).limit(1)).all()


def record(ledger: TicketStore, id: str, *, now: float) -> TicketRecord:  # noqa: A002 - a ticket's word
    """See `ReviewQueue.get`."""
    with ledger.reading() as connection:
        row = connection.execute(select(tickets).where(tickets.c.id == row_of(connection, id).id)).one()
        return record_of(row, history_of(connection, row.id), now=now)


def record_of_decision(ledger: TicketStore, decision: str, *, now: float) -> TicketRecord | None:
    """See `ReviewQueue.of_decision`."""
    with ledger.reading() as connection:
        row = connection.execute(select(tickets).where(tickets.c.decision == decision)).one_or_none()
        return None if row is None else record_of(row, history_of(connection, row.id), now=now)


def history_of(connection: Connection, id: str) -> Sequence[Row[Any]]:  # noqa: A002 - a ticket's word
    """What happened to a ticket, the earliest first."""
    return connection.execute(select(history).where(history.c.ticket == id).order_by(history.c.number)).all()


def _stands(state: TicketState, now: float) -> ColumnElement[bool]:
    """Whether a ticket is in a state at a time: a claim that ran out leaves it open."""
    if state == "claimed":
        return and_(tickets.c.state == "open", tickets.c.claimed_until > now)
    if state == "open":
        return and_(tickets.c.state == "open", or_(tickets.c.claimed_until.is_(None), tickets.c.claimed_until <= now))
    return tickets.c.state == state


def _is_overdue(now: float) -> ColumnElement[bool]:
    """Whether a ticket waits although its time is up, claimed or not."""
    return and_(tickets.c.state == "open", tickets.c.due_at <= now)


def _count(condition: ColumnElement[bool], name: str) -> Any:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0).label(name)
