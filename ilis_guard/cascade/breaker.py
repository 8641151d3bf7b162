"""Circuit breakers of tiers.

No library fits: pybreaker 1.4 holds a lock for as long as a call takes; circuitbreaker 2.1 and purgatory 3.0 hold none,
and let all calls through once the circuit is half-open.
"""

import threading
import time
from collections.abc import Callable

from ilis_guard import events
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import CircuitOpenError


class AdmittedCall:
    """A call that the circuit breaker admitted."""

    __slots__ = ("epoch", "has_ended")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        """Number of the state that admitted it: a call that ends in a later state changes nothing."""
        self.has_ended = False


class CircuitBreaker:
    """Admits calls until too many in a row have failed, then none for a while, then one that closes or reopens it.

    Threads may share it. No lock is held during a call.

    Args:
        tier: name of the tier, for messages and events.
        settings: when the circuit opens, and for how long.
        clock: seconds, monotonic.
    """

    def __init__(self, tier: str, settings: BreakerSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tier = tier
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._epoch = 0
        self._failures = 0
        self._opened_at: float | None = None
        """None while it is closed."""
        self._is_probing = False
        """Whether it is half-open: the one call that it admits is under way."""

    def check(self) -> None:
        """Check that a call would be admitted now.

        Raises:
            CircuitOpenError: the circuit is open.
        """
        with self._lock:
            self._raise_if_open()

    def admit(self) -> AdmittedCall:
        """Admit a call; pass it to `record` when it has ended.

        Raises:
            CircuitOpenError: the circuit is open.
        """
        with self._lock:
            self._raise_if_open()
            if self._opened_at is not None:
                self._is_probing = True
                self._epoch += 1
            return AdmittedCall(self._epoch)

    def record(self, call: AdmittedCall, *, failed: bool | None) -> None:
        """Record how a call ended. Only the first record of a call counts.

        Args:
            call: what `admit` returned.
            failed: whether the tier failed; None where that isn't known, as when the program is being stopped.
        """
        with self._lock:
            if call.has_ended or call.epoch != self._epoch:
                return
            call.has_ended = True
            if failed is None:
                self._is_probing = False
            elif failed:
                self._failures += 1
                if self._is_probing or self._failures >= self._settings.failures:
                    self._open()
            else:
                self._close()

    def _raise_if_open(self) -> None:
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
        self._epoch += 1
        events.log().error(
            events.CIRCUIT_OPENED, tier=self._tier, failures=self._failures, seconds=self._settings.seconds
        )

    def _close(self) -> None:
        self._failures = 0
        if self._opened_at is not None:
            self._opened_at = None
            self._is_probing = False
            self._epoch += 1
            events.log().info(events.CIRCUIT_CLOSED, tier=self._tier)
