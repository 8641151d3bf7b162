"""Claims: a reviewer has a ticket in hand for a while, and nobody else does.

A claim is a lease: it ends by itself, so a reviewer who walks away blocks nothing. It is safe whatever clocks do: who
gets a ticket is decided under the database's lock, a clock that goes back only makes leases longer, and a verdict
from somebody whose lease ended is refused once somebody else has claimed the ticket.
"""

from typing import Any

from sqlalchemy import Connection, Row, case, or_, select, update

from ilis_guard.config.review import LONGEST
from ilis_guard.errors import ReviewError, TicketClaimedError, TicketExpiredError, TicketResolvedError
from ilis_guard.review.ledger import TicketStore, row_of
from ilis_guard.review.schema import SMALL_COLUMNS, tickets


def claim(ledger: TicketStore, id: str, *, reviewer: str, lease: float | None) -> tuple[Row[Any], bool]:  # noqa: A002 - a ticket's word
    """See `ReviewQueue.claim`; also whether the claim is new."""
    _check(reviewer, lease)
    with ledger.writing() as connection:
        row = row_of(connection, id, for_update=True)
        now = ledger.clock()
        check_waits(row)
        if is_claimed(row, now):
            _check_own(row, reviewer)
            return _extended(connection, ledger, row, now, lease), False
        return _claimed(connection, ledger, row, now, reviewer, lease), True


def claim_next(ledger: TicketStore, *, reviewer: str, queue: str | None, lease: float | None) -> Row[Any] | None:
    """See `ReviewQueue.claim_next`."""
    _check(reviewer, lease)
    with ledger.writing() as connection:
        now = ledger.clock()
        free = select(*SMALL_COLUMNS).where(
            tickets.c.state == "open", or_(tickets.c.claimed_until.is_(None), tickets.c.claimed_until <= now)
        )
        if queue is not None:
            free = free.where(tickets.c.queue == queue)
        # Whoever claims at the same time takes the ticket after the locked one instead of waiting for it.
        first = free.order_by(*most_urgent_first()).limit(1).with_for_update(skip_locked=True)
        row = connection.execute(first).one_or_none()
        return None if row is None else _claimed(connection, ledger, row, now, reviewer, lease)


def renew(ledger: TicketStore, id: str, *, reviewer: str, lease: float | None) -> Row[Any]:  # noqa: A002 - a ticket's word
    """See `ReviewQueue.renew`."""
    _check(reviewer, lease)
    with ledger.writing() as connection:
        row = row_of(connection, id, for_update=True)
        now = ledger.clock()
        check_waits(row)
        # A claim whose time is up but that nobody took over meanwhile may be renewed.
        _check_own(row, reviewer)
        return _extended(connection, ledger, row, now, lease)


def release(ledger: TicketStore, id: str, *, reviewer: str, force: bool) -> tuple[Row[Any], bool]:  # noqa: A002 - a ticket's word
    """See `ReviewQueue.release`; also whether there was something to release."""
    with ledger.writing() as connection:
        row = row_of(connection, id, for_update=True)
        check_waits(row)
        if row.claimed_until is None:
            return row, False
        if not force:
            _check_own(row, reviewer)
        freed = {"claimed_by": "", "claimed_until": None}
        return ledger.change(connection, row, "released", at=ledger.clock(), by=reviewer, values=freed), True


def is_claimed(row: Row[Any], now: float) -> bool:
    """Whether somebody has the ticket in hand."""
    return row.claimed_until is not None and bool(row.claimed_until > now)


def check_waits(row: Row[Any]) -> None:
    """See that a ticket hasn't ended.

    Raises:
        TicketResolvedError: it has a verdict.
        TicketExpiredError: it expired.
    """
    if row.state == "resolved":
        raise TicketResolvedError(f"ticket {row.id} already ended with the verdict {row.verdict!r}; claim another one")
    if row.state == "expired":
        raise TicketExpiredError(f"ticket {row.id} was overdue and expired without a verdict; claim another one")


def most_urgent_first() -> tuple[Any, ...]:
    """The order in which tickets are reviewed: by priority, then by due time, then by age."""
    has_none = case((tickets.c.due_at.is_(None), 1), else_=0)
    return tickets.c.priority.desc(), has_none, tickets.c.due_at, tickets.c.created_at, tickets.c.id


def _check(reviewer: str, lease: float | None) -> None:
    if not reviewer.strip():
        raise ReviewError(f"a claim needs a reviewer's name, got {reviewer!r}")
    if lease is not None and not 0 < lease <= LONGEST:  # also true for NaN
        raise ReviewError(f"a lease lasts more than 0 seconds, and a century at most, got {lease!r}")


def _check_own(row: Row[Any], reviewer: str) -> None:
    if row.claimed_by != reviewer:
        whose = f"claimed by {row.claimed_by!r}" if row.claimed_by else "not claimed"
        raise TicketClaimedError(
            f"ticket {row.id} is {whose}, not by {reviewer!r}; claim another one, or look at it again"
        )


def _claimed(
    connection: Connection, ledger: TicketStore, row: Row[Any], now: float, reviewer: str, lease: float | None
) -> Row[Any]:
    values = {"claimed_by": reviewer, "claimed_until": now + _lease(ledger, row, lease)}
    return ledger.change(connection, row, "claimed", at=now, by=reviewer, values=values)


def _extended(connection: Connection, ledger: TicketStore, row: Row[Any], now: float, lease: float | None) -> Row[Any]:
    """The ticket with a longer lease. The version stays: nothing changed that anybody has to know."""
    until = max(row.claimed_until, now + _lease(ledger, row, lease))
    connection.execute(update(tickets).where(tickets.c.id == row.id).values(claimed_until=until))
    return row_of(connection, row.id)


def _lease(ledger: TicketStore, row: Row[Any], lease: float | None) -> float:
    return ledger.settings(row.queue).lease if lease is None else lease
