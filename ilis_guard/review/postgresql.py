"""PostgreSQL, for queues that have outgrown one machine: a database, or a schema in one, of the queue's own."""

import json
import os
import weakref
from functools import partial
from typing import Final

from sqlalchemy import URL, Connection, Engine, create_engine, inspect

from ilis_guard.errors import MissingDependencyError
from ilis_guard.review.database import recorded_revision

WAIT_SECONDS: Final = 30
"""How long a statement waits for another transaction's lock."""
CONNECT_SECONDS: Final = 10

_ONE_MIGRATION: Final = 0x696C6973
"""Key of the advisory lock that keeps two migrations apart."""

# Durable whatever the server's default; a stronger setting, which waits for replicas too, stays.
_PROMISE: Final = f"""
    SELECT set_config('lock_timeout', '{WAIT_SECONDS}s', true),
           set_config('synchronous_commit',
                      CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                           ELSE current_setting('synchronous_commit') END, true)
"""

_NO_ANSWER: Final = "08000"
"""SQLSTATE of what libpq says without one: it got no connection, or lost it."""

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


def _leave_connections_to_the_parent() -> None:
    """A forked child that used its parent's sockets would garble both their conversations."""
    for engine in _engines:
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_connections_to_the_parent)


class PostgreSQL:
    """A queue on a server.

    Raises:
        MissingDependencyError: the driver isn't installed.
    """

    is_made_at_once = False

    def __init__(self, url: URL) -> None:
        try:
            import psycopg  # noqa: F401 - asked for here, so that the message can say what brings it
        except ImportError:
            raise MissingDependencyError(
                "a review queue in PostgreSQL needs 'psycopg': pip install 'ilis-guard[postgresql]'"
            ) from None
        self.name = f"{url.database!r} on {url.host or 'this machine'}"
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": CONNECT_SECONDS},
            # A connection that died with its server is replaced before it is used.
            pool_pre_ping=True,
            hide_parameters=True,
            json_serializer=partial(json.dumps, allow_nan=False),
        )
        _engines.add(self.engine)

    def begin_reading(self, connection: Connection) -> None:
        """The first read fixes the moment."""
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def begin_writing(self, connection: Connection) -> None:
        """Rows are locked by those who are about to change them (``FOR UPDATE``)."""
        connection.exec_driver_sql(_PROMISE)

    def begin_migrating(self, connection: Connection) -> None:
        """PostgreSQL's DDL would let two see the same empty database."""
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ONE_MIGRATION})")

    def is_empty(self, connection: Connection) -> bool:
        """Whether the schema that the connection looks into first has no table."""
        return not inspect(connection).get_table_names()

    def revision(self, connection: Connection) -> str | None:
        """What stands in the table of the revision."""
        return recorded_revision(connection)

    def sign(self, connection: Connection) -> None:
        """Nothing: the table of the revision has a name of ours."""

    def finish(self) -> None:
        """Nothing: there is no setting outside a transaction."""

    def forget(self) -> None:
        """Nothing: the server's own vacuum frees the old rows."""

    def described(self, error: BaseException) -> str:
        """PostgreSQL's first line: the second, its detail, quotes the row."""
        from psycopg import Error, OperationalError

        if not isinstance(error, Error):
            return str(error)
        state = error.sqlstate or (_NO_ANSWER if isinstance(error, OperationalError) else "")
        what = error.diag.message_primary or str(error).partition("\n")[0]
        return "; ".join([what, *(advice for start, advice in _ADVICE.items() if state.startswith(start))])
