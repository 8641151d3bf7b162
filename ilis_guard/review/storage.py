"""Where tickets are kept: one SQLite file, opened so that what was committed survives a crash.

There is no connection pool. A connection lives for one operation, so nothing is shared between threads, and a
process that forks hands no open database to its child, which SQLite forbids.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from ilis_guard.errors import ReviewError
from ilis_guard.review.schema import SCHEMA_VERSION, metadata

BUSY_SECONDS: Final = 30.0
"""How long a connection waits while another one writes."""

APPLICATION_ID: Final = 0x696C6973
"""``ilis`` in ASCII, in the file's header: tells a review queue from other programs' databases."""

_EXAMPLE: Final = "use a URL like 'sqlite:///path/tickets.db'"

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: f"another process kept it locked for {BUSY_SECONDS:g} s; find it, then try again",
    sqlite3.SQLITE_CANTOPEN: "check that the path is a file in a folder that this process may write to",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a backup",
    sqlite3.SQLITE_FULL: "free some disk space, then try again",
    sqlite3.SQLITE_IOERR: "check the disk: its space, its quota, its health",
    sqlite3.SQLITE_NOTADB: "this file is something else; give the queue a path of its own",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable for this process",
}


class Storage:
    """The database behind a review queue.

    Raises:
        ReviewError: the URL can't be used, or the database behind it isn't one that this version can use.
    """

    def __init__(self, url: str) -> None:
        self._path = _path_in(url)
        self._engine = _engine_for(self._path)
        self._prepare()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one moment of the database, whatever others write meanwhile.

        Raises:
            ReviewError: the database failed.
        """
        with self._connected() as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection inside a transaction that is on disk when the block ends, or leaves nothing when it raises.

        Raises:
            ReviewError: the database failed; nothing was written.
        """
        with self._connected() as connection, connection.begin():
            # Writers queue here. A transaction that starts by reading would fail, not wait, when it came to write.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def _prepare(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise ReviewError(
                f"the folder of the review queue {str(self._path)!r} can't be made: {error}; give a path in a folder "
                "that this process may write to"
            ) from error
        # Prompts and answers are nobody else's to read. Where the file can't be made, SQLite says why below.
        with suppress(OSError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with self.reading() as connection:
            is_new = self._is_new(connection)
        if is_new:
            self._create_tables()
        self._write_ahead()

    def _is_new(self, connection: Connection) -> bool:
        """Whether the tables are still to be made; looks only, so that a file that isn't ours stays as it is."""
        application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if application == APPLICATION_ID and version == SCHEMA_VERSION:
            return False
        if application == APPLICATION_ID:
            raise ReviewError(
                f"the review queue {str(self._path)!r} has schema version {version}, and this version of ilis_guard "
                f"uses {SCHEMA_VERSION}; run the version that made it, or give another path"
            )
        if application or version or connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one():
            raise ReviewError(
                f"the database {str(self._path)!r} belongs to another program; give the review queue a path of its own"
            )
        return True

    def _create_tables(self) -> None:
        with self.writing() as connection:
            if self._is_new(connection):  # another process may have been faster
                metadata.create_all(connection, checkfirst=False)
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _write_ahead(self) -> None:
        """Switch the file to a write-ahead log, once and for all: the mode stands in its header."""
        # Where another connection writes, SQLite refuses this at once, whatever the busy timeout.
        patiently = Retrying(
            retry=retry_if_exception(_is_busy),
            wait=wait_random(0.005, 0.05),
            stop=stop_after_delay(BUSY_SECONDS),
            reraise=True,
        )
        with self._connected() as connection:
            mode = patiently(lambda: connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar_one())
        if mode != "wal":
            raise ReviewError(
                f"the review queue {str(self._path)!r} can't keep a write-ahead log (journal mode {mode!r}); put it "
                "on a local disk"
            )

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection without a transaction; what goes wrong on it becomes a `ReviewError`."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, ValueError, OverflowError) as error:
            # Python's own errors come from values that no column takes: NaN, half a surrogate pair, huge integers.
            cause = getattr(error, "orig", None) or error
            what = f"the review queue {str(self._path)!r} failed: {cause}"
            raise ReviewError("; ".join([what, *_advice_on(cause)])) from error


def _path_in(url: str) -> Path:
    """The file that the URL names. No message shows the URL: there may be a password in it."""
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise ReviewError(f"the URL of the review queue can't be read; {_EXAMPLE}") from None
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ReviewError(
            f"the review queue can't be kept in {parsed.drivername!r}: this version knows SQLite only; {_EXAMPLE}"
        )
    if parsed.host or parsed.port or parsed.username or parsed.password or parsed.query:
        raise ReviewError(
            "the URL of the review queue has a host, a user, a password or options, and a file has none of them; "
            f"{_EXAMPLE} (three slashes and a relative path, or four and an absolute one)"
        )
    if parsed.database in (None, "", ":memory:"):
        raise ReviewError(f"the review queue can't be kept in memory: tickets outlive the process; {_EXAMPLE}")
    # Absolute, so that messages name the one file that is meant.
    return Path(str(parsed.database)).absolute()


def _engine_for(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        # Transactions begin where `writing` says so, and not where Python's sqlite3 guesses.
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None},
        # Prompts and answers are parameters: they belong in no error message and no log.
        hide_parameters=True,
        json_serializer=partial(json.dumps, allow_nan=False),
    )

    @event.listens_for(engine, "connect")
    def _sync_every_commit(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA synchronous = FULL")

    return engine


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, OperationalError) and _sqlite_code(error.orig) == sqlite3.SQLITE_BUSY


def _sqlite_code(error: BaseException | None) -> int | None:
    """SQLite's primary result code, without the detail in its upper bits."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _advice_on(error: BaseException) -> list[str]:
    return [advice for code, advice in _ADVICE.items() if code == _sqlite_code(error)]
