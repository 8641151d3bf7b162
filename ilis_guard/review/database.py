"""A review queue's database: transactions, the tables' revision, and errors that say what to do.

`sqlite` and `postgresql` hold one subclass of `Database` each; all that differs between the two is there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from sqlalchemy import Connection, Engine, Table, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from ilis_guard.errors import QueueStorageError, ReviewError
from ilis_guard.review.schema import REVISION, REVISION_TABLE, metadata

EXAMPLE: Final = "use a URL like 'sqlite:///path/tickets.db' or 'postgresql://user@host/database'"


RETRY_SECONDS: Final = 5.0
"""How long an operation is tried again while the database can't be reached: restarts and failovers take seconds."""


class ReadOnlyError(Exception):
    """The database takes no writes, wherever the driver connects to."""


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, QueueStorageError) and error.may_pass


def _has_not_happened(error: BaseException) -> bool:
    return isinstance(error, QueueStorageError) and error.may_pass and not error.may_be_stored


_WAIT: Final = wait_random(0.05, 0.5)
_STOP: Final = stop_after_delay(RETRY_SECONDS)
retried_idempotent: Final = retry(retry=retry_if_exception(_may_pass), wait=_WAIT, stop=_STOP, reraise=True)
"""Decorates an operation that finds what it has already done, so that doing it again, after a commit of unknown
outcome, changes nothing."""
retried: Final = retry(retry=retry_if_exception(_has_not_happened), wait=_WAIT, stop=_STOP, reraise=True)
"""Decorates an operation that may be tried again only where it certainly wasn't committed."""


class Database(ABC):
    """The database of one review queue."""

    name: str
    """For messages: a path, or host and database, never a password."""
    engine: Engine
    creates_tables: ClassVar[bool]
    """Whether opening an empty database creates the tables; otherwise only `migrate` does."""
    insert: ClassVar[Callable[[Table], Any]]
    """The dialect's INSERT, which has ON CONFLICT DO NOTHING."""

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection that sees one snapshot of the database, whatever others write meanwhile.

        Raises:
            ReviewError: the database failed.
        """
        with self._errors_translated(), self.engine.connect() as connection:
            self._begin_read(connection)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection inside a transaction that is on disk when the block ends, or rolled back when it raises.

        Read rows that you will change ``with_for_update``: PostgreSQL then locks them. SQLite ignores it, because its
        transaction holds the lock on the whole file.

        Raises:
            ReviewError: the database failed; nothing was written, unless the error `may_be_stored`.
        """
        with self._errors_translated(), self._open_for_writing() as connection:
            yield connection
            try:
                connection.commit()
            except SQLAlchemyError as error:
                failure = self._failure(_original(error))
                failure.may_be_stored = failure.may_pass
                raise failure from None

    def _open_for_writing(self) -> Connection:
        """Connect, and begin a transaction that may write; it is rolled back where the connection is closed.

        A connection from before a failover may lead to a server that is read-only now. It is replaced, and with it all
        others in the pool; nothing has been done on it.
        """
        for _ in range(2):
            connection = self.engine.connect()
            try:
                if self._begin_write(connection):
                    return connection
                connection.invalidate()
            except BaseException:
                connection.close()
                raise
            connection.close()
            self.engine.dispose()
        raise self._failure(ReadOnlyError("the database is read-only"))

    def insert_new(self, connection: Connection, table: Table, values: dict[str, Any], *, unique: str) -> bool:
        """Insert a row and return True, unless a row has the same value in the unique column."""
        statement = type(self).insert(table).values(values).on_conflict_do_nothing(index_elements=[unique])
        # Without the option, SQLAlchemy drops the row count where the dialect could return rows.
        return bool(connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount == 1)

    def prepare(self) -> None:
        """Check that the tables have this version's revision; create them in an empty database where that is allowed.

        Raises:
            ReviewError: this version of ilis_guard can't use the database, or the database failed.
        """
        with self.reading() as connection:
            is_empty = self._check_is_empty(connection)
        if is_empty:
            with self.writing() as connection:
                if self._check_is_empty(connection):  # unless another process was faster
                    metadata.create_all(connection, checkfirst=False)
                    create = f"CREATE TABLE {REVISION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
                    connection.execute(text(create))
                    insert = f"INSERT INTO {REVISION_TABLE} VALUES (:revision)"  # noqa: S608 - a constant
                    connection.execute(text(insert), {"revision": REVISION})
                    self._mark(connection)
        with self._errors_translated():
            self._configure()

    def migrate(self) -> tuple[str | None, str]:
        """See `ilis_guard.review.migrate`."""
        # Only a migration waits for alembic's import.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", "ilis_guard.review:migrations")
        with self.writing() as connection:
            self._lock_migrations(connection)
            before = None if self._is_empty(connection) else self._known_revision(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            self._mark(connection)
        with self._errors_translated():
            self._configure()
        return before, REVISION

    def erase(self) -> None:
        """Remove deleted and overwritten content from the database's files, as far as this process can.

        Raises:
            ReviewError: the database failed.
        """
        with self._errors_translated():
            self._erase()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def revision(self, connection: Connection) -> str | None:
        """Return the revision of the tables; None where the database holds no review queue. Never writes."""
        if not inspect(connection).has_table(REVISION_TABLE):
            return None
        found = connection.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).scalars().all()  # noqa: S608 - a constant
        if len(found) != 1:
            raise ReviewError(f"the table {REVISION_TABLE!r} must have one row, got {len(found)}; restore a backup")
        return str(found[0])

    def _check_is_empty(self, connection: Connection) -> bool:
        """Return whether the tables must be created; raise unless they must, or are those of this version."""
        if self.revision(connection) == REVISION:
            return False
        if not self._is_empty(connection):
            revision = self._known_revision(connection)
            raise ReviewError(
                f"the review queue {self.name} has revision {revision}, and this version of ilis_guard uses "
                f"{REVISION}; stop what uses it, back it up, and run `ilis-guard queue migrate`"
            )
        if not self.creates_tables:
            raise ReviewError(f"the database {self.name} holds no review queue yet; run `ilis-guard queue migrate`")
        return True

    def _known_revision(self, connection: Connection) -> str:
        revision = self.revision(connection)
        if revision is None:
            raise ReviewError(
                f"the database {self.name} belongs to another program; give the review queue one of its own"
            )
        if revision > REVISION:
            raise ReviewError(
                f"the review queue {self.name} has revision {revision}, and this version of ilis_guard uses "
                f"{REVISION}; install the version that made it"
            )
        return revision

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            # Without the cause: PostgreSQL's quotes the row, and with it prompts and answers.
            raise self._failure(_original(error)) from None
        except (ValueError, TypeError, OverflowError) as error:
            # Values that no column takes: NaN, half a surrogate pair, what is no JSON, huge integers.
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> QueueStorageError:
        failure = QueueStorageError(f"the review queue {self.name} failed: {self._describe(error)}")
        failure.may_pass = self._may_pass(error)
        return failure

    @abstractmethod
    def _begin_read(self, connection: Connection) -> None:
        """Begin a transaction that sees one snapshot of the database."""

    @abstractmethod
    def _begin_write(self, connection: Connection) -> bool:
        """Begin a transaction whose commit is durable when it returns, and that waits for locks for a limited time.

        Returns:
            Whether it may write.
        """

    @abstractmethod
    def _is_empty(self, connection: Connection) -> bool:
        """Return whether the database holds nothing, so that the tables may be created."""

    @abstractmethod
    def _describe(self, error: BaseException) -> str:
        """Say what failed and what to do, without quoting prompts or answers."""

    @abstractmethod
    def _may_pass(self, error: BaseException) -> bool:
        """Return whether trying again a moment later may help."""

    @abstractmethod
    def _lock_migrations(self, connection: Connection) -> None:
        """Inside a writing transaction: keep other migrations out until it ends."""

    @abstractmethod
    def _mark(self, connection: Connection) -> None:
        """Mark the database as a review queue."""

    @abstractmethod
    def _configure(self) -> None:
        """Set what can only be set outside a transaction, once the tables exist."""

    @abstractmethod
    def _erase(self) -> None:
        """See `erase`."""


def _original(error: SQLAlchemyError) -> BaseException:
    """The driver's error, where there is one."""
    return getattr(error, "orig", None) or error
