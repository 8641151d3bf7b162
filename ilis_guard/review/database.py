"""What the queue asks of a database; `sqlite` and `postgresql` answer it, each in a module of its own."""

from typing import Protocol

from sqlalchemy import Connection, Engine, inspect, text

from ilis_guard.errors import ReviewError
from ilis_guard.review.schema import REVISION_TABLE

EXAMPLE = "use a URL like 'sqlite:///path/tickets.db' or 'postgresql://user@host/database'"


class Database(Protocol):
    """One kind of database. All that differs between the kinds is here: locks, durability, words for what failed."""

    name: str
    """How messages call it: a path, or host and database, never a password."""
    engine: Engine
    is_made_at_once: bool
    """Whether a new queue gets its tables when it is first opened, or by `migrate` only."""

    def begin_reading(self, connection: Connection) -> None:
        """Start a transaction that sees one moment of the database."""

    def begin_writing(self, connection: Connection) -> None:
        """Start a transaction whose commit is on disk when it returns, and that waits for others a while at most."""

    def begin_migrating(self, connection: Connection) -> None:
        """Inside a writing transaction: lock out all others who migrate."""

    def is_empty(self, connection: Connection) -> bool:
        """Whether nothing is in it, so that the tables may be made."""

    def revision(self, connection: Connection) -> str | None:
        """The revision that its tables have; None where it holds no review queue."""

    def sign(self, connection: Connection) -> None:
        """Mark the database as ours, once its tables are those of this version."""

    def finish(self) -> None:
        """What remains to be set outside a transaction, after the tables are there."""

    def forget(self) -> None:
        """Leave nothing of what was deleted or overwritten in the files, as far as it is in our hands."""

    def described(self, error: BaseException) -> str:
        """What failed and what to do, without a word of prompts or answers."""


def recorded_revision(connection: Connection) -> str | None:
    """The revision that stands in the database; None where none does."""
    if not inspect(connection).has_table(REVISION_TABLE):
        return None
    # The table's name is a constant.
    found = connection.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).scalars().all()  # noqa: S608
    if len(found) != 1:
        raise ReviewError(f"the table {REVISION_TABLE!r} must have one row, got {len(found)}; restore a backup")
    return str(found[0])
