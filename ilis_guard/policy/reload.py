"""Reloading: policy files are watched while a guard runs; a change is in force once the files are whole and right."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ilis_guard import events
from ilis_guard.errors import IlisGuardError
from ilis_guard.policy.binding import ActivePolicies

CHECK_SECONDS: Final = 0.25
"""The files are checked at most this often: a request in between costs nothing."""
STILL_SECONDS: Final = 0.25
"""A file that changed less than this ago may be half written."""

_Mark = tuple[int, int, int, int]
"""A file's inode, size, modification time and change time, nanoseconds: different where the file has changed."""


class PolicyReloader:
    """Keeps the policies of files that may change. Threads may share it.

    There is no background thread: `current` checks the files, if they weren't checked lately. One thread does, and the
    others get what was in force before.

    Args:
        files: the policy's, and that of the one in shadow.
        load: reads and binds them, or raises. What it raises in the constructor is raised there; later, what was in
            force before stays.
        clock: seconds, monotonic.
    """

    def __init__(
        self, files: Sequence[Path], load: Callable[[], ActivePolicies], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = tuple(files)
        self._load = load
        self._clock = clock
        self._checking = threading.Lock()
        # Before they are read: what changes while they are is seen afterwards.
        self._loaded_marks = self._seen = self._marks()
        self._seen_at = self._checked_at = clock()
        self._current = load()
        self._problem = ""

    @property
    def current(self) -> ActivePolicies:
        """What is in force for a request that begins now."""
        self._check_if_due()
        return self._current

    @property
    def problem(self) -> str:
        """Why the files as they now stand aren't in force; empty where they are."""
        self._check_if_due()
        return self._problem

    def _check_if_due(self) -> None:
        if self._clock() - self._checked_at < CHECK_SECONDS or not self._checking.acquire(blocking=False):
            return
        try:
            self._checked_at = self._clock()
            self._check()
        finally:
            self._checking.release()

    def _check(self) -> None:
        marks = self._marks()
        if marks != self._seen:
            self._seen, self._seen_at = marks, self._checked_at
        if marks == self._loaded_marks or not self._is_settled(marks):
            return
        try:
            loaded = self._load()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, what was in force stays
            self._keep_current(marks, error)
            return
        if self._marks() != marks:
            return  # it changed again while it was read: the next check takes it
        before, self._current = self._current, loaded
        self._loaded_marks, self._problem = marks, ""
        if loaded.fingerprints != before.fingerprints:
            policy, shadow = loaded.fingerprints
            mode = loaded.enforced.policy.mode
            events.log().warning(events.POLICY_RELOADED, files=self._names(), policy=policy, mode=mode, shadow=shadow)

    def _keep_current(self, marks: tuple[_Mark | None, ...], error: Exception) -> None:
        if self._marks() != marks:
            return
        self._loaded_marks = marks
        ours = isinstance(error, IlisGuardError)
        self._problem = str(error) if ours else f"unexpected {type(error).__name__}: {error}"
        policy, shadow = self._current.fingerprints
        events.log().error(
            events.POLICY_RELOAD_FAILED, files=self._names(), policy=policy, shadow=shadow, problems=self._problem
        )

    def _is_settled(self, marks: tuple[_Mark | None, ...]) -> bool:
        """Whether nobody is writing any more: it was seen so for a while, or says itself that it hasn't changed since.

        A file that is gone says nothing; some editors put a new one in its place.
        """
        if self._checked_at - self._seen_at >= STILL_SECONDS:
            return True
        now = time.time_ns()
        return all(mark is not None and now - max(mark[2:]) >= STILL_SECONDS * 1e9 for mark in marks)

    def _marks(self) -> tuple[_Mark | None, ...]:
        return tuple(_mark(file) for file in self._files)

    def _names(self) -> list[str]:
        return [str(file) for file in self._files]


def _mark(file: Path) -> _Mark | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - a third of the time of Path.stat
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
