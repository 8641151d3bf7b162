"""Reload policy files while a guard runs: changed files become active once they are complete and valid."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ilis_guard import events
from ilis_guard.errors import IlisGuardError, error_text
from ilis_guard.policy.binding import ActivePolicies

CHECK_SECONDS: Final = 0.25
"""Least time between two checks of the files: requests in between cost nothing."""
SETTLE_SECONDS: Final = 0.25
"""A file that changed less long ago may be incomplete."""

_Stamp = tuple[int, int, int, int]
"""A file's inode, size, mtime and ctime (nanoseconds): it has changed when they differ."""


class PolicyReloader:
    """Keeps the policies of some files up to date. Threads may share it.

    It has no thread of its own: a caller checks the files if none has lately. One thread checks them; the others get
    the policies that are active meanwhile.

    Args:
        files: the policy's, and that of the shadow policy.
        load: reads and binds them, or raises. The constructor calls it and raises its errors; later errors leave the
            active policies as they are.
        clock: seconds, monotonic.
    """

    def __init__(
        self, files: Sequence[Path], load: Callable[[], ActivePolicies], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = tuple(files)
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        # Taken before the files are read, so that later changes are noticed.
        self._taken = self._seen = self._stamps()
        self._seen_at = self._checked_at = clock()
        self._current = load()
        self._problem = ""

    @property
    def current(self) -> ActivePolicies:
        """The active policies for a request that begins now."""
        self._check_if_due()
        return self._current

    @property
    def problem(self) -> str:
        """Why the files' present contents aren't active; empty where they are."""
        self._check_if_due()
        return self._problem

    def _check_if_due(self) -> None:
        if self._clock() - self._checked_at < CHECK_SECONDS or not self._lock.acquire(blocking=False):
            return
        try:
            self._checked_at = self._clock()
            self._check()
        finally:
            self._lock.release()

    def _check(self) -> None:
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen, self._seen_at = stamps, self._checked_at
        if stamps == self._taken or not self._has_settled(stamps):
            return
        try:
            loaded = self._load()
        except Exception as error:  # noqa: BLE001 - after any error the active policies stay
            self._reject(stamps, error)
            return
        if self._stamps() != stamps:
            return  # it changed again while it was read: the next check reads it
        before, self._current = self._current, loaded
        self._taken, self._problem = stamps, ""
        if loaded.fingerprints != before.fingerprints:
            policy, shadow = loaded.fingerprints
            mode = loaded.enforced.policy.mode
            events.log().warning(events.POLICY_RELOADED, files=self._names(), policy=policy, mode=mode, shadow=shadow)

    def _reject(self, stamps: tuple[_Stamp | None, ...], error: Exception) -> None:
        if self._stamps() != stamps:
            return
        self._taken = stamps
        ours = isinstance(error, IlisGuardError)
        self._problem = str(error) if ours else f"unexpected {type(error).__name__}: {error_text(error)}"
        policy, shadow = self._current.fingerprints
        events.log().error(
            events.POLICY_RELOAD_FAILED, files=self._names(), policy=policy, shadow=shadow, problems=self._problem
        )

    def _has_settled(self, stamps: tuple[_Stamp | None, ...]) -> bool:
        """Whether the files are complete: unchanged for a while, by our clock or by their times.

        A missing file isn't: some editors delete it before they write a new one.
        """
        if self._checked_at - self._seen_at >= SETTLE_SECONDS:
            return True
        now = time.time_ns()
        return all(stamp is not None and now - max(stamp[2:]) >= SETTLE_SECONDS * 1e9 for stamp in stamps)

    def _stamps(self) -> tuple[_Stamp | None, ...]:
        return tuple(_stamp(file) for file in self._files)

    def _names(self) -> list[str]:
        return [str(file) for file in self._files]


def _stamp(file: Path) -> _Stamp | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - a third of the time of Path.stat
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
