"""Deliveries that never arrived: they are kept, listed, and sent again when somebody says so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, func, select, update

from ilis_guard.errors import DeliveryNotFoundError, ReviewError
from ilis_guard.review import receivers
from ilis_guard.review.ledger import Ledger
from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.schema import deliveries
from ilis_guard.review.schema import receivers as receivers_table

_DEAD: Final = ("exhausted", "disabled")
_SHORTEST_PREFIX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A delivery that isn't tried any more."""

    id: str
    """The webhook's id: sent again, it has the same."""
    ticket: str
    receiver: str
    event: str
    created_at: float
    """When the event happened, seconds since the epoch."""
    state: Literal["exhausted", "disabled"]
    """`exhausted`: all tries failed. `disabled`: the receiver answered 410 Gone, to this or to an earlier one."""
    tries: int
    last_try_at: float | None
    last_status: int | None
    last_error: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What became of dead letters that were to be sent again."""

    pending: int
    """So many will be."""
    left: int
    """So many stay dead: their receivers are disabled, or guard.yaml doesn't name them."""


def dead_letters(queue: ReviewQueue, *, receiver: str | None = None, limit: int = 50) -> list[DeadLetter]:
    """Dead letters, the latest event first.

    Args:
        queue: where they are.
        receiver: only this receiver's; None for all.
        limit: at most so many.

    Raises:
        ReviewError: they can't be read.
    """
    columns = [deliveries.c[name] for name in DeadLetter.__slots__]
    dead = select(*columns).where(deliveries.c.state.in_(_DEAD))
    if receiver is not None:
        dead = dead.where(deliveries.c.receiver == receiver)
    latest = dead.order_by(deliveries.c.created_at.desc(), deliveries.c.id).limit(limit)
    with _ledger(queue).reading() as connection:
        return [DeadLetter(**row._mapping) for row in connection.execute(latest)]  # noqa: SLF001 - its public name


def disabled_receivers(queue: ReviewQueue) -> dict[str, float]:
    """The receivers that answered 410 Gone, and since when nothing is sent to them.

    Raises:
        ReviewError: they can't be read.
    """
    gone = select(receivers_table.c.name, receivers_table.c.disabled_at)
    gone = gone.where(receivers_table.c.disabled_at.is_not(None)).order_by(receivers_table.c.name)
    with _ledger(queue).reading() as connection:
        return {row.name: row.disabled_at for row in connection.execute(gone)}


def replay(queue: ReviewQueue, id: str) -> str:  # noqa: A002 - the delivery's word for it
    """Send a dead letter again, with all tries it had at first; its full id.

    Args:
        queue: where it is.
        id: the delivery's id, or its first characters, at least 4.

    Raises:
        DeliveryNotFoundError: no dead letter, or more than one, has an id that starts so.
        ReviewError: its receiver is disabled or unknown, or it can't be stored.
    """
    ledger = _ledger(queue)
    with ledger.writing() as connection:
        found = _id_of(connection, id)
        if not _revive(connection, ledger, deliveries.c.id == found):
            raise ReviewError(
                f"the receiver of {found[:8]} is disabled, or guard.yaml doesn't name it; see `ilis-guard queue "
                "dead-letters`, then `queue enable` it"
            )
    return found


def replay_since(queue: ReviewQueue, since: float) -> Replayed:
    """Send all dead letters again whose event happened at a time or later.

    Args:
        queue: where they are.
        since: seconds since the epoch.

    Raises:
        ReviewError: they can't be stored.
    """
    ledger = _ledger(queue)
    with ledger.writing() as connection:
        is_late = deliveries.c.created_at >= since
        pending = _revive(connection, ledger, is_late)
        still_dead = select(func.count()).where(deliveries.c.state.in_(_DEAD), is_late)
        return Replayed(pending=pending, left=connection.execute(still_dead).scalar_one())


def enable(queue: ReviewQueue, receiver: str) -> None:
    """Send to a receiver again that answered 410 Gone. What it missed meanwhile stays dead until it is replayed.

    Raises:
        ReviewError: it isn't disabled, or that can't be stored.
    """
    with _ledger(queue).writing() as connection:
        if not receivers.enable(connection, receiver):
            raise ReviewError(f"the receiver {receiver!r} isn't disabled; `ilis-guard queue dead-letters` names those")


def _revive(connection: Connection, ledger: Ledger, which: ColumnElement[bool]) -> int:
    """Make dead letters pending again, for receivers that are sent to; how many."""
    configured = [receiver.name for receiver in ledger.receivers]
    disabled = select(receivers_table.c.name).where(receivers_table.c.disabled_at.is_not(None))
    dead = update(deliveries).where(
        deliveries.c.state.in_(_DEAD),
        deliveries.c.receiver.in_(configured),
        deliveries.c.receiver.not_in(disabled),
        which,
    )
    return connection.execute(dead.values(state="pending", tries=0, next_try_at=ledger.clock())).rowcount


def _id_of(connection: Connection, prefix: str) -> str:
    prefix = prefix.strip().lower()
    if len(prefix) < _SHORTEST_PREFIX:
        raise DeliveryNotFoundError(f"{prefix!r} is too short for a delivery's id; give at least 4 characters")
    # Ids are lower-case hexadecimal, so whatever follows the prefix sorts before "g".
    starts_so = (deliveries.c.id >= prefix, deliveries.c.id < prefix + "g", deliveries.c.state.in_(_DEAD))
    found: Sequence[str] = connection.scalars(select(deliveries.c.id).where(*starts_so).limit(2)).all()
    if len(found) != 1:
        how_many = "no dead letter's id starts" if not found else "several dead letters' ids start"
        raise DeliveryNotFoundError(f"{how_many} with {prefix!r}; see `ilis-guard queue dead-letters`")
    return found[0]


def _ledger(queue: ReviewQueue) -> Ledger:
    return queue._ledger  # noqa: SLF001 - the review room's own
