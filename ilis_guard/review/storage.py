"""Where tickets are kept: transactions on the database that a URL names, and what is said when it fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Table, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from ilis_guard.errors import QueueStorageError, ReviewError
from ilis_guard.review.database import EXAMPLE, Database
from ilis_guard.review.migrating import make_tables, upgrade
from ilis_guard.review.postgresql import PostgreSQL
from ilis_guard.review.schema import REVISION
from ilis_guard.review.sqlite import SQLite

_KINDS: Final[dict[str, Callable[[Any], Database]]] = {
    "sqlite": SQLite,
    "sqlite+pysqlite": SQLite,
    "postgresql": PostgreSQL,
    "postgresql+psycopg": PostgreSQL,
}


class Storage:
    """The database behind a review queue.

    Args:
        url: see `ReviewQueue`.
        checked: whether the tables must be those of this version, which all but `migrate` need. A new SQLite file
            gets them at once: there is nothing yet that could be lost.

    Raises:
        ReviewError: the URL can't be used, or the database behind it isn't one that this version can use.
    """

    def __init__(self, url: str, *, checked: bool = True) -> None:
        self._database = _database_at(url)
        try:
            if checked:
                self._prepare()
        except ReviewError:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one moment of the database, whatever others write meanwhile.

        Raises:
            ReviewError: the database failed.
        """
        with self._connected() as connection:
            self._database.begin_reading(connection)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection inside a transaction that is on disk when the block ends, or leaves nothing when it raises.

        Rows that are to be changed are read ``with_for_update``: in PostgreSQL that locks them, in SQLite, where the
        whole transaction holds the lock, it means nothing.

        Raises:
            ReviewError: the database failed; nothing was written.
        """
        with self._connected() as connection, connection.begin():
            self._database.begin_writing(connection)
            yield connection

    def insert_new(self, connection: Connection, table: Table, values: dict[str, Any], *, unless: str) -> bool:
        """Insert a row unless there is one with the same value in a unique column; whether it was inserted."""
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        unless_known = insert(table).values(values).on_conflict_do_nothing(index_elements=[unless])
        # Unless it is told to, SQLAlchemy throws the count away where the dialect could return rows.
        return connection.execute(unless_known, execution_options={"preserve_rowcount": True}).rowcount == 1

    def migrate(self) -> tuple[str | None, str]:
        """See `ilis_guard.review.migrate`."""
        with self.writing() as connection:
            self._database.begin_migrating(connection)
            before = None if self._database.is_empty(connection) else self._known_revision(connection)
            upgrade(connection, before)
            self._database.sign(connection)
        self._finish()
        return before, REVISION

    def forget(self) -> None:
        """Leave nothing of what was deleted or overwritten in the database's files, as far as it is in our hands.

        Raises:
            ReviewError: the database failed.
        """
        with self._telling():
            self._database.forget()

    def close(self) -> None:
        """Let go of the database."""
        self._database.engine.dispose()

    def _prepare(self) -> None:
        with self.reading() as connection:
            is_new = self._is_new(connection)
        if is_new:
            with self.writing() as connection:
                if self._is_new(connection):  # another process may have been faster
                    make_tables(connection)
                    self._database.sign(connection)
        self._finish()

    def _is_new(self, connection: Connection) -> bool:
        """Whether the tables are still to be made; looks only, so that a database that isn't ours stays as it is."""
        if self._database.revision(connection) == REVISION:
            return False
        if not self._database.is_empty(connection):
            revision = self._known_revision(connection)
            raise ReviewError(
                f"the review queue {self._database.name} has revision {revision}, and this version of ilis_guard uses "
                f"{REVISION}; stop what uses it, back it up, and run `ilis-guard queue migrate`"
            )
        if not self._database.is_made_at_once:
            raise ReviewError(
                f"the database {self._database.name} holds no review queue yet; run `ilis-guard queue migrate`"
            )
        return True

    def _known_revision(self, connection: Connection) -> str:
        """The revision of a queue of ours that isn't later than this version's."""
        revision = self._database.revision(connection)
        if revision is None:
            raise ReviewError(
                f"the database {self._database.name} belongs to another program; give the review queue one of its own"
            )
        if revision > REVISION:
            raise ReviewError(
                f"the review queue {self._database.name} has revision {revision}, and this version of ilis_guard uses "
                f"{REVISION}; install the version that made it"
            )
        return revision

    def _finish(self) -> None:
        with self._telling():
            self._database.finish()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection without a transaction."""
        with self._telling(), self._database.engine.connect() as connection:
            yield connection

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong on the database becomes a `ReviewError`."""
        try:
            yield
        except SQLAlchemyError as error:
            # Without the cause: PostgreSQL's quotes the row, and with it prompts and answers.
            raise self._failure(getattr(error, "orig", None) or error) from None
        except (ValueError, TypeError, OverflowError) as error:
            # Values that no column takes: NaN, half a surrogate pair, what is no JSON, huge integers.
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> QueueStorageError:
        return QueueStorageError(f"the review queue {self._database.name} failed: {self._database.described(error)}")


def migrate(url: str) -> tuple[str | None, str]:
    """Bring a queue's tables to this version of ilis_guard, in one transaction, or make them where there are none.

    Args:
        url: see `ReviewQueue`.

    Returns:
        The revision before, None where there was none, and after.

    Raises:
        ReviewError: the database is another program's or a later version's, or it failed; nothing was changed.
    """
    storage = Storage(url, checked=False)
    try:
        return storage.migrate()
    finally:
        storage.close()


def _database_at(url: str) -> Database:
    """No message shows the URL: there may be a password in it."""
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise ReviewError(f"the URL of the review queue can't be read; {EXAMPLE}") from None
    if parsed.drivername not in _KINDS:
        raise ReviewError(
            f"the review queue can't be kept in {parsed.drivername!r}: this version knows SQLite and PostgreSQL; "
            f"{EXAMPLE}"
        )
    return _KINDS[parsed.drivername](parsed)
