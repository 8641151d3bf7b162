"""Whether whoever asked is still there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ilis_guard.errors import ClientDisconnected


class CancelToken:
    """Somebody's, who waits for what is worked on until they leave. Threads may share it."""

    def __init__(self) -> None:
        self._gone = threading.Event()
        self._waking: set[threading.Condition] = set()
        self._lock = threading.Lock()

    @property
    def is_cancelled(self) -> bool:
        """Whether they have."""
        return self._gone.is_set()

    def cancel(self) -> None:
        """Cancel, for good."""
        with self._lock:
            self._gone.set()
            waiting = tuple(self._waking)
        for condition in waiting:
            with condition:
                condition.notify_all()

    def check(self) -> None:
        """See that they are still there.

        Raises:
            ClientDisconnected: they aren't.
        """
        if self.is_cancelled:
            raise ClientDisconnected("whoever asked has left")

    def sleep(self, seconds: float) -> None:
        """Let time pass, as long as they are there.

        Raises:
            ClientDisconnected: they have left.
        """
        self._gone.wait(seconds)
        self.check()

    @contextmanager
    def waking(self, condition: threading.Condition) -> Iterator[None]:
        """Wake whoever waits for a condition when they leave; each condition is given once at a time."""
        with self._lock:
            self._waking.add(condition)
        try:
            yield
        finally:
            with self._lock:
                self._waking.discard(condition)
