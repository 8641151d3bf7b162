"""Changes to tickets: escalation, claims, verdicts, and the sweep of overdue ones.

A claim is a lease: it ends by itself, so a reviewer who walks away blocks nothing. Clocks can't break it: the
database's lock decides who gets a ticket, a clock that goes back only makes leases longer, and a verdict from somebody
whose lease ended is refused once somebody else has claimed the ticket.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Row, select, update

from ilis_guard import events
from ilis_guard.config.review import EXPIRE, LONGEST
from ilis_guard.errors import (
    RequestConflictError,
    ReviewError,
    TicketChangedError,
    TicketClaimedError,
    TicketExpiredError,
    TicketResolvedError,
)
from ilis_guard.review import decisions
from ilis_guard.review.database import retried, retried_idempotent
from ilis_guard.review.record import is_claimed_at, is_in_state, judged_in, most_urgent_first, ticket_of
from ilis_guard.review.schema import SMALL_COLUMNS, tickets
from ilis_guard.review.store import BATCH_SIZE, TicketStore, ticket_row
from ilis_guard.text import is_blank
from ilis_guard.types import DecisionRecord, Ticket, TicketWaiter, Verdict

_UNCLAIMED = {"claimed_by": "", "claimed_until": None}


@retried_idempotent
def create(
    store: TicketStore,
    values: dict[str, Any],
    *,
    waiter: TicketWaiter,
    record: DecisionRecord | None,
    before_commit: Callable[[], None],
) -> Ticket:
    """Create a ticket from its columns; return its decision's ticket where there is one already."""
    with store.database.writing() as connection:
        if record is not None:
            decisions.add(store, connection, record)
        is_new = store.add(connection, values)
        row = connection.execute(select(*SMALL_COLUMNS).where(tickets.c.decision == values["decision"])).one()
        if not is_new:
            _check_same_request(connection, row, values)
        before_commit()
    if is_new:
        events.log().info(events.TICKET_CREATED, ticket=row.id, queue=row.queue)
    return ticket_of(row, now=values["created_at"], waiter=waiter)


@retried_idempotent
def claim(store: TicketStore, id: str, *, reviewer: str, lease: float | None) -> Ticket:  # noqa: A002 - a ticket's word
    """See `ReviewQueue.claim`."""
    _check_claim(reviewer, lease)
    with store.database.writing() as connection:
        row = ticket_row(connection, id, for_update=True)
        now = store.clock()
        _check_not_ended(row)
        is_renewal = is_claimed_at(row, now)
        if is_renewal:
            _check_claimed_by(row, reviewer)
            row = _extend(connection, store, row, now, lease)
        else:
            row = _claim(connection, store, row, now, reviewer, lease)
    if not is_renewal:
        events.log().info(events.TICKET_CLAIMED, ticket=row.id, queue=row.queue, by=reviewer)
    return ticket_of(row, now=store.clock())


@retried
def claim_next(store: TicketStore, *, reviewer: str, queue: str | None, lease: float | None) -> Ticket | None:
    """See `ReviewQueue.claim_next`."""
    _check_claim(reviewer, lease)
    with store.database.writing() as connection:
        now = store.clock()
        free = select(*SMALL_COLUMNS).where(is_in_state("open", now))
        if queue is not None:
            free = free.where(tickets.c.queue == queue)
        # A concurrent claim takes the ticket after the locked one instead of waiting for it.
        first = free.order_by(*most_urgent_first()).limit(1).with_for_update(skip_locked=True)
        row = connection.execute(first).one_or_none()
        if row is None:
            return None
        row = _claim(connection, store, row, now, reviewer, lease)
    events.log().info(events.TICKET_CLAIMED, ticket=row.id, queue=row.queue, by=reviewer)
    return ticket_of(row, now=store.clock())


@retried_idempotent
def renew(store: TicketStore, id: str, *, reviewer: str, lease: float | None) -> Ticket:  # noqa: A002 - a ticket's word
    """See `ReviewQueue.renew`."""
    _check_claim(reviewer, lease)
    with store.database.writing() as connection:
        row = ticket_row(connection, id, for_update=True)
        now = store.clock()
        _check_not_ended(row)
        # A claim that ran out may be renewed unless somebody else has claimed the ticket since.
        _check_claimed_by(row, reviewer)
        row = _extend(connection, store, row, now, lease)
    return ticket_of(row, now=store.clock())


@retried_idempotent
def release(store: TicketStore, id: str, *, reviewer: str, force: bool) -> Ticket:  # noqa: A002 - a ticket's word
    """See `ReviewQueue.release`."""
    with store.database.writing() as connection:
        row = ticket_row(connection, id, for_update=True)
        _check_not_ended(row)
        has_claim = row.claimed_until is not None
        if has_claim:
            if not force:
                _check_claimed_by(row, reviewer)
            row = store.change(connection, row, "released", at=store.clock(), by=reviewer, values=_UNCLAIMED)
    if has_claim:
        events.log().info(events.TICKET_RELEASED, ticket=row.id, queue=row.queue, by=reviewer)
    return ticket_of(row, now=store.clock())


@retried_idempotent
def resolve(
    store: TicketStore,
    id: str,  # noqa: A002 - a ticket's word
    verdict: Verdict,
    *,
    text: str,
    reason: str,
    reviewer: str,
    version: int | None,
) -> Ticket:
    """See `ReviewQueue.resolve`."""
    verdict = _checked_verdict(verdict, text)
    with store.database.writing() as connection:
        row = ticket_row(connection, id, for_update=True)
        now = store.clock()
        is_repeated = row.state == "resolved" and (row.verdict, row.text) == (verdict.value, text)
        if not is_repeated:
            _check_resolvable(row, verdict, reviewer=reviewer, version=version, now=now)
            if verdict is Verdict.ACCEPT:
                _check_has_answer(connection, row)
            values = {
                "state": "resolved",
                "verdict": verdict.value,
                "text": text,
                "reason": reason,
                "reviewer": reviewer,
                "ended_at": now,
                **_UNCLAIMED,
            }
            row = store.change(connection, row, "resolved", at=now, by=reviewer, values=values)
    if not is_repeated:
        events.log().info(events.TICKET_RESOLVED, ticket=row.id, queue=row.queue, verdict=row.verdict)
    return ticket_of(row, now=store.clock())


def sweep(store: TicketStore) -> int:
    """See `ReviewQueue.sweep`."""
    count = 0
    while rows := _sweep_batch(store):
        count += len(rows)
        for row in rows:
            events.log().info(events.TICKET_OVERDUE, ticket=row.id, queue=row.queue, overdue=row.overdue)
    return count


def _check_same_request(connection: Connection, row: Row[Any], values: dict[str, Any]) -> None:
    request = connection.scalars(select(tickets.c.request).where(tickets.c.id == row.id)).one()
    if row.redacted_at is None and request != values["request"]:
        raise RequestConflictError(
            f"the decision {row.decision!r} has a ticket of another request; give each request an id of its own"
        )


def _check_claim(reviewer: str, lease: float | None) -> None:
    if is_blank(reviewer):
        raise ReviewError(f"a claim needs a reviewer's name, got {reviewer!r}")
    if lease is not None and not 0 < lease <= LONGEST:  # also true for NaN
        raise ReviewError(f"a lease lasts more than 0 seconds, and a century at most, got {lease!r}")


def _check_not_ended(row: Row[Any]) -> None:
    if row.state == "resolved":
        raise TicketResolvedError(f"ticket {row.id} already ended with the verdict {row.verdict!r}; claim another one")
    if row.state == "expired":
        raise TicketExpiredError(f"ticket {row.id} was overdue and expired without a verdict; claim another one")


def _check_claimed_by(row: Row[Any], reviewer: str) -> None:
    if row.claimed_by != reviewer:
        state = f"claimed by {row.claimed_by!r}" if row.claimed_by else "not claimed"
        raise TicketClaimedError(
            f"ticket {row.id} is {state}, not by {reviewer!r}; claim another one, or look at it again"
        )


def _claim(
    connection: Connection, store: TicketStore, row: Row[Any], now: float, reviewer: str, lease: float | None
) -> Row[Any]:
    values = {"claimed_by": reviewer, "claimed_until": now + _lease(store, row, lease)}
    return store.change(connection, row, "claimed", at=now, by=reviewer, values=values)


def _extend(connection: Connection, store: TicketStore, row: Row[Any], now: float, lease: float | None) -> Row[Any]:
    """Make a claim last longer. The version stays: nobody has to know of this."""
    until = max(row.claimed_until, now + _lease(store, row, lease))
    connection.execute(update(tickets).where(tickets.c.id == row.id).values(claimed_until=until))
    return ticket_row(connection, row.id)


def _lease(store: TicketStore, row: Row[Any], lease: float | None) -> float:
    return store.settings(row.queue).lease if lease is None else lease


def _checked_verdict(verdict: Verdict, text: str) -> Verdict:
    """Convert a verdict, which may be a plain string from a form or a terminal, and check that its text fits."""
    try:
        verdict = Verdict(verdict)
    except ValueError:
        raise ReviewError(f"a verdict is 'accept', 'correct' or 'reject', got {verdict!r}") from None
    if verdict is Verdict.CORRECT and is_blank(text):
        raise ReviewError("the verdict 'correct' needs the right answer as its text, which is empty")
    if verdict is not Verdict.CORRECT and text:
        raise ReviewError(
            f"the verdict {verdict.value!r} takes no text: use 'correct' to give an answer, or the reason to say why"
        )
    return verdict


def _check_resolvable(row: Row[Any], verdict: Verdict, *, reviewer: str, version: int | None, now: float) -> None:
    if row.state == "resolved":
        other = "another text" if row.verdict == verdict.value else f"{verdict.value!r}"
        raise TicketResolvedError(
            f"ticket {row.id} already ended with the verdict {row.verdict!r}; {other} can't replace it"
        )
    if row.state == "expired":
        raise TicketExpiredError(f"ticket {row.id} was overdue and expired; it takes no verdict any more")
    if is_claimed_at(row, now) and row.claimed_by != reviewer:
        raise TicketClaimedError(
            f"ticket {row.id} is claimed by {row.claimed_by!r}; {reviewer!r} can't end it before it is released"
        )
    if version is not None and version != row.version:
        raise TicketChangedError(
            f"ticket {row.id} has version {row.version}, and the verdict is on version {version!r}; look at it again"
        )


def _check_has_answer(connection: Connection, row: Row[Any]) -> None:
    if judged_in(connection.scalars(select(tickets.c.attempts).where(tickets.c.id == row.id)).one()) is None:
        raise ReviewError(
            f"ticket {row.id} has no answer to accept: no attempt gave one; 'correct' it with the right answer, "
            "or 'reject' it"
        )


def _sweep_batch(store: TicketStore) -> list[Row[Any]]:
    """Expire or move some overdue tickets; return their rows from before."""
    with store.database.writing() as connection:
        now = store.clock()
        # A reviewer with a claim may finish. Several processes may sweep at once.
        overdue = select(*SMALL_COLUMNS).where(is_in_state("open", now), tickets.c.due_at <= now)
        first = overdue.order_by(tickets.c.due_at, tickets.c.id).limit(BATCH_SIZE).with_for_update(skip_locked=True)
        rows = list(connection.execute(first))
        for row in rows:
            if row.overdue == EXPIRE:
                values = {"state": "expired", "ended_at": now, **_UNCLAIMED}
                store.change(connection, row, "expired", at=now, values=values, details={"was_due_at": row.due_at})
            else:
                _move(connection, store, row, now)
    return rows


def _move(connection: Connection, store: TicketStore, row: Row[Any], now: float) -> None:
    """Move a ticket to its next queue, whose settings apply from now on; its priority never falls."""
    settings = store.settings(row.overdue)
    values = {
        "queue": row.overdue,
        "priority": max(row.priority, settings.priority),
        "due_at": None if settings.due is None else now + settings.due,
        "overdue": settings.overdue,
        **_UNCLAIMED,
    }
    details = {"was_due_at": row.due_at, "moved_from": row.queue, "moved_to": row.overdue}
    store.change(connection, row, "moved", at=now, values=values, details=details)
