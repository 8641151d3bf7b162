"""Dead letters: deliveries that never arrived are kept, listed, and replayed on request."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, func, select, update

from ilis_guard.errors import DeliveryNotFoundError, ReviewError
from ilis_guard.review import endpoints
from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.schema import deliveries, endpoints as endpoints_table
from ilis_guard.review.store import TicketStore

_DEAD: Final = ("exhausted", "disabled")
_MIN_PREFIX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A delivery that no relay tries any more."""

    id: str
    """The webhook's id, the same when it is replayed."""
    ticket: str
    endpoint: str
    event: str
    created_at: float
    """When the event happened, seconds since the epoch."""
    state: Literal["exhausted", "disabled"]
    """`exhausted`: all tries failed. `disabled`: the endpoint answered 410 Gone, to this or to an earlier one."""
    tries: int
    last_try_at: float | None
    last_status: int | None
    last_error: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayCounts:
    """Result of replaying many dead letters."""

    pending: int
    """How many will be sent again."""
    dead: int
    """How many stay dead: their endpoints are disabled, or guard.yaml doesn't name them."""


def dead_letters(queue: ReviewQueue, *, endpoint: str | None = None, limit: int = 50) -> list[DeadLetter]:
    """List dead letters, the latest event first.

    Args:
        queue: whose dead letters.
        endpoint: only this endpoint's; None for all.
        limit: at most so many.

    Raises:
        ReviewError: they can't be read.
    """
    columns = [deliveries.c[name] for name in DeadLetter.__slots__]
    dead = select(*columns).where(deliveries.c.state.in_(_DEAD))
    if endpoint is not None:
        dead = dead.where(deliveries.c.endpoint == endpoint)
    latest = dead.order_by(deliveries.c.created_at.desc(), deliveries.c.id).limit(limit)
    with queue.store.database.reading() as connection:
        return [DeadLetter(**row._mapping) for row in connection.execute(latest)]  # noqa: SLF001 - its public name


def disabled_endpoints(queue: ReviewQueue) -> dict[str, float]:
    """Return when each disabled endpoint answered 410 Gone, by name.

    Raises:
        ReviewError: they can't be read.
    """
    gone = select(endpoints_table.c.name, endpoints_table.c.disabled_at)
    gone = gone.where(endpoints_table.c.disabled_at.is_not(None)).order_by(endpoints_table.c.name)
    with queue.store.database.reading() as connection:
        return {row.name: row.disabled_at for row in connection.execute(gone)}


def replay(queue: ReviewQueue, id: str) -> str:  # noqa: A002 - the delivery's word for it
    """Send a dead letter again, with all its tries; return its full id.

    Args:
        queue: whose dead letter.
        id: the delivery's id, or its first characters, at least 4.

    Raises:
        DeliveryNotFoundError: no dead letter, or more than one, has an id that starts so.
        ReviewError: its endpoint is disabled or unknown, or it can't be stored.
    """
    store = queue.store
    with store.database.writing() as connection:
        found = _id_of(connection, id)
        if not _replay(connection, store, deliveries.c.id == found):
            raise ReviewError(
                f"the endpoint of {found[:8]} is disabled, or guard.yaml doesn't name it; see `ilis-guard queue "
                "dead-letters`, then `queue enable` it"
            )
    return found


def replay_since(queue: ReviewQueue, since: float) -> ReplayCounts:
    """Send all dead letters again whose event happened at or after a time.

    Args:
        queue: whose dead letters.
        since: seconds since the epoch.

    Raises:
        ReviewError: they can't be stored.
    """
    store = queue.store
    with store.database.writing() as connection:
        is_late = deliveries.c.created_at >= since
        pending = _replay(connection, store, is_late)
        still_dead = select(func.count()).where(deliveries.c.state.in_(_DEAD), is_late)
        return ReplayCounts(pending=pending, dead=connection.execute(still_dead).scalar_one())


def enable(queue: ReviewQueue, endpoint: str) -> None:
    """Enable an endpoint that answered 410 Gone. What it missed meanwhile stays dead until it is replayed.

    Raises:
        ReviewError: it isn't disabled, or that can't be stored.
    """
    with queue.store.database.writing() as connection:
        if not endpoints.enable(connection, endpoint):
            raise ReviewError(f"the endpoint {endpoint!r} isn't disabled; `ilis-guard queue dead-letters` names those")


def _replay(connection: Connection, store: TicketStore, condition: ColumnElement[bool]) -> int:
    """Make dead letters of configured and enabled endpoints pending again; return how many."""
    disabled = select(endpoints_table.c.name).where(endpoints_table.c.disabled_at.is_not(None))
    dead = update(deliveries).where(
        deliveries.c.state.in_(_DEAD),
        deliveries.c.endpoint.in_(list(store.outbox.endpoints)),
        deliveries.c.endpoint.not_in(disabled),
        condition,
    )
    return connection.execute(dead.values(state="pending", tries=0, next_try_at=store.clock())).rowcount


def _id_of(connection: Connection, prefix: str) -> str:
    prefix = prefix.strip().lower()
    if len(prefix) < _MIN_PREFIX:
        raise DeliveryNotFoundError(f"{prefix!r} is too short for a delivery's id; give at least 4 characters")
    # Ids are lower-case hexadecimal, so whatever follows the prefix sorts before "g".
    starts = (deliveries.c.id >= prefix, deliveries.c.id < prefix + "g", deliveries.c.state.in_(_DEAD))
    found = connection.scalars(select(deliveries.c.id).where(*starts).limit(2)).all()
    if len(found) != 1:
        problem = "no dead letter's id starts" if not found else "several dead letters' ids start"
        raise DeliveryNotFoundError(f"{problem} with {prefix!r}; see `ilis-guard queue dead-letters`")
    return str(found[0])
