"""The transactional outbox: webhook deliveries, written with the change that they announce, leased and settled later.

Nothing is sent of a change that wasn't committed, and no committed change is forgotten, wherever a process dies.
"""

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, exists, func, or_, select, update

from ilis_guard.config.review import EndpointSettings, Event
from ilis_guard.review import endpoints
from ilis_guard.review.database import Database
from ilis_guard.review.schema import deliveries

SCHEDULE: Final = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds before each try, from the event or from the try before: at once, 5 s, 5 min, 30 min, 2, 5, 10, 14, 20, 24 h.
After the last one the delivery is exhausted."""
LEASE_SECONDS: Final = 60.0
"""How long a relay has a delivery to itself. It starts no send that could outlast the lease."""
_JITTER: Final = 1.2
"""Pauses are up to a fifth longer, at random: deliveries that failed together needn't retry together."""
_FURTHEST: Final = max(SCHEDULE) * _JITTER
"""Seconds: nothing is put off for longer. A later time came from a clock that has gone back since."""
_GONE: Final = 410
_OVERLOADED: Final = frozenset({429, 503})

Outcome = Literal["delivered", "failed", "exhausted", "disabled", "taken over"]
"""Of a try. `taken over` failed, too, but another relay has leased the delivery since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A pending delivery that a relay has leased."""

    id: str
    ticket: str
    endpoint: str
    event: str
    data: Mapping[str, Any]
    created_at: float
    tries: int
    """How many failed before."""
    send_at: float
    """When the endpoint's rate lets it start, seconds since the epoch."""
    leased_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """How an endpoint responded to one try."""

    status: int | None = None
    """None without a response."""
    error: str = ""
    """What went wrong, in printable characters; empty where the endpoint accepted the message."""
    retry_after: float | None = None
    """Seconds that the endpoint asked to wait."""

    @property
    def is_delivered(self) -> bool:
        """Whether the endpoint accepted the message."""
        return not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTry:
    """One try to send a delivery, with its result."""

    delivery: Delivery
    result: SendResult
    at: float
    """When the result came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """A try whose outcome is committed."""

    of: DeliveryTry
    outcome: Outcome
    next_try_at: float | None = None
    """When a failed delivery is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayBatch:
    """The work of one relay transaction."""

    settled: Sequence[Settlement] = ()
    leased: Sequence[Delivery] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """The deliveries of a queue."""

    database: Database
    endpoints: Mapping[str, EndpointSettings]
    """All configured endpoints, by name."""
    clock: Callable[[], float]

    def put(
        self,
        connection: Connection,
        event: Event,
        *,
        ticket: str,
        queues: Sequence[str],
        data: dict[str, Any],
        at: float,
        but: str | None = None,
    ) -> None:
        """Write one pending delivery for each endpoint that subscribes to the event.

        Args:
            connection: inside the transaction of the change.
            event: what happened.
            ticket: id of the ticket.
            queues: the queues concerned; a ticket that moves concerns two.
            data: the thin payload, without prompts and answers.
            at: when it happened, seconds since the epoch.
            but: name of an endpoint that gets none.
        """
        rows = [
            {
                "id": uuid.uuid4().hex,
                "ticket": ticket,
                "endpoint": name,
                "event": event,
                "data": data,
                "created_at": at,
                "state": "pending",
                "tries": 0,
                "next_try_at": at,
                "last_error": "",
                "leased_by": "",
            }
            for name, endpoint in self.endpoints.items()
            if name != but and endpoint.receives(event, queues)
        ]
        if rows:
            connection.execute(deliveries.insert(), rows)

    def relay_batch(
        self, relay: str, *, tries: Sequence[DeliveryTry], unsent: Sequence[Delivery], capacity: Mapping[str, int]
    ) -> RelayBatch:
        """Settle tries, return unsent deliveries, and lease due ones, in one transaction.

        Args:
            relay: name of the relay; no two relays have the same one.
            tries: those that aren't settled yet. Settling one twice changes nothing.
            unsent: leased deliveries that the relay won't send.
            capacity: by endpoint, how many deliveries the relay leases at most, at least 1; none of other endpoints.

        Raises:
            ReviewError: the database failed. The commit may have succeeded all the same; calling again is safe.
        """
        if not tries and not unsent and not self._has_due(capacity):
            return RelayBatch()
        with self.database.writing() as connection:
            # First, in one order, so that no two relays deadlock.
            endpoints.lock(connection, self.database, {*capacity, *(one.delivery.endpoint for one in tries)})
            for delivery in unsent:
                release = update(deliveries).where(_is_leased_by(relay, delivery))
                connection.execute(release.values(leased_by="", leased_until=None))
            delivered = [one for one in tries if one.result.is_delivered]
            _settle_delivered(connection, delivered)
            settled = [Settlement(of=one, outcome="delivered") for one in delivered]
            settled += [self._settle_failed(connection, relay, one) for one in tries if not one.result.is_delivered]
            return RelayBatch(settled=settled, leased=self._lease(connection, relay, capacity))

    def orphans(self) -> dict[str, int]:
        """Count the pending deliveries for endpoints that aren't configured (any more), by endpoint."""
        pending = select(deliveries.c.endpoint, func.count().label("pending")).where(
            deliveries.c.state == "pending", deliveries.c.endpoint.not_in(list(self.endpoints))
        )
        with self.database.reading() as connection:
            rows = connection.execute(pending.group_by(deliveries.c.endpoint).order_by(deliveries.c.endpoint))
            return {row.endpoint: row.pending for row in rows}

    def _has_due(self, capacity: Mapping[str, int]) -> bool:
        """Look for deliveries to lease without a write: idle relays keep nobody from writing."""
        if not capacity:
            return False
        with self.database.reading() as connection:
            due = select(exists().where(deliveries.c.endpoint.in_(capacity), _is_due(self.clock())))
            return bool(connection.scalar(due))

    def _lease(self, connection: Connection, relay: str, capacity: Mapping[str, int]) -> list[Delivery]:
        now = self.clock()
        leased: list[Delivery] = []
        names = [name for name in self.endpoints if name in capacity]
        for name, row in endpoints.lock(connection, self.database, names).items():
            if row.disabled_at is not None:
                _disable_due(connection, name, now)
            elif row.held_until is None or not now < row.held_until <= now + _FURTHEST:
                slots = endpoints.free_slots(row, per_second=self.endpoints[name].per_second, now=now)
                found = _due(connection, name, min(capacity[name], slots.count), now)
                if found:
                    endpoints.reserve(connection, name, until=slots.at(len(found)))
                leased += [_delivery(row, send_at=slots.at(i), now=now) for i, row in enumerate(found)]
        if leased:
            taken = update(deliveries).where(deliveries.c.id.in_([delivery.id for delivery in leased]))
            connection.execute(taken.values(leased_by=relay, leased_until=now + LEASE_SECONDS))
        return leased

    def _settle_failed(self, connection: Connection, relay: str, one: DeliveryTry) -> Settlement:
        delivery, result, tries = one.delivery, one.result, one.delivery.tries + 1
        outcome: Outcome = "failed"
        changes: dict[str, Any] = {}
        if result.status == _GONE:
            outcome = changes["state"] = "disabled"
            endpoints.disable(connection, delivery.endpoint, at=one.at)
        elif tries >= len(SCHEDULE):
            outcome = changes["state"] = "exhausted"
        else:
            changes["next_try_at"] = one.at + retry_pause(tries, result.retry_after)
        if result.status in _OVERLOADED and result.retry_after:
            until = one.at + result.retry_after
            endpoints.hold(connection, delivery.endpoint, until=until, furthest=one.at + _FURTHEST)
        updated = connection.execute(
            update(deliveries)
            .where(_is_leased_by(relay, delivery))
            .values(
                tries=tries,
                last_try_at=one.at,
                last_status=result.status,
                last_error=result.error,
                leased_by="",
                leased_until=None,
                **changes,
            )
        )
        if updated.rowcount != 1:
            return Settlement(of=one, outcome="taken over")
        # Nobody is told that the news of a dead letter is one itself: that would never end.
        if "state" in changes and delivery.event != "delivery.exhausted":
            self._put_dead_letter(connection, one, state=changes["state"], tries=tries)
        return Settlement(of=one, outcome=outcome, next_try_at=changes.get("next_try_at"))

    def _put_dead_letter(self, connection: Connection, one: DeliveryTry, *, state: str, tries: int) -> None:
        """Tell the other endpoints of a dead letter."""
        dead = one.delivery
        data = {
            "ticket": dead.ticket,
            "queue": dead.data["queue"],
            "delivery": dead.id,
            "endpoint": dead.endpoint,
            "event": dead.event,
            "state": state,
            "tries": tries,
            "status": one.result.status,
        }
        self.put(
            connection,
            "delivery.exhausted",
            ticket=dead.ticket,
            queues=[dead.data["queue"]],
            data=data,
            at=one.at,
            but=dead.endpoint,
        )


def retry_pause(tries: int, retry_after: float | None) -> float:
    """Return seconds from a failed try to the next, at least as many as the endpoint asked for.

    Args:
        tries: how many failed, at least 1 and fewer than the schedule has.
        retry_after: what the endpoint asked for; None where it didn't.
    """
    jitter = random.uniform(1.0, _JITTER)  # noqa: S311 - no secret depends on it
    return max(SCHEDULE[tries], retry_after or 0.0) * jitter


def _is_due(now: float) -> ColumnElement[bool]:
    """Whether a delivery is due, and no relay has leased it."""
    is_unleased = or_(deliveries.c.leased_until.is_(None), _is_over(deliveries.c.leased_until, now))
    return and_(deliveries.c.state == "pending", _is_over(deliveries.c.next_try_at, now), is_unleased)


def _is_over(until: ColumnElement[float | None], now: float) -> ColumnElement[bool]:
    return or_(until <= now, until > now + _FURTHEST)


def _is_leased_by(relay: str, delivery: Delivery) -> ColumnElement[bool]:
    """Whether the relay still has this very lease."""
    return and_(
        deliveries.c.id == delivery.id,
        deliveries.c.state == "pending",
        deliveries.c.leased_by == relay,
        deliveries.c.leased_until == delivery.leased_until,
    )


def _due(connection: Connection, endpoint: str, limit: int, now: float) -> Sequence[Row[Any]]:
    if limit < 1:
        return []
    due = select(deliveries).where(deliveries.c.endpoint == endpoint, _is_due(now))
    return connection.execute(
        due.order_by(deliveries.c.next_try_at).limit(limit).with_for_update(skip_locked=True)
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


def _disable_due(connection: Connection, endpoint: str, now: float) -> None:
    """Turn what is due for a disabled endpoint into dead letters, except what a relay has leased."""
    due = select(deliveries.c.id).where(deliveries.c.endpoint == endpoint, _is_due(now))
    # SQLite drops the lock clause; PostgreSQL needs it in the inner query.
    locked = due.with_for_update(skip_locked=True)
    connection.execute(update(deliveries).where(deliveries.c.id.in_(locked)).values(state="disabled"))


def _settle_delivered(connection: Connection, tries: Sequence[DeliveryTry]) -> None:
    """Settle what endpoints accepted, whoever has the lease by now."""
    if not tries:
        return
    by_id = and_(deliveries.c.id == bindparam("delivery"), deliveries.c.state == "pending")
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
    rows = [{"delivery": one.delivery.id, "at": one.at, "status": one.result.status} for one in tries]
    connection.execute(settle, rows)
