"""The worker's side of the outbox: what is due is leased, and what became of each try is written down."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, exists, func, or_, select, update

from ilis_guard.review import endpoints, outbox
from ilis_guard.review.ledger import TicketStore
from ilis_guard.review.schema import deliveries
from ilis_guard.review.sending import Answer

SCHEDULE: Final = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds before each try, from the event or from the try before: at once, 5 s, 5 min, 30 min, 2, 5, 10, 14, 20, 24 h.
After the last one the delivery is exhausted."""
LEASE_SECONDS: Final = 60.0
"""How long a worker has a delivery to itself. It sends none whose lease would run out under way."""
_LATEST: Final = 1.2
"""Pauses are longer by up to a fifth, at random: what failed at once needn't come back at once."""
_FURTHEST: Final = max(SCHEDULE) * _LATEST
"""Seconds: nothing is put off for longer. What lies further ahead was put there by a clock that has gone back since."""
_GONE: Final = 410
_OVERLOADED: Final = frozenset({429, 503})

Outcome = Literal["delivered", "failed", "exhausted", "disabled", "taken over"]
"""What became of a try. `taken over` failed, too, but another worker has the delivery by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A pending delivery that a worker has leased."""

    id: str
    ticket: str
    endpoint: str
    event: str
    data: Mapping[str, Any]
    created_at: float
    tries: int
    """So many failed before."""
    send_at: float
    """When the endpoint's rate lets it start, seconds since the epoch."""
    leased_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A try, and how the endpoint took it."""

    delivery: Delivery
    answer: Answer
    at: float
    """When the answer came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A try whose outcome is committed."""

    tried: Tried
    outcome: Outcome
    next_try_at: float | None = None
    """When a failed delivery is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one transaction of a worker did."""

    settled: Sequence[Settled] = ()
    leased: Sequence[Delivery] = ()


def turn(
    ledger: TicketStore, worker: str, *, tried: Sequence[Tried], unsent: Sequence[Delivery], room: Mapping[str, int]
) -> Turn:
    """Write down what became of tries, give back what wasn't sent, and lease what is due: one commit for all of it.

    Args:
        ledger: where deliveries are.
        worker: who asks; no two workers have the same name.
        tried: tries that aren't written down yet. Writing one down twice changes nothing.
        unsent: leased deliveries that the worker won't send.
        room: how many more deliveries of an endpoint the worker takes, at least 1; none of those that aren't named.

    Raises:
        ReviewError: nothing was written, or it isn't certain that it was; the same again is safe.
    """
    if not tried and not unsent and not _is_due(ledger, room):
        return Turn()
    with ledger.writing() as connection:
        # First of all, so that no two workers wait for one another.
        endpoints.locked(connection, ledger, {*room, *(one.delivery.endpoint for one in tried)})
        _give_back(connection, worker, unsent)
        settled = _settle(connection, ledger, worker, tried)
        return Turn(settled=settled, leased=_lease(connection, ledger, worker, room))


def orphaned(ledger: TicketStore) -> dict[str, int]:
    """How many pending deliveries wait for endpoints that guard.yaml doesn't name (any more), by endpoint."""
    known = [endpoint.name for endpoint in ledger.endpoints]
    waiting = select(deliveries.c.endpoint, func.count().label("waiting")).where(
        deliveries.c.state == "pending", deliveries.c.endpoint.not_in(known)
    )
    with ledger.reading() as connection:
        found = connection.execute(waiting.group_by(deliveries.c.endpoint).order_by(deliveries.c.endpoint))
        return {row.endpoint: row.waiting for row in found}


def pause_after(tries: int, retry_after: float | None) -> float:
    """Seconds from a failed try to the next, at least as many as the endpoint asked for.

    Args:
        tries: how many failed, at least 1 and fewer than there are in the schedule.
        retry_after: what the endpoint asked for; None where it didn't.
    """
    # No secret depends on it.
    late = random.uniform(1.0, _LATEST)  # noqa: S311
    return max(SCHEDULE[tries], retry_after or 0.0) * late


def _is_due(ledger: TicketStore, room: Mapping[str, int]) -> bool:
    """Whether there may be something to lease. It only looks: idle workers keep nobody from writing."""
    if not room:
        return False
    with ledger.reading() as connection:
        due = select(exists().where(deliveries.c.endpoint.in_(room), _is_free(ledger.clock())))
        return bool(connection.scalar(due))


def _is_free(now: float) -> ColumnElement[bool]:
    """Whether a delivery is due, and no worker has it in hand."""
    is_unleased = or_(deliveries.c.leased_until.is_(None), _is_over(deliveries.c.leased_until, now))
    return and_(deliveries.c.state == "pending", _is_over(deliveries.c.next_try_at, now), is_unleased)


def _is_over(until: ColumnElement[float | None], now: float) -> ColumnElement[bool]:
    return or_(until <= now, until > now + _FURTHEST)


def _lease(connection: Connection, ledger: TicketStore, worker: str, room: Mapping[str, int]) -> list[Delivery]:
    now = ledger.clock()
    leased: list[Delivery] = []
    settings = {endpoint.name: endpoint for endpoint in ledger.endpoints if endpoint.name in room}
    for name, row in endpoints.locked(connection, ledger, settings).items():
        if row.disabled_at is not None:
            _bury(connection, name, now)
        elif row.held_until is None or not now < row.held_until <= now + _FURTHEST:
            slots = endpoints.slots(row, per_second=settings[name].per_second, now=now)
            found = _some_free(connection, name, min(room[name], slots.count), now)
            if found:
                endpoints.reserve(connection, name, until=slots.at(len(found)))
            leased += [_delivery(row, send_at=slots.at(i), now=now) for i, row in enumerate(found)]
    if leased:
        taken = update(deliveries).where(deliveries.c.id.in_([delivery.id for delivery in leased]))
        connection.execute(taken.values(leased_by=worker, leased_until=now + LEASE_SECONDS))
    return leased


def _some_free(connection: Connection, endpoint: str, most: int, now: float) -> Sequence[Row[Any]]:
    if most < 1:
        return []
    free = select(deliveries).where(deliveries.c.endpoint == endpoint, _is_free(now))
    return connection.execute(
        free.order_by(deliveries.c.next_try_at).limit(most).with_for_update(skip_locked=True)
    ).all()


def _delivery(row: Row[Any], *, send_at: float, now: float) -> Delivery:
    return Delivery(
        id=row.id,
        ticket=row.ticket,
        endpoint=row.endpoint,
        event=row.event,
        data=row.data,
        created_at=row.created_at,
        tries=row.tries,
        send_at=send_at,
        leased_until=now + LEASE_SECONDS,
    )


def _bury(connection: Connection, endpoint: str, now: float) -> None:
    """What came for a disabled endpoint is a dead letter, but for what a worker has in hand."""
    free = select(deliveries.c.id).where(deliveries.c.endpoint == endpoint, _is_free(now))
    some = free.with_for_update(skip_locked=True)
    # SQLite would drop the lock anyway; PostgreSQL takes it in the inner query.
    connection.execute(update(deliveries).where(deliveries.c.id.in_(some)).values(state="disabled"))


def _give_back(connection: Connection, worker: str, unsent: Iterable[Delivery]) -> None:
    for delivery in unsent:
        mine = _mine(delivery, worker)
        connection.execute(update(deliveries).where(mine).values(leased_by="", leased_until=None))


def _mine(delivery: Delivery, worker: str) -> ColumnElement[bool]:
    """Whether the lease is still the one that the worker got."""
    return and_(
        deliveries.c.id == delivery.id,
        deliveries.c.state == "pending",
        deliveries.c.leased_by == worker,
        deliveries.c.leased_until == delivery.leased_until,
    )


def _settle(connection: Connection, ledger: TicketStore, worker: str, tried: Sequence[Tried]) -> list[Settled]:
    taken = [one for one in tried if one.answer.is_taken]
    failed = [one for one in tried if not one.answer.is_taken]
    _settle_taken(connection, taken)
    return [
        *(Settled(tried=one, outcome="delivered") for one in taken),
        *(_settle_failed(connection, ledger, worker, one) for one in failed),
    ]


def _settle_taken(connection: Connection, taken: Sequence[Tried]) -> None:
    """A delivery that the endpoint took is delivered, whoever has the lease by now."""
    if not taken:
        return
    by_id = and_(deliveries.c.id == bindparam("of"), deliveries.c.state == "pending")
    settle = update(deliveries).where(by_id)
    settle = settle.values(
        state="delivered",
        tries=deliveries.c.tries + 1,
        last_try_at=bindparam("at"),
        last_status=bindparam("status"),
        last_error="",
        leased_by="",
        leased_until=None,
    )
    rows = [{"of": one.delivery.id, "at": one.at, "status": one.answer.status} for one in taken]
    connection.execute(settle, rows)


def _settle_failed(connection: Connection, ledger: TicketStore, worker: str, one: Tried) -> Settled:
    answer, tries = one.answer, one.delivery.tries + 1
    outcome: Outcome = "failed"
    changes: dict[str, Any] = {}
    if answer.status == _GONE:
        outcome = changes["state"] = "disabled"
        endpoints.disable(connection, one.delivery.endpoint, at=one.at)
    elif tries >= len(SCHEDULE):
        outcome = changes["state"] = "exhausted"
    else:
        changes["next_try_at"] = one.at + pause_after(tries, answer.retry_after)
    if answer.status in _OVERLOADED and answer.retry_after:
        until = one.at + answer.retry_after
        endpoints.hold(connection, one.delivery.endpoint, until=until, furthest=one.at + _FURTHEST)
    settle = update(deliveries).where(_mine(one.delivery, worker))
    changed = connection.execute(
        settle.values(
            tries=tries,
            last_try_at=one.at,
            last_status=answer.status,
            last_error=answer.error,
            leased_by="",
            leased_until=None,
            **changes,
        )
    )
    if changed.rowcount != 1:
        return Settled(tried=one, outcome="taken over")
    if "state" in changes:
        _tell_of_dead_letter(connection, ledger, one, state=changes["state"], tries=tries)
    return Settled(tried=one, outcome=outcome, next_try_at=changes.get("next_try_at"))


def _tell_of_dead_letter(connection: Connection, ledger: TicketStore, one: Tried, *, state: str, tries: int) -> None:
    """The other endpoints hear of it. Nobody hears that this message didn't arrive: it would never end."""
    dead = one.delivery
    if dead.event == "delivery.exhausted":
        return
    others = [endpoint for endpoint in ledger.endpoints if endpoint.name != dead.endpoint]
    data = {
        "ticket": dead.ticket,
        "queue": dead.data["queue"],
        "delivery": dead.id,
        "endpoint": dead.endpoint,
        "event": dead.event,
        "state": state,
        "tries": tries,
        "status": one.answer.status,
    }
    outbox.put(
        connection,
        others,
        "delivery.exhausted",
        ticket=dead.ticket,
        queues=[dead.data["queue"]],
        data=data,
        at=one.at,
    )
