"""The ticket store: a ticket's row, its version, its history and the outbox change together, in one transaction."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, select, update

from ilis_guard.config.review import ANY_OTHER, Event, QueueSettings, parse_database_url
from ilis_guard.errors import ReviewError, TicketNotFoundError
from ilis_guard.review.database import EXAMPLE, Database
from ilis_guard.review.outbox import Outbox
from ilis_guard.review.postgresql import PostgreSQL
from ilis_guard.review.schema import SMALL_COLUMNS, history, tickets
from ilis_guard.review.sqlite import SQLite

TicketEventType = Literal["created", "claimed", "released", "moved", "expired", "resolved", "redacted"]

BATCH_SIZE: Final = 100
"""Tickets in one transaction, or in memory, where many are read or changed."""

_ANNOUNCED_AS: Final[Mapping[TicketEventType, Event]] = {
    "created": "ticket.created",
    "claimed": "ticket.claimed",
    "moved": "ticket.overdue",
    "expired": "ticket.overdue",
    "resolved": "ticket.resolved",
}
_MIN_PREFIX: Final = 4
_MAX_CANDIDATES: Final = 5

_DATABASES: Final[dict[str, Callable[[Any], Database]]] = {
    "sqlite": SQLite,
    "sqlite+pysqlite": SQLite,
    "postgresql": PostgreSQL,
    "postgresql+psycopg": PostgreSQL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketStore:
    """What all operations on tickets share."""

    database: Database
    outbox: Outbox
    queues: Mapping[str, QueueSettings]
    """All configured queues, by name."""
    clock: Callable[[], float]
    """Seconds since the epoch. It may go back: leases and due times then only last longer."""

    def settings(self, queue: str) -> QueueSettings:
        """Return the settings of a queue, or those of queues that aren't configured."""
        return self.queues.get(queue, ANY_OTHER)

    def add(self, connection: Connection, values: dict[str, Any]) -> bool:
        """Add a ticket and return True, unless its decision has one."""
        if not self.database.insert_new(connection, tickets, values, unique="decision"):
            return False
        self._record(connection, ticket_row(connection, values["id"]), "created", at=values["created_at"])
        return True

    def change(
        self,
        connection: Connection,
        row: Row[Any],
        type: TicketEventType,  # noqa: A002 - the event's word for it
        *,
        at: float,
        by: str = "",
        values: Mapping[str, Any],
        details: Mapping[str, Any] | None = None,
    ) -> Row[Any]:
        """Change a ticket, record it in the history, and put it into the outbox.

        Args:
            connection: inside a writing transaction.
            row: the ticket, at least its small columns, read in this transaction for update.
            type: what happens to it.
            at: when, seconds since the epoch.
            by: who does it; empty where nobody does.
            values: the columns that change.
            details: what the history holds beside this.

        Returns:
            The changed ticket's small columns.
        """
        unchanged = (tickets.c.id == row.id, tickets.c.version == row.version)
        changed = connection.execute(update(tickets).where(*unchanged).values(version=row.version + 1, **values))
        assert changed.rowcount == 1, "the ticket was read for update, so nobody else changed it"
        new = ticket_row(connection, row.id)
        self._record(connection, new, type, at=at, by=by, details=details, queue_before=row.queue)
        return new

    def _record(
        self,
        connection: Connection,
        row: Row[Any],
        type: TicketEventType,  # noqa: A002 - the event's word for it
        *,
        at: float,
        by: str = "",
        details: Mapping[str, Any] | None = None,
        queue_before: str | None = None,
    ) -> None:
        more = dict(details or {})
        connection.execute(
            history.insert().values(ticket=row.id, at=at, type=type, by=by, version=row.version, details=more)
        )
        if type in _ANNOUNCED_AS:
            queues = [row.queue] if queue_before in (None, row.queue) else [str(queue_before), row.queue]
            data = _thin_payload(row, by=by) | more
            self.outbox.put(connection, _ANNOUNCED_AS[type], ticket=row.id, queues=queues, data=data, at=at)


def open_database(url: str) -> Database:
    """Open a queue's database and check its revision; see `ReviewQueue`.

    Raises:
        ReviewError: the URL can't be used, or this version of ilis_guard can't use the database behind it.
        MissingDependencyError: the driver isn't installed.
    """
    database = _connect(url)
    try:
        database.prepare()
    except ReviewError:
        database.close()
        raise
    return database


def migrate(url: str) -> tuple[str | None, str]:
    """Bring a queue's tables to this version of ilis_guard, in one transaction, or create them where there are none.

    Args:
        url: see `ReviewQueue`.

    Returns:
        The revision before, None where there was none, and after.

    Raises:
        ReviewError: the database is another program's or a later version's, or it failed; nothing was changed.
    """
    database = _connect(url)
    try:
        return database.migrate()
    finally:
        database.close()


def ticket_row(connection: Connection, prefix: str, *, for_update: bool = False) -> Row[Any]:
    """Return the small columns of the one ticket whose id starts with the prefix.

    Raises:
        TicketNotFoundError: no ticket, or more than one, has such an id.
    """
    prefix = prefix.strip().lower()
    if len(prefix) < _MIN_PREFIX:
        raise TicketNotFoundError(f"{prefix!r} is too short for a ticket's id; give at least {_MIN_PREFIX} characters")
    found = _ids_with(connection, prefix) if re.fullmatch("[0-9a-f]+", prefix) else []
    if len(found) > 1:
        more = ", ..." if len(found) > _MAX_CANDIDATES else ""
        raise TicketNotFoundError(
            f"several tickets' ids start with {prefix!r}: {', '.join(found[:_MAX_CANDIDATES])}{more}; give more "
            "characters"
        )
    one = select(*SMALL_COLUMNS).where(tickets.c.id == (found[0] if found else ""))
    row = connection.execute(one.with_for_update() if for_update else one).one_or_none()
    if row is None:
        raise TicketNotFoundError(f"no ticket's id starts with {prefix!r}; list the tickets to see their ids")
    return row


def _connect(url: str) -> Database:
    # No message shows the URL: it may hold a password.
    parsed = parse_database_url(url)
    if parsed is None:
        raise ReviewError(f"the URL of the review queue can't be read; {EXAMPLE}")
    if parsed.drivername not in _DATABASES:
        raise ReviewError(
            f"the review queue can't be kept in {parsed.drivername!r}: this version knows SQLite and PostgreSQL; "
            f"{EXAMPLE}"
        )
    return _DATABASES[parsed.drivername](parsed)


def _ids_with(connection: Connection, prefix: str) -> list[str]:
    """Return ids that start with the prefix, at most one more than a message shows."""
    # Ids are lower-case hexadecimal, so whatever follows the prefix sorts before "g".
    starts = select(tickets.c.id).where(tickets.c.id >= prefix, tickets.c.id < prefix + "g")
    return list(connection.scalars(starts.order_by(tickets.c.id).limit(_MAX_CANDIDATES + 1)))


def _thin_payload(row: Row[Any], *, by: str) -> dict[str, Any]:
    """Return what every webhook about a ticket holds: no prompt, no answer, no reviewer's text."""
    return {
        "ticket": row.id,
        "kind": row.kind,
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
    }
