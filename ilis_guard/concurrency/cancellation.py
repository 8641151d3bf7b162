"""Cancellation that a client requests from one thread and work in other threads checks, until it is committed."""

import threading
from collections.abc import Callable

from ilis_guard.errors import ClientDisconnected


class CancelToken:
    """Tells work that its client has disconnected. Threads may share it.

    A cancelled token stays cancelled, and a committed one can't be cancelled: of `cancel` and `commit`, the first wins.
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._is_committed = False
        self._conditions: set[threading.Condition] = set()
        self._lock = threading.Lock()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Cancel, and wake every thread in `wait_for`; without effect once it is committed."""
        with self._lock:
            if self._is_committed:
                return
            self._cancelled.set()
            conditions = tuple(self._conditions)
        for condition in conditions:
            with condition:
                condition.notify_all()

    def commit(self) -> None:
        """Pass the point of no return.

        Raises:
            ClientDisconnected: it was cancelled before.
        """
        with self._lock:
            self.raise_if_cancelled()
            self._is_committed = True

    def raise_if_cancelled(self) -> None:
        """Check the token.

        Raises:
            ClientDisconnected: it was cancelled.
        """
        if self.is_cancelled:
            raise ClientDisconnected("the client has disconnected")

    def sleep(self, seconds: float) -> None:
        """Sleep, at most until the token is cancelled.

        Raises:
            ClientDisconnected: it was cancelled.
        """
        self._cancelled.wait(seconds)
        self.raise_if_cancelled()

    def wait_for(
        self, condition: threading.Condition, is_met: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait on a condition that the caller has acquired, as `threading.Condition.wait_for`.

        A token waits on a condition in one thread at a time.

        Raises:
            ClientDisconnected: the token was cancelled, even if the condition is met.
        """
        with self._lock:
            self._conditions.add(condition)
        try:
            met = condition.wait_for(lambda: self.is_cancelled or is_met(), timeout)
        finally:
            with self._lock:
                self._conditions.discard(condition)
        self.raise_if_cancelled()
        return met
