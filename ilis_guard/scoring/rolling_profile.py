"""Rolling profiles: the last answers of a tier's own traffic, by which its next ones are ranked.

One SQLite file a tier, in write-ahead mode: what was committed survives a killed process, and processes may share it.
It is read as untrusted input. A profile that follows its traffic can be led by it: see docs/cold-start.md.
"""

import math
import os
import sqlite3
import stat
import threading
import uuid
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from scipy.stats import ks_2samp

from ilis_guard.errors import ProfileError
from ilis_guard.scoring.profile import LEAST_ANSWERS

LEAST: Final = 50
"""Answers that a profile may be told to keep, at least."""
MOST: Final = 100_000
"""And at most."""
MAX_BYTES: Final = 16 * 2**20
"""Larger files aren't opened."""
DRIFT_LEVEL: Final = 0.001
"""Of the test for drift, which looks once in a quarter of the answers that are kept."""

_APPLICATION: Final = 0x494C4953
"""Marks a SQLite file as a profile ("ILIS")."""
_VERSION: Final = 1
_SCHEMA: Final = (
    "CREATE TABLE answers (id INTEGER PRIMARY KEY, value REAL NOT NULL)",
    "CREATE TABLE profile (source TEXT NOT NULL, checked INTEGER NOT NULL, drifting INTEGER NOT NULL)",
)
_BUSY_SECONDS: Final = 1.0
"""How long a write waits for another process's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileDrift:
    """The newest answers don't resemble those before them."""

    answers: int
    """The newest ones."""
    earlier: int
    """Those that they were compared with."""
    distance: float
    """The largest difference between the two distributions, 0 to 1 (Kolmogorov and Smirnov's statistic)."""
    p_value: float
    """How probable one so large is without a drift."""
    median: float
    """Of the newest values."""
    earlier_median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What became of an answer that was added."""

    drift: ProfileDrift | None = None
    """Where the traffic has begun to drift; told once a drift."""
    problem: str = ""
    """Why the answer isn't on disk; empty where it is. The process knows it all the same."""


class RollingProfile:
    """The last values of a tier's answers, higher for more uncertain: its uncertainties, or its perplexities.

    Threads and processes may share the file. The answers belong to what scored them (`source`): those of another bundle
    or model are never compared.

    Args:
        path: the file; it is made if there is none.
        answers: how many are kept, 50 to 100,000.

    Raises:
        ProfileError: the number is out of range; or the file can't be made or used, is damaged, or is no profile.
    """

    def __init__(self, path: Path | str, *, answers: int = 500) -> None:
        if isinstance(answers, bool) or not LEAST <= answers <= MOST:
            raise ProfileError(f"a rolling profile keeps {LEAST} to {MOST} answers, got {answers!r}")
        self._path = Path(path)
        self._answers = answers
        self._lock = threading.Lock()
        self._newest = deque[float]()
        self._ascending: list[float] = []
        self._last_id = 0
        self._source = ""
        with self._errors():
            if not os.path.lexists(self._path):
                self._check_nothing_is_left()
                self._create()
            size = self._check_file()
            self._connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._check_content(size)
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._read()

    @property
    def answers(self) -> int:
        """How many answers are known, up to the number that are kept."""
        return len(self._newest)

    def check_fits(self, source: str) -> None:
        """Refuse what didn't score these answers; an empty profile fits anything.

        Raises:
            ProfileError: another bundle or model did.
        """
        if self._source not in ("", source):
            raise ProfileError(
                f"the answers of the rolling profile {str(self._path)!r} were scored by {self._source!r:.300}, and "
                f"this is {source!r:.300}: name another file, or delete this one to begin anew"
            )

    def rank(self, value: float, source: str) -> float:
        """The share of the known answers that are at least as sure as one of this value; NaN while too few are known.

        Where many answers have one value, none of them is among the surest: of a thousand equal ones, each has rank 1.

        Raises:
            ProfileError: as `check_fits`.
        """
        with self._lock:
            self.check_fits(source)
            known = len(self._ascending)
            return math.nan if known < LEAST_ANSWERS else bisect_right(self._ascending, value) / known

    def add(self, value: float, source: str) -> Addition:
        """Take in the newest answer's value, in well under a millisecond.

        A disk that fails is no reason not to decide: then only this process knows the answer.

        Raises:
            ProfileError: the value isn't finite; or as `check_fits`.
        """
        if not math.isfinite(value):
            raise ProfileError(f"a rolling profile takes finite values, got {value!r}")
        with self._lock:
            self.check_fits(source)
            try:
                drift = self._store(value, source)
            except sqlite3.Error as error:
                self._source = source
                self._take([value])
                return Addition(problem=f"{type(error).__name__}: {error}")
            return Addition(drift=drift)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _store(self, value: float, source: str) -> ProfileDrift | None:
        """Write a value, and take in what other processes wrote meanwhile."""
        with self._transaction() as connection:
            stored, checked, is_drifting = connection.execute(
                "SELECT source, checked, drifting FROM profile"
            ).fetchone()
            if stored not in ("", source):  # another process was first
                self._source = stored
                self.check_fits(source)
            written = connection.execute("INSERT INTO answers (value) VALUES (?)", [value])
            last = int(written.lastrowid or 0)
            connection.execute("DELETE FROM answers WHERE id <= ?", [last - self._answers])
            rows = connection.execute("SELECT value FROM answers WHERE id > ? ORDER BY id", [self._last_id])
            more = [each for (each,) in rows.fetchall()]
            drift, known, recent = None, len(self._newest) + len(more), self._answers // 4
            if last - checked >= recent and known >= 2 * recent:
                drift = _drift([*self._newest, *more][-self._answers :], recent)
                state = [last, int(drift is not None)]
            else:
                state = [checked, is_drifting]
            connection.execute("UPDATE profile SET source = ?, checked = ?, drifting = ?", [source, *state])
        self._source, self._last_id = source, last
        self._take(more)
        return None if is_drifting else drift

    def _take(self, values: Sequence[float]) -> None:
        for value in values:
            self._newest.append(value)
            insort(self._ascending, value)
            if len(self._newest) > self._answers:
                del self._ascending[bisect_left(self._ascending, self._newest.popleft())]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, ValueError) as error:
            raise ProfileError(
                f"the rolling profile {str(self._path)!r} can't be used: {error}; name another file, or delete this "
                "one, and those beside it that begin with its name, to begin anew"
            ) from error

    def _check_nothing_is_left(self) -> None:
        """SQLite would write a deleted profile's log into the next one."""
        log = self._path.with_name(f"{self._path.name}-wal")
        if log.exists() and not self._path.exists():  # nobody has made one meanwhile
            raise ValueError(f"it is gone, and {str(log)!r} is left of it")

    def _create(self) -> None:
        """Make an empty profile, which appears when it is complete: an empty file is a damaged one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        try:
            with closing(sqlite3.connect(unfinished, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute("INSERT INTO profile VALUES ('', 0, 0)")
            with suppress(FileExistsError):  # another process was first
                os.link(unfinished, self._path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _check_file(self) -> int:
        status = self._path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no plain file")
        if not 0 < status.st_size <= MAX_BYTES:
            raise ValueError(f"it has {status.st_size} bytes; a profile has 1 to {MAX_BYTES}")
        return status.st_size

    def _check_content(self, size: int) -> None:
        """Check that it is a whole profile and nothing else: a stranger's database may run its own triggers."""
        connection = self._connection
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if marks != [_APPLICATION, _VERSION]:
            raise ValueError("it is a database of something else, or of another release")
        schema = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
        if tuple(sql for (sql,) in schema) != _SCHEMA:
            raise ValueError("its tables aren't those of a profile")
        if size % connection.execute("PRAGMA page_size").fetchone()[0]:
            raise ValueError("it is damaged: it ends in the middle of a page")
        if (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise ValueError(f"it is damaged: {' '.join(found.split())}")

    def _read(self) -> None:
        profile = self._connection.execute("SELECT source, checked, drifting FROM profile").fetchall()
        if len(profile) != 1 or [type(value) for value in profile[0]] != [str, int, int]:
            raise ValueError("it doesn't say whose answers it holds")
        rows = self._connection.execute("SELECT id, value FROM answers ORDER BY id DESC LIMIT ?", [self._answers])
        known = rows.fetchall()[::-1]
        if not all(isinstance(value, float) and math.isfinite(value) for _, value in known):
            raise ValueError("it holds a value that isn't a finite number")
        if known and not profile[0][0]:
            raise ValueError("it doesn't say whose answers it holds")
        self._source = profile[0][0]
        self._last_id = known[-1][0] if known else 0
        self._take([value for _, value in known])


def _drift(values: Sequence[float], recent: int) -> ProfileDrift | None:
    """How the newest of these values differ from the others; None where they may well be alike."""
    earlier, newest = np.array(values[:-recent]), np.array(values[-recent:])
    found = ks_2samp(earlier, newest)
    if found.pvalue >= DRIFT_LEVEL:
        return None
    return ProfileDrift(
        answers=len(newest),
        earlier=len(earlier),
        distance=float(found.statistic),
        p_value=float(found.pvalue),
        median=float(np.median(newest)),
        earlier_median=float(np.median(earlier)),
    )
