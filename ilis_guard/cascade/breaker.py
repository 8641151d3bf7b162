"""A tier's circuit breaker.

Of our own: the libraries that there are hold a lock for as long as a call takes (pybreaker 1.4), hold none at all
(circuitbreaker 2.1, purgatory 3.0), and in the latter two let everybody through once the time is over.
"""

import threading
import time
from collections.abc import Callable

from ilis_guard import events
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import CircuitOpenError


class Permit:
    """That a call was let through."""

    __slots__ = ("has_ended", "spell")

    def __init__(self, spell: int) -> None:
        self.spell = spell
        """The closed or half-open spell it was let through in: what ends later says nothing of how the tier stands."""
        self.has_ended = False


class Breaker:
    """Lets calls through until too many in a row have failed; then none for a while, then one that shows how it stands.

    Threads may share it. Nothing is held while a call is under way.

    Args:
        tier: for messages and events.
        settings: when it opens, and for how long.
        clock: seconds, monotonic.
    """

    def __init__(self, tier: str, settings: BreakerSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tier = tier
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._spell = 0
        self._failures = 0
        self._opened_at: float | None = None
        """None while it is closed."""
        self._is_probing = False
        """Whether the one call is under way that may close it."""

    def check(self) -> None:
        """See whether a call would be let through now.

        Raises:
            CircuitOpenError: it wouldn't.
        """
        with self._lock:
            self._refuse()

    def admit(self) -> Permit:
        """Let a call through; `ended` is told how it ended.

        Raises:
            CircuitOpenError: the breaker is open.
        """
        with self._lock:
            self._refuse()
            if self._opened_at is not None:
                self._is_probing = True
                self._spell += 1
            return Permit(self._spell)

    def ended(self, permit: Permit, *, failed: bool | None) -> None:
        """Take note of a call's end; what is said of it after that counts for nothing.

        Args:
            permit: the call's.
            failed: whether the tier is to blame; None where nothing was learnt, as when the program is being stopped.
        """
        with self._lock:
            if permit.has_ended or permit.spell != self._spell:
                return
            permit.has_ended = True
            if failed is None:
                self._is_probing = False
            elif failed:
                self._failures += 1
                if self._is_probing or self._failures >= self._settings.failures:
                    self._open()
            else:
                self._close()

    def _refuse(self) -> None:
        if self._opened_at is None:
            return
        left = self._opened_at + self._settings.seconds - self._clock()
        if left > 0 or self._is_probing:
            until = f"for another {left:.1f} s" if left > 0 else "until the one that is under way has ended"
            calls = f"{self._failures} call{'' if self._failures == 1 else 's'}"
            raise CircuitOpenError(
                f"the tier {self._tier!r} is down: {calls} of its model in a row failed, and no other is made {until}"
            )

    def _open(self) -> None:
        self._opened_at = self._clock()
        self._is_probing = False
        self._spell += 1
        events.log().error(
            events.CIRCUIT_OPENED, tier=self._tier, failures=self._failures, seconds=self._settings.seconds
        )

    def _close(self) -> None:
        self._failures = 0
        if self._opened_at is not None:
            self._opened_at = None
            self._is_probing = False
            self._spell += 1
            events.log().info(events.CIRCUIT_CLOSED, tier=self._tier)
