"""SQLite: one file, several threads and processes, opened so that what was committed survives a crash.

There is no connection pool. A connection lives for one operation, so threads share nothing, and a forked child
inherits no open database, which SQLite forbids.
"""

import json
import os
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import OperationalError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from ilis_guard.errors import ReviewError
from ilis_guard.review.database import EXAMPLE, Database

BUSY_SECONDS: Final = 30.0
"""How long a connection waits while another one writes."""

APPLICATION_ID: Final = 0x696C6973
"""``ilis`` in ASCII, in the file's header: tells a review queue from other programs' databases."""

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: f"another process kept it locked for {BUSY_SECONDS:g} s; find it, then try again",
    sqlite3.SQLITE_CANTOPEN: "check that the path is a file in a folder that this process may write to",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a backup",
    sqlite3.SQLITE_FULL: "free some disk space, then try again",
    sqlite3.SQLITE_IOERR: "check the disk: its space, its quota, its health",
    sqlite3.SQLITE_NOTADB: "this file is something else; give the queue a path of its own",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable for this process",
}


class SQLite(Database):
    """A queue in a file. Creates the file and its folder where they are missing.

    Raises:
        ReviewError: the URL names no file, or its folder can't be created.
    """

    creates_tables = True
    insert = sqlite.insert

    def __init__(self, url: URL) -> None:
        path = _path_in(url)
        self.name = repr(str(path))
        self._make_folder(path.parent)
        self.engine = _engine_for(path)

    def revision(self, connection: Connection) -> str | None:
        """Return the revision of the tables; None in a file without our mark."""
        return super().revision(connection) if _pragma(connection, "application_id") == APPLICATION_ID else None

    def _begin_read(self, connection: Connection) -> None:
        # Deferred: the first read takes the snapshot.
        connection.exec_driver_sql("BEGIN")

    def _begin_write(self, connection: Connection) -> bool:
        # Writers queue here. A transaction that began with a read would fail, not wait, when it came to write.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return True

    def _is_empty(self, connection: Connection) -> bool:
        # A number in the header is another program's mark.
        marks = [_pragma(connection, name) for name in ("application_id", "user_version")]
        return marks == [0, 0] and not connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()

    def _lock_migrations(self, connection: Connection) -> None:
        """Do nothing: a writing transaction already locks the file."""

    def _mark(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")

    def _configure(self) -> None:
        """Switch the file to a write-ahead log; the header keeps the mode."""
        # SQLite refuses this at once while another connection writes, whatever the busy timeout.
        retrying = Retrying(
            retry=retry_if_exception(_is_busy),
            wait=wait_random(0.005, 0.05),
            stop=stop_after_delay(BUSY_SECONDS),
            reraise=True,
        )
        with self.engine.connect() as connection:
            mode = retrying(lambda: connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar_one())
        if mode != "wal":
            raise ReviewError(
                f"the review queue {self.name} can't keep a write-ahead log (journal mode {mode!r}); put it on a "
                "local disk"
            )

    def _erase(self) -> None:
        """Empty the write-ahead log, which holds old pages. Waits for readers; a remaining one may keep the log."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def _may_pass(self, error: BaseException) -> bool:
        del error
        return False  # what may pass has been waited for

    def _describe(self, error: BaseException) -> str:
        # SQLite's messages quote no values.
        advice = [advice for code, advice in _ADVICE.items() if code == _code(error)]
        if str(error).startswith("no such table"):
            advice.append("the file was deleted or replaced while it was in use; restore it, then restart")
        return "; ".join([str(error), *advice])

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise ReviewError(
                f"the folder of the review queue {self.name} can't be made: {error}; give a path in a folder that "
                "this process may write to"
            ) from error


def _path_in(url: URL) -> Path:
    if url.host or url.port or url.username or url.password or url.query:
        raise ReviewError(
            "the URL of the review queue has a host, a user, a password or options, and a file has none of them; "
            f"{EXAMPLE} (three slashes and a relative path, or four and an absolute one)"
        )
    if url.database in (None, "", ":memory:"):
        raise ReviewError(f"the review queue can't be kept in memory: tickets outlive the process; {EXAMPLE}")
    # Absolute, so that messages name exactly one file.
    return Path(str(url.database)).absolute()


def _engine_for(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        creator=partial(_connect, path),
        poolclass=NullPool,
        # Prompts and answers are parameters: they belong in no error message and no log.
        hide_parameters=True,
        json_serializer=partial(json.dumps, allow_nan=False),
    )

    @event.listens_for(engine, "connect")
    def _configure_connection(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # Overwrites deleted content with zeros.
        connection.execute("PRAGMA secure_delete = ON")

    return engine


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file; make it anew where it isn't there, also where somebody deleted it since."""
    # Nobody else may read prompts and answers, whatever the umask. SQLite's other files take over the mode of this one.
    # Where it can't be created, SQLite says why.
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    # Transactions begin where `_begin_write` says so, and not where Python's sqlite3 guesses.
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, OperationalError) and _code(error.orig) == sqlite3.SQLITE_BUSY


def _code(error: BaseException | None) -> int | None:
    """Return SQLite's primary result code, without the detail in its upper bits."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
