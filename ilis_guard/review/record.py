"""Reading tickets: lists, counts, and records with everything that is known about one ticket."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from sqlalchemy import ColumnElement, Connection, Row, and_, case, func, or_, select, update

from ilis_guard.errors import ReviewError
from ilis_guard.policy.explain import explain_ticket
from ilis_guard.review.schema import SMALL_COLUMNS, history, probes, tickets
from ilis_guard.review.store import TicketEventType, TicketStore, ticket_row
from ilis_guard.text import is_blank
from ilis_guard.types import Ruling, Ticket, TicketState, TicketWaiter, Verdict
from ilis_guard.types.decisions import read_attempt
from ilis_guard.types.rulings import read_rulings

MAX_LIMIT: Final = 100_000
"""Tickets in one list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketEvent:
    """One entry of a ticket's history."""

    at: float
    """Seconds since the epoch, UTC, by the clock of whichever process wrote it; entries are in order all the same."""
    type: TicketEventType
    by: str
    """Who did it; empty where nobody did."""
    version: int
    """The ticket's version since then."""
    details: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__} | {"details": dict(self.details)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketRecord:
    """A ticket with everything that was known when it was created, and its history."""

    ticket: Ticket
    decision: str
    """Id of the decision that it belongs to."""
    request: Mapping[str, Any]
    """The request as JSON values: messages and labels."""
    attempts: tuple[Mapping[str, Any], ...]
    """All attempts as JSON values, in order: texts, scores, statistics, signatures, costs, errors."""
    policy: str
    """Fingerprint of the policy that decided."""
    rule: str | None
    """Id of the rule that decided; None where no rule held."""
    rulings: tuple[Ruling, ...]
    """What the policy decided after each attempt; without the facts' values after redaction."""
    say: str
    """The message that the caller got meanwhile; may be empty."""
    overdue: str
    """What happens when it is overdue: `expire`, or the queue that it moves to."""
    probability: float = 1.0
    """Of such a request's getting a ticket: below 1 where the policy samples."""
    reviewer: str = ""
    """Who gave the verdict, as the caller of `resolve` named them; may be empty."""
    redacted_at: float | None = None
    """When its texts were removed; None while they are there."""
    history: tuple[TicketEvent, ...] = ()
    """The earliest event first."""

    @property
    def proposed(self) -> str | None:
        """The answer that `accept` accepts: the last attempt's that has one; None where no attempt answered."""
        judged = judged_in(self.attempts)
        return None if judged is None else str(judged["text"])

    def explain(self) -> str:
        """Say what was done and why, in a few sentences, without prompts and answers; as `Decision.explain`."""
        return explain_ticket(self.ticket, tuple(map(read_attempt, self.attempts)), self.rulings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "ticket": self.ticket.to_dict(),
            "request": dict(self.request),
            "attempts": [dict(attempt) for attempt in self.attempts],
            "rulings": [ruling.to_dict() for ruling in self.rulings],
            "history": [event.to_dict() for event in self.history],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """How many tickets a queue has."""

    queue: str
    open: int
    claimed: int
    overdue: int
    """Of the open and claimed ones: those past their due time."""
    resolved: int
    expired: int


def judged_in(attempts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the attempt that a verdict is about: the last one with a whole answer; None where there is none."""
    return next(
        (each for each in reversed(attempts) if not is_blank(each["text"]) and each["stopped_at"] is None), None
    )


def ticket_of(row: Row[Any], *, now: float, waiter: TicketWaiter | None = None) -> Ticket:
    """Return the ticket in a row that has at least the small columns, in its state at a time."""
    is_claimed = is_claimed_at(row, now)
    return Ticket(
        id=row.id,
        kind=row.kind,
        queue=row.queue,
        state="claimed" if is_claimed else row.state,
        created_at=row.created_at,
        priority=row.priority,
        due_at=row.due_at,
        version=row.version,
        claimed_by=row.claimed_by if is_claimed else "",
        claimed_until=row.claimed_until if is_claimed else None,
        verdict=None if row.verdict is None else Verdict(row.verdict),
        text=row.text,
        reason=row.reason,
        ended_at=row.ended_at,
        waiter=waiter,
    )


def record_of(connection: Connection, row: Row[Any], *, now: float) -> TicketRecord:
    """Return the record in a full row, with its history."""
    entries = connection.execute(select(history).where(history.c.ticket == row.id).order_by(history.c.number))
    return TicketRecord(
        ticket=ticket_of(row, now=now),
        decision=row.decision,
        request=row.request,
        attempts=tuple(row.attempts),
        policy=row.policy,
        rule=row.rule,
        rulings=read_rulings(row.rulings),
        say=row.say,
        overdue=row.overdue,
        probability=row.probability,
        reviewer=row.reviewer,
        redacted_at=row.redacted_at,
        history=tuple(
            TicketEvent(at=entry.at, type=entry.type, by=entry.by, version=entry.version, details=entry.details)
            for entry in entries
        ),
    )


def list_tickets(
    store: TicketStore,
    *,
    state: TicketState | None,
    queue: str | None,
    claimed_by: str | None,
    is_overdue: bool,
    limit: int,
) -> list[Ticket]:
    """See `ReviewQueue.list`."""
    if state is not None and state not in get_args(TicketState):
        raise ReviewError(f"a ticket is 'open', 'claimed', 'resolved' or 'expired', got the state {state!r}")
    if limit < 1:
        raise ReviewError(f"the limit must be at least 1, got {limit!r}")
    if limit > MAX_LIMIT:
        raise ReviewError(f"the limit {limit!r} is too large; the most is {MAX_LIMIT}")
    now = store.clock()
    query = select(*SMALL_COLUMNS).order_by(*most_urgent_first()).limit(limit)
    if state is not None:
        query = query.where(is_in_state(state, now))
    if queue is not None:
        query = query.where(tickets.c.queue == queue)
    if claimed_by is not None:
        query = query.where(tickets.c.claimed_by == claimed_by, is_in_state("claimed", now))
    if is_overdue:
        query = query.where(_is_overdue(now))
    with store.database.reading() as connection:
        return [ticket_of(row, now=now) for row in connection.execute(query)]


def prompts(store: TicketStore, ids: Collection[str]) -> dict[str, str]:
    """See `ReviewQueue.prompts`."""
    query = select(tickets.c.id, tickets.c.request).where(tickets.c.id.in_(ids))
    with store.database.reading() as connection:
        return {row.id: str(row.request["messages"][-1]["content"]) for row in connection.execute(query)}


def counts(store: TicketStore) -> list[QueueCounts]:
    """See `ReviewQueue.counts`."""
    now = store.clock()
    query = select(
        tickets.c.queue,
        *(_count(is_in_state(state, now), state) for state in get_args(TicketState)),
        _count(_is_overdue(now), "overdue"),
    )
    with store.database.reading() as connection:
        rows = connection.execute(query.group_by(tickets.c.queue).order_by(tickets.c.queue)).mappings()
        return [QueueCounts(**row) for row in rows]


def probe(store: TicketStore) -> None:
    """See `ReviewQueue.probe`."""
    with store.database.writing() as connection:
        store.database.insert_new(connection, probes, {"id": 1, "number": 0}, unique="id")
        # Another number each time: SQLite writes nothing where nothing changes.
        connection.execute(update(probes).values(number=probes.c.number + 1))


def get_ticket(store: TicketStore, id: str) -> Ticket:  # noqa: A002 - a ticket's word
    """Return a ticket without its texts; see `ReviewQueue.get`."""
    with store.database.reading() as connection:
        return ticket_of(ticket_row(connection, id), now=store.clock())


def get_record(store: TicketStore, id: str) -> TicketRecord:  # noqa: A002 - a ticket's word
    """See `ReviewQueue.get`."""
    with store.database.reading() as connection:
        row = connection.execute(select(tickets).where(tickets.c.id == ticket_row(connection, id).id)).one()
        return record_of(connection, row, now=store.clock())


def record_of_decision(store: TicketStore, decision: str) -> TicketRecord | None:
    """See `ReviewQueue.of_decision`."""
    with store.database.reading() as connection:
        row = connection.execute(select(tickets).where(tickets.c.decision == decision)).one_or_none()
        return None if row is None else record_of(connection, row, now=store.clock())


def is_claimed_at(row: Row[Any], now: float) -> bool:
    """Whether a reviewer holds the ticket."""
    return row.claimed_until is not None and bool(row.claimed_until > now)


def is_in_state(state: TicketState, now: float) -> ColumnElement[bool]:
    """Whether a ticket is in a state at a time: a claim that ran out leaves it open."""
    if state == "claimed":
        return and_(tickets.c.state == "open", tickets.c.claimed_until > now)
    if state == "open":
        return and_(tickets.c.state == "open", or_(tickets.c.claimed_until.is_(None), tickets.c.claimed_until <= now))
    return tickets.c.state == state


def most_urgent_first() -> tuple[Any, ...]:
    """Return the order in which tickets are reviewed: by priority, then by due time, then by age."""
    has_no_due_time = case((tickets.c.due_at.is_(None), 1), else_=0)
    return tickets.c.priority.desc(), has_no_due_time, tickets.c.due_at, tickets.c.created_at, tickets.c.id


def _is_overdue(now: float) -> ColumnElement[bool]:
    """Whether a ticket is past its due time and hasn't ended, claimed or not."""
    return and_(tickets.c.state == "open", tickets.c.due_at <= now)


def _count(condition: ColumnElement[bool], name: str) -> Any:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0).label(name)
