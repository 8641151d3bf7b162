"""Policy files that are followed while a guard runs: what changed is in force once the files are whole and right."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ilis_guard import events
from ilis_guard.errors import IlisGuardError
from ilis_guard.policy.binding import ActivePolicies

LOOK_SECONDS: Final = 0.25
"""At most so often the files are looked at: a request in between costs nothing."""
STILL_SECONDS: Final = 0.25
"""A file that changed so short a time ago may be half written."""

_Mark = tuple[int, int, int, int]
"""By what a file's change is told: its inode, its size and when it was last changed, in two ways, nanoseconds."""


class Following:
    """What the policy files say, as they stand. Threads may share it.

    Nothing goes on in the background: whoever asks for it looks at the files, if nobody has lately. One thread looks,
    and all others have what there was meanwhile.

    Args:
        files: the policy's, and that of the one that looks on.
        load: reads and wires them, or raises. It is called in the constructor, and what it raises then is raised;
            later, what was in force before stays.
        clock: seconds, monotonic.
    """

    def __init__(
        self, files: Sequence[Path], load: Callable[[], ActivePolicies], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = tuple(files)
        self._load = load
        self._clock = clock
        self._looking = threading.Lock()
        # Before they are read: what changes while they are is seen afterwards.
        self._taken = self._seen = self._marks()
        self._seen_at = self._looked_at = clock()
        self._current = load()
        self._problem = ""

    @property
    def current(self) -> ActivePolicies:
        """What is in force for a request that begins now."""
        self._look_if_due()
        return self._current

    @property
    def problem(self) -> str:
        """Why the files as they now stand aren't in force; empty where they are."""
        self._look_if_due()
        return self._problem

    def _look_if_due(self) -> None:
        if self._clock() - self._looked_at < LOOK_SECONDS or not self._looking.acquire(blocking=False):
            return
        try:
            self._looked_at = self._clock()
            self._look()
        finally:
            self._looking.release()

    def _look(self) -> None:
        marks = self._marks()
        if marks != self._seen:
            self._seen, self._seen_at = marks, self._looked_at
        if marks == self._taken or not self._is_still(marks):
            return
        try:
            loaded = self._load()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, what was in force stays
            self._give_up(marks, error)
            return
        if self._marks() != marks:
            return  # it changed again while it was read: the next look takes it
        before, self._current = self._current, loaded
        self._taken, self._problem = marks, ""
        if loaded.fingerprints != before.fingerprints:
            policy, shadow = loaded.fingerprints
            mode = loaded.enforced.policy.mode
            events.log().warning(events.POLICY_RELOADED, files=self._names(), policy=policy, mode=mode, shadow=shadow)

    def _give_up(self, marks: tuple[_Mark | None, ...], error: Exception) -> None:
        if self._marks() != marks:
            return
        self._taken = marks
        ours = isinstance(error, IlisGuardError)
        self._problem = str(error) if ours else f"unexpected {type(error).__name__}: {error}"
        policy, shadow = self._current.fingerprints
        events.log().error(
            events.POLICY_RELOAD_FAILED, files=self._names(), policy=policy, shadow=shadow, problems=self._problem
        )

    def _is_still(self, marks: tuple[_Mark | None, ...]) -> bool:
        """Whether nobody is writing any more: it was seen so for a while, or says itself that it hasn't changed since.

        A file that is gone says nothing; some editors put a new one in its place.
        """
        if self._looked_at - self._seen_at >= STILL_SECONDS:
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
