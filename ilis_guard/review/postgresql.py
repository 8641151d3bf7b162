"""PostgreSQL, for queues that have outgrown one machine: a database, or a schema in one, of the queue's own."""

import json
import os
import weakref
from functools import partial
from typing import Final

from sqlalchemy import URL, Connection, Engine, create_engine, inspect
from sqlalchemy.dialects import postgresql

from ilis_guard.errors import MissingDependencyError
from ilis_guard.review.database import Database

WAIT_SECONDS: Final = 30
"""How long a statement waits for another transaction's lock."""
CONNECT_SECONDS: Final = 10

_MIGRATION_LOCK: Final = 0x696C6973
"""Key of the advisory lock that keeps two migrations apart."""

# Makes commits durable whatever the server's default; keeps a stronger setting, which waits for replicas too.
_DURABLE: Final = f"""
    SELECT set_config('lock_timeout', '{WAIT_SECONDS}s', true),
           set_config('synchronous_commit',
                      CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                           ELSE current_setting('synchronous_commit') END, true)
"""

_NO_ANSWER: Final = "08000"
"""The SQLSTATE we give to libpq's errors without one: it got no connection, or lost it."""

# By the first characters of SQLSTATE.
_ADVICE: Final = {
    "08": "check host, database, user and password (PGPASSWORD or PGPASSFILE), and that the server runs",
    "57": "the server was stopped; try again when it runs",
    "55P03": f"another transaction kept its lock for {WAIT_SECONDS} s; find it, then try again",
    "53100": "free some disk space on the server, then try again",
    "53300": "the server has no connection left; raise max_connections, or run fewer processes",
    "42501": "give the user the right to read and write the queue's tables",
}

_engines: Final[weakref.WeakSet[Engine]] = weakref.WeakSet()


def _drop_inherited_connections() -> None:
    """Forget the parent's connections in a forked child: two processes on one socket would garble the protocol."""
    for engine in _engines:
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_drop_inherited_connections)


class PostgreSQL(Database):
    """A queue on a server.

    Raises:
        MissingDependencyError: the driver isn't installed.
    """

    creates_tables = False
    insert = postgresql.insert

    def __init__(self, url: URL) -> None:
        try:
            import psycopg  # noqa: F401 - imported here, so that the message can say what installs it
        except ImportError:
            raise MissingDependencyError(
                "a review queue in PostgreSQL needs 'psycopg': pip install 'ilis-guard[postgresql]'"
            ) from None
        self.name = f"{url.database!r} on {url.host or 'this machine'}"
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": CONNECT_SECONDS},
            # Replaces a connection that died with its server before using it.
            pool_pre_ping=True,
            hide_parameters=True,
            json_serializer=partial(json.dumps, allow_nan=False),
        )
        _engines.add(self.engine)

    def _begin_read(self, connection: Connection) -> None:
        # The first read takes the snapshot.
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def _begin_write(self, connection: Connection) -> None:
        connection.exec_driver_sql(_DURABLE)

    def _is_empty(self, connection: Connection) -> bool:
        # In the first schema of the search path.
        return not inspect(connection).get_table_names()

    def _lock_migrations(self, connection: Connection) -> None:
        # Transactional DDL alone would let two migrations see the same empty database.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")

    def _mark(self, connection: Connection) -> None:
        """Do nothing: the name of the revision table is mark enough."""

    def _configure(self) -> None:
        """Do nothing: all settings belong to transactions."""

    def _erase(self) -> None:
        """Do nothing: the server's own vacuum frees old rows."""

    def _describe(self, error: BaseException) -> str:
        from psycopg import Error, OperationalError

        if not isinstance(error, Error):
            return str(error)
        state = error.sqlstate or (_NO_ANSWER if isinstance(error, OperationalError) else "")
        # The first line only: the second, the detail, quotes the row.
        message = error.diag.message_primary or str(error).partition("\n")[0]
        return "; ".join([message, *(advice for start, advice in _ADVICE.items() if state.startswith(start))])
