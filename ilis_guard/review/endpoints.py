"""The state that all relays share of a webhook endpoint: whether it is disabled, on hold, and its rate limit."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, or_, select, update

from ilis_guard.review.database import Database
from ilis_guard.review.schema import endpoints

AHEAD_SECONDS: Final = 1.0
"""How far ahead sends are reserved: a relay that dies wastes no more of an endpoint's rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSlots:
    """When the next sends to an endpoint may start, evenly spaced."""

    first: float
    """Seconds since the epoch."""
    interval: float
    """Seconds from one to the next."""
    count: int
    """How many start within `AHEAD_SECONDS`."""

    def at(self, index: int) -> float:
        """Return when the send of this index may start."""
        return self.first + index * self.interval


def free_slots(row: Row[Any], *, per_second: float, now: float) -> SendSlots:
    """Return the sends that may be reserved now, so that no second has more than `per_second`."""
    interval = 1.0 / per_second
    # A reservation further ahead than this came from a clock that has gone back since.
    is_plausible = now < row.next_send_at <= now + AHEAD_SECONDS + 2 * interval
    first = row.next_send_at if is_plausible else now
    count = math.ceil((now + AHEAD_SECONDS - first) * per_second)
    return SendSlots(first=first, interval=interval, count=max(0, count))


def lock(connection: Connection, database: Database, names: Iterable[str]) -> dict[str, Row[Any]]:
    """Lock the rows of these endpoints, in the same order in all relays; create those that are missing."""
    wanted = sorted(names)
    read = select(endpoints).where(endpoints.c.name.in_(wanted)).order_by(endpoints.c.name).with_for_update()
    found = {row.name: row for row in connection.execute(read)}
    if missing := [name for name in wanted if name not in found]:
        for name in missing:
            database.insert_new(connection, endpoints, {"name": name, "next_send_at": 0.0}, unique="name")
        found = {row.name: row for row in connection.execute(read)}
    return found


def reserve(connection: Connection, name: str, *, until: float) -> None:
    """Reserve all sends to an endpoint before a time."""
    connection.execute(update(endpoints).where(endpoints.c.name == name).values(next_send_at=until))


def hold(connection: Connection, name: str, *, until: float, furthest: float) -> None:
    """Send nothing to an endpoint before a time; never shortens an earlier hold, unless that one is implausible.

    Args:
        connection: inside a writing transaction.
        name: the endpoint's.
        until: seconds since the epoch.
        furthest: seconds since the epoch; an earlier hold beyond it came from a clock that has gone back since.
    """
    held_until = endpoints.c.held_until
    is_longer = or_(held_until.is_(None), held_until < until, held_until > furthest)
    connection.execute(update(endpoints).where(endpoints.c.name == name, is_longer).values(held_until=until))


def disable(connection: Connection, name: str, *, at: float) -> None:
    """Send nothing more to an endpoint until somebody enables it."""
    enabled = (endpoints.c.name == name, endpoints.c.disabled_at.is_(None))
    connection.execute(update(endpoints).where(*enabled).values(disabled_at=at))


def enable(connection: Connection, name: str) -> bool:
    """Send to an endpoint again, at once; return whether it was disabled."""
    disabled = (endpoints.c.name == name, endpoints.c.disabled_at.is_not(None))
    updated = connection.execute(update(endpoints).where(*disabled).values(disabled_at=None, held_until=None))
    return updated.rowcount == 1
