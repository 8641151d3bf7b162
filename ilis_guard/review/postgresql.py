"""PostgreSQL, for queues that have outgrown one machine: a database, or a schema in one, of the queue's own."""

import json
import os
import weakref
from functools import partial
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import ExceptionContext

from ilis_guard.errors import MissingDependencyError
from ilis_guard.review.database import Database, ReadOnlyError

WAIT_SECONDS: Final = 30
"""How long a statement waits for another transaction's lock."""
CONNECT_SECONDS: Final = 10
SILENT_SECONDS: Final = 30
"""How long a server may acknowledge nothing, as where its machine is gone, until the connection is given up."""

_PARAMETERS: Final = {
    "connect_timeout": CONNECT_SECONDS,
    # Of several hosts in the URL, the one that takes writes.
    "target_session_attrs": "read-write",
    "tcp_user_timeout": SILENT_SECONDS * 1000,
    "keepalives_idle": SILENT_SECONDS,
}
"""Of libpq, where the URL doesn't have them."""

_MIGRATION_LOCK: Final = 0x696C6973
"""Key of the advisory lock that keeps two migrations apart."""

# Makes commits durable whatever the server's default; keeps a stronger setting, which waits for replicas too. All of it
# belongs to the transaction: behind a pooler, the next one may run in another session. Whether it is read-only is asked
# at the same time: a server may have become a standby since it was connected to.
_DURABLE: Final = f"""
    SELECT set_config('lock_timeout', '{WAIT_SECONDS}s', true),
           set_config('synchronous_commit',
                      CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                           ELSE current_setting('synchronous_commit') END, true),
           current_setting('transaction_read_only') AS is_read_only
"""

_NO_ANSWER: Final = "08000"
"""The SQLSTATE we give to libpq's errors without one: it got no connection, or lost it."""
_READ_ONLY: Final = "25006"
_LOST: Final = ("08", "57P", _READ_ONLY)
"""Beginnings of SQLSTATEs after which no connection of the pool is of use: lost, stopped, or read-only."""
_MAY_PASS: Final = (*_LOST, "40", "53300")
"""The same and those of transactions that lost against another one, or that found no free connection."""

# By the first characters of SQLSTATE.
_ADVICE: Final = {
    "08": "check host, database, user and password (PGPASSWORD or PGPASSFILE), and that the server runs",
    _READ_ONLY: "the server is a standby, or set to be; in the URL, name the hosts of all servers, or mend the server",
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
        self.name = f"{url.database!r} on {', '.join(_hosts_of(url)) or 'this machine'}"
        parameters = {name: value for name, value in _PARAMETERS.items() if name not in url.query}
        self.engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            # A pooler that hands out sessions by the transaction loses prepared statements.
            connect_args={"prepare_threshold": None, **parameters},
            # Replaces a connection that died with its server before using it.
            pool_pre_ping=True,
            hide_parameters=True,
            json_serializer=partial(json.dumps, allow_nan=False),
        )
        event.listen(self.engine, "handle_error", _drop_lost_connections)
        event.listen(self.engine, "checkout", _forget_access_mode)
        _engines.add(self.engine)

    def _begin_read(self, connection: Connection) -> None:
        # The first read takes the snapshot.
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def _begin_write(self, connection: Connection) -> bool:
        return bool(connection.exec_driver_sql(_DURABLE).one().is_read_only == "off")

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

    def _may_pass(self, error: BaseException) -> bool:
        return _state_of(error).startswith(_MAY_PASS)

    def _describe(self, error: BaseException) -> str:
        from psycopg import Error

        # The first line only: the second, the detail, quotes the row.
        message = error.diag.message_primary if isinstance(error, Error) else None
        message = message or str(error).partition("\n")[0]
        state = _state_of(error)
        return "; ".join([message, *(advice for start, advice in _ADVICE.items() if state.startswith(start))])


def _state_of(error: BaseException) -> str:
    """The SQLSTATE of an error; empty where it is none of the server's or of the connection's."""
    from psycopg import Error, OperationalError

    if isinstance(error, ReadOnlyError):
        return _READ_ONLY
    if not isinstance(error, Error):
        return ""
    return error.sqlstate or (_NO_ANSWER if isinstance(error, OperationalError) else "")


def _drop_lost_connections(context: ExceptionContext) -> None:
    """Let the pool forget all connections that are older than an error which ends one of them."""
    if context.original_exception is not None and _state_of(context.original_exception).startswith(_LOST):
        context.is_disconnect = True


def _forget_access_mode(connection: Any, *_: object) -> None:
    """Leave it to the server whether a transaction may write.

    After a read, SQLAlchemy resets a connection to READ WRITE, which overrides a server that is set to be read-only.
    """
    connection.read_only = None


def _hosts_of(url: URL) -> list[str]:
    """The hosts in a URL, of which libpq takes the first that has the session that is asked for."""
    several = url.query.get("host", ())
    return [url.host] if url.host else [several] if isinstance(several, str) else list(several)
