"""What all workers remember together of an endpoint: whether it is disabled, how fast it may be sent to."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, or_, select, update

from ilis_guard.review.ledger import TicketStore
from ilis_guard.review.schema import endpoints

AHEAD_SECONDS: Final = 1.0
"""How far ahead sends are reserved: a worker that dies wastes no more of an endpoint's rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """When the next sends to an endpoint may start."""

    first: float
    """Seconds since the epoch."""
    every: float
    """Seconds from one to the next."""
    count: int
    """How many start within `AHEAD_SECONDS`."""

    def at(self, index: int) -> float:
        """When the send of this index may start."""
        return self.first + index * self.every


def slots(row: Row[Any], *, per_second: float, now: float) -> Slots:
    """The sends that may be reserved now, evenly spaced, so that no second has more than it should."""
    every = 1.0 / per_second
    # Nobody reserves further ahead than this: whoever did had a clock that has gone back since.
    is_believed = now < row.next_send_at <= now + AHEAD_SECONDS + 2 * every
    first = row.next_send_at if is_believed else now
    count = math.ceil((now + AHEAD_SECONDS - first) * per_second)
    return Slots(first=first, every=every, count=max(0, count))


def locked(connection: Connection, ledger: TicketStore, names: Iterable[str]) -> dict[str, Row[Any]]:
    """The rows of these endpoints, locked in one order by all workers, and made where they are missing."""
    wanted = sorted(names)
    read = select(endpoints).where(endpoints.c.name.in_(wanted)).order_by(endpoints.c.name).with_for_update()
    found = {row.name: row for row in connection.execute(read)}
    if missing := [name for name in wanted if name not in found]:
        for name in missing:
            ledger.storage.insert_new(connection, endpoints, {"name": name, "next_send_at": 0.0}, unless="name")
        found = {row.name: row for row in connection.execute(read)}
    return found


def reserve(connection: Connection, name: str, *, until: float) -> None:
    """Let nobody send to an endpoint before a time."""
    connection.execute(update(endpoints).where(endpoints.c.name == name).values(next_send_at=until))


def hold(connection: Connection, name: str, *, until: float, furthest: float) -> None:
    """Leave an endpoint alone for as long as it asked, and no shorter than it asked before, unless that isn't believed.

    Args:
        connection: inside a writing transaction.
        name: the endpoint's.
        until: seconds since the epoch.
        furthest: seconds since the epoch; what was asked for before and lies further ahead counts for nothing.
    """
    held_until = endpoints.c.held_until
    is_longer = or_(held_until.is_(None), held_until < until, held_until > furthest)
    connection.execute(update(endpoints).where(endpoints.c.name == name, is_longer).values(held_until=until))


def disable(connection: Connection, name: str, *, at: float) -> None:
    """Send nothing to an endpoint any more, until somebody enables it."""
    enabled = (endpoints.c.name == name, endpoints.c.disabled_at.is_(None))
    connection.execute(update(endpoints).where(*enabled).values(disabled_at=at))


def enable(connection: Connection, name: str) -> bool:
    """Send to an endpoint again, at once; whether it was disabled."""
    disabled = (endpoints.c.name == name, endpoints.c.disabled_at.is_not(None))
    return (
        connection.execute(update(endpoints).where(*disabled).values(disabled_at=None, held_until=None)).rowcount == 1
    )
