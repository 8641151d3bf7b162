"""The one way in which a ticket changes: its row, its version, its history and what endpoints hear, all at once."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, select, update

from ilis_guard.config.review import ANY_OTHER, EndpointSettings, Event, QueueSettings
from ilis_guard.errors import TicketNotFoundError
from ilis_guard.review import outbox
from ilis_guard.review.schema import SMALL_COLUMNS, history, tickets
from ilis_guard.review.storage import Storage

What = Literal["created", "claimed", "released", "moved", "expired", "resolved", "redacted"]
"""What can happen to a ticket, as its history says it."""

_HEARD_AS: Final[Mapping[What, Event]] = {
    "created": "ticket.created",
    "claimed": "ticket.claimed",
    "moved": "ticket.overdue",
    "expired": "ticket.overdue",
    "resolved": "ticket.resolved",
}
_SHORTEST_PREFIX: Final = 4
_CANDIDATES_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketStore:
    """What all work on tickets shares: the storage, the clock, and what guard.yaml says of queues and endpoints."""

    storage: Storage
    clock: Callable[[], float]
    """Seconds since the epoch. It may go back: what is compared with it then only lasts longer."""
    queues: Mapping[str, QueueSettings]
    endpoints: Sequence[EndpointSettings]

    def reading(self) -> AbstractContextManager[Connection]:
        """See `Storage.reading`."""
        return self.storage.reading()

    def writing(self) -> AbstractContextManager[Connection]:
        """See `Storage.writing`."""
        return self.storage.writing()

    def settings(self, queue: str) -> QueueSettings:
        """What guard.yaml says of a queue."""
        return self.queues.get(queue, ANY_OTHER)

    def add(self, connection: Connection, values: dict[str, Any]) -> bool:
        """Add a ticket unless its decision has one; whether it was added."""
        if not self.storage.insert_new(connection, tickets, values, unless="decision"):
            return False
        self._write_down(connection, row_of(connection, values["id"]), "created", at=values["created_at"])
        return True

    def change(
        self,
        connection: Connection,
        row: Row[Any],
        what: What,
        *,
        at: float,
        by: str = "",
        values: Mapping[str, Any],
        details: Mapping[str, Any] | None = None,
    ) -> Row[Any]:
        """Change a ticket, write that into its history, and tell the endpoints.

        Args:
            connection: inside a writing transaction.
            row: the ticket, at least its small columns, read in this transaction for update.
            what: what happens to it.
            at: when.
            by: who does it; empty where nobody does.
            values: the columns that change.
            details: what the history tells beside this.

        Returns:
            The ticket as it is now.
        """
        unchanged = (tickets.c.id == row.id, tickets.c.version == row.version)
        changed = connection.execute(update(tickets).where(*unchanged).values(version=row.version + 1, **values))
        assert changed.rowcount == 1, "the ticket was read for update, so nobody else changed it"
        new = row_of(connection, row.id)
        self._write_down(connection, new, what, at=at, by=by, details=details, left=row.queue)
        return new

    def _write_down(
        self,
        connection: Connection,
        row: Row[Any],
        what: What,
        *,
        at: float,
        by: str = "",
        details: Mapping[str, Any] | None = None,
        left: str | None = None,
    ) -> None:
        told = dict(details or {})
        connection.execute(
            history.insert().values(ticket=row.id, at=at, what=what, by=by, version=row.version, details=told)
        )
        if what in _HEARD_AS:
            queues = [row.queue] if left in (None, row.queue) else [str(left), row.queue]
            data = thin(row, by=by, details=told)
            outbox.put(connection, self.endpoints, _HEARD_AS[what], ticket=row.id, queues=queues, data=data, at=at)


def thin(row: Row[Any], *, by: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """What an endpoint hears of a ticket without asking further: no prompt, no answer, no reviewer's text."""
    return {
        "ticket": row.id,
        "decision": row.decision,
        "queue": row.queue,
        "priority": row.priority,
        "due_at": row.due_at,
        "created_at": row.created_at,
        "state": "claimed" if row.claimed_by else row.state,
        "version": row.version,
        "policy": row.policy,
        "rule": row.rule,
        "claimed_until": row.claimed_until,
        "verdict": row.verdict,
        "by": by,
        **details,
    }


def row_of(connection: Connection, prefix: str, *, for_update: bool = False) -> Row[Any]:
    """The small columns of the one ticket whose id starts with the prefix.

    Raises:
        TicketNotFoundError: no ticket, or more than one, has an id that starts so.
    """
    prefix = prefix.strip().lower()
    if len(prefix) < _SHORTEST_PREFIX:
        raise TicketNotFoundError(
            f"{prefix!r} is too short for a ticket's id; give at least {_SHORTEST_PREFIX} characters"
        )
    found = _ids_from(connection, prefix) if re.fullmatch("[0-9a-f]+", prefix) else []
    if len(found) > 1:
        more = ", ..." if len(found) > _CANDIDATES_SHOWN else ""
        raise TicketNotFoundError(
            f"several tickets' ids start with {prefix!r}: {', '.join(found[:_CANDIDATES_SHOWN])}{more}; give more "
            "characters"
        )
    one = select(*SMALL_COLUMNS).where(tickets.c.id == (found[0] if found else ""))
    row = connection.execute(one.with_for_update() if for_update else one).one_or_none()
    if row is None:
        raise TicketNotFoundError(f"no ticket's id starts with {prefix!r}; list the tickets to see their ids")
    return row


def _ids_from(connection: Connection, prefix: str) -> list[str]:
    """Ids that start with the prefix, one more than are shown at most."""
    # Ids are lower-case hexadecimal, so whatever follows the prefix sorts before "g".
    starts_so = select(tickets.c.id).where(tickets.c.id >= prefix, tickets.c.id < prefix + "g")
    return list(connection.scalars(starts_so.order_by(tickets.c.id).limit(_CANDIDATES_SHOWN + 1)))
