"""A PostgreSQL server of the tests' own, from Debian's binaries, on a free port and in a temporary folder."""

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy as shallow_copy
from pathlib import Path
from typing import Final

import psycopg

from ilis_guard.review import migrate

DEBIAN: Final = Path("/usr/lib/postgresql")
START_SECONDS: Final = 60.0
# Commits aren't durable by default: what the queue promises, it must ask for itself. The machine doesn't crash with
# the server, so the disk needn't be waited for.
SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_writer_delay": "10s",
    "max_connections": "200",
    "shared_buffers": "64MB",
}


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, the newest version's; None where there is none."""
    on_path = shutil.which("initdb")
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None if on_path is None else Path(on_path).resolve().parent


def pgbouncer() -> str | None:
    """The program; None where there is none."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


class Server:
    """A running server; everybody on this machine may connect to it."""

    def __init__(self, folder: Path, programs: Path, settings: Mapping[str, str]) -> None:
        self._data = folder / "data"
        self._folder = folder
        self._programs = programs
        self._settings = settings
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self._run(
            "initdb", "-D", str(self._data), "-U", "ada", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C"
        )
        self.start()
        migrate(self.new_database("migrated"))

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        settings = [f"-c{name}={value}" for name, value in self._settings.items()]
        log = (self._folder / "log").open("ab")
        command = [
            str(self._programs / "postgres"),
            "-D",
            str(self._data),
            "-p",
            str(self.port),
            "-k",
            str(self._folder),
        ]
        self._process = subprocess.Popen([*_as_somebody_harmless(), *command, *settings], stdout=log, stderr=log)
        log.close()
        end = time.monotonic() + START_SECONDS
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL didn't start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.02)

    def _is_up(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    @contextmanager
    def standby(self) -> "Iterator[Server]":
        """A copy of this server, which follows it until it is promoted."""
        copied = shallow_copy(self)
        with _folder() as copied._folder:
            copied._data = copied._folder / "data"
            copied.port = _free_port()
            source = f"host=127.0.0.1 port={self.port} user=ada"
            copied._run("pg_basebackup", "-D", str(copied._data), "-d", source, "-R", "-c", "fast", "--no-sync")
            copied.start()
            try:
                yield copied
            finally:
                copied.stop(signal.SIGQUIT)

    def execute(self, statement: str) -> None:
        """Run a statement of the administrator's."""
        with self._connect() as connection:
            connection.execute(statement)

    def promote(self) -> None:
        """Make a standby the primary."""
        with self._connect() as connection:
            connection.execute("SELECT pg_promote(true, 60)")

    def demote(self) -> None:
        """Stop it, and start it as a standby of nobody, as a failed primary comes back."""
        self.stop()
        (self._data / "standby.signal").touch(mode=0o644)
        self.start()

    def has_replayed(self, primary: "Server") -> bool:
        """Whether a standby has everything that the primary has written."""
        with primary._connect() as connection:
            (written,) = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or ("",)
        with self._connect() as connection:
            (done,) = connection.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (written,)).fetchone() or (0,)
        return bool(done)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends all connections in order, SIGQUIT is what a crash is like."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(timeout=60)

    def new_queue(self) -> str:
        """The URL of a new queue, with its tables."""
        return self._new(f"queue{next(self._numbers)}", "TEMPLATE migrated")

    def new_database(self, name: str | None = None) -> str:
        """The URL of a new database with nothing in it."""
        return self._new(name or f"database{next(self._numbers)}", "")

    def _new(self, name: str, options: str) -> str:
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name} {options}")
        return f"postgresql://ada@127.0.0.1:{self.port}/{name}"

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(host="127.0.0.1", port=self.port, user="ada", dbname="postgres", autocommit=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*_as_somebody_harmless(), str(self._programs / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self._folder)
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stderr}")


@contextmanager
def server(programs: Path, settings: Mapping[str, str] = SETTINGS) -> Iterator[Server]:
    """A server that is gone, with its folder, when the block ends."""
    with _folder() as folder:
        running = Server(folder, programs, settings)
        try:
            yield running
        finally:
            # A shutdown in order would write out hundreds of databases that are about to be deleted.
            running.stop(signal.SIGQUIT)


@contextmanager
def pooler(program: str, server: Server) -> Iterator[int]:
    """A pgbouncer in front of a server, which hands out few sessions, each for one transaction; its port."""
    port = _free_port()
    with _folder() as folder:
        (folder / "users.txt").write_text('"ada" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port} user=ada\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {folder}/users.txt\npool_mode = transaction\ndefault_pool_size = 2\n"
        )
        process = subprocess.Popen(
            [*_as_somebody_harmless(), program, "-q", str(folder / "pgbouncer.ini")], stderr=subprocess.DEVNULL
        )
        try:
            end = time.monotonic() + START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("PgBouncer didn't start")
                time.sleep(0.02)
            yield port
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for a program that doesn't run as root."""
    folder = Path(tempfile.mkdtemp(prefix="ilis_guard-postgresql-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, _harmless().pw_uid, _harmless().pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder)


def _as_somebody_harmless() -> list[str]:
    """PostgreSQL refuses to run as root. Whoever runs it, it ends with the tests, also where they are killed."""
    parent = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() != 0:
        return parent
    somebody = _harmless()
    return [*parent, f"--reuid={somebody.pw_uid}", f"--regid={somebody.pw_gid}", "--clear-groups"]


def _harmless() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("there is neither a user 'postgres' nor 'nobody' to run PostgreSQL as")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
