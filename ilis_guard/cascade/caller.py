"""Calls of one tier's model: at most so many at once, past the circuit breaker, repeated, and within the deadline."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from ilis_guard import events
from ilis_guard.cascade.breaker import AdmittedCall, CircuitBreaker
from ilis_guard.concurrency.deadline import Deadline, run_with_deadline, wait_until
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import BudgetError, ClientDisconnected, IlisGuardError, control_flow

CALLS_PER_ATTEMPT: Final = 3
"""Calls of a model that fails with transient errors, before the attempt fails."""
BACKOFF: Final = tenacity.wait_exponential_jitter(multiplier=0.5, max=8)
"""Seconds between these calls."""

T = TypeVar("T")


class ConcurrencyLimiter:
    """Limits the calls that are under way at once. Threads may share it.

    Args:
        max_concurrent: the limit; None for none.
    """

    def __init__(self, max_concurrent: int | None) -> None:
        self._free = max_concurrent
        """Calls that may still begin; None for any number."""
        self._changed = threading.Condition()

    def acquire(self, deadline: Deadline | None) -> None:
        """Wait until a call may begin. Call `release` once when it has ended.

        Raises:
            BudgetError: none could begin before the deadline.
            ClientDisconnected: the client has disconnected.
        """
        if self._free is None:
            return
        with self._changed:
            try:
                is_free = wait_until(self._changed, lambda: self._free != 0, deadline)
            except ClientDisconnected:
                # This thread may have taken a notification that another one waits for.
                self._changed.notify()
                raise
            if not is_free:
                assert deadline is not None, "without a deadline, the wait ends only when a call may begin"
                raise deadline.error("; it waited for other calls of the tier (max_concurrent)")
            self._free -= 1

    def release(self) -> None:
        """Let another call begin."""
        if self._free is None:
            return
        with self._changed:
            self._free += 1
            self._changed.notify()


class ModelCaller:
    """Calls a tier's model, and keeps the tier's limiter and circuit breaker. Threads and requests share it.

    Args:
        tier: name of the tier.
        max_concurrent: calls under way at once, while others wait; None for any number. An abandoned call counts for
            as long as it runs.
        breaker: when the circuit opens; None for never.
        backoff: tenacity's wait before a call is repeated after a transient error.
        clock: seconds, monotonic; the circuit breaker's.
    """

    def __init__(
        self,
        tier: str,
        *,
        max_concurrent: int | None = None,
        breaker: BreakerSettings | None = None,
        backoff: wait_base = BACKOFF,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tier = tier
        self._settings = partial(
            ModelCaller, tier, max_concurrent=max_concurrent, breaker=breaker, backoff=backoff, clock=clock
        )
        self._limiter = ConcurrencyLimiter(max_concurrent)
        self._breaker = None if breaker is None else CircuitBreaker(tier, breaker, clock=clock)
        self._backoff = backoff

    def for_other_model(self) -> "ModelCaller":
        """Build a caller of another model with the same settings, and a limiter and a circuit breaker of its own."""
        return self._settings()

    def call(self, work: Callable[[], T], *, deadline: Deadline | None = None) -> T:
        """Call the model, and repeat the call after transient errors.

        Args:
            work: calls the model once.
            deadline: the request's; None for none.

        Raises:
            BudgetError: the deadline has passed: the call was abandoned, or never began.
            CircuitOpenError: the circuit is open.
            ClientDisconnected: the client has disconnected.
            Exception: the model's error, at its last call.
        """
        stop: stop_base = tenacity.stop_after_attempt(CALLS_PER_ATTEMPT)
        if deadline is not None:
            deadline.check()
            # Without time for another call, the model's own error is raised at once.
            stop = stop | tenacity.stop_before_delay(deadline.remaining)
        repeated = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_retryable),
            stop=stop,
            wait=self._backoff,
            sleep=time.sleep if deadline is None else deadline.sleep,
            before_sleep=self._log_repeat,
            reraise=True,
        )
        result: T = repeated(self._call_once, work, deadline)
        return result

    def _call_once(self, work: Callable[[], T], deadline: Deadline | None) -> T:
        breaker = self._breaker
        if breaker is None:
            self._limiter.acquire(deadline)
            return run_with_deadline(work, deadline, on_end=self._limiter.release)
        # No call waits for a tier whose circuit is open; it may also open while one waits.
        breaker.check()
        self._limiter.acquire(deadline)
        try:
            admitted = breaker.admit()
        except BaseException:
            self._limiter.release()
            raise
        try:
            return run_with_deadline(_recorded(work, breaker, admitted), deadline, on_end=self._limiter.release)
        except BaseException as error:
            # A call that was abandoned, or couldn't be started, isn't recorded yet.
            breaker.record(admitted, failed=True if issubclass(type(error), BudgetError) else None)
            raise

    def _log_repeat(self, state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        events.log().warning(
            events.CALL_REPEATED, tier=self._tier, call=state.attempt_number, error=type(error).__name__
        )


def _recorded(work: Callable[[], T], breaker: CircuitBreaker, admitted: AdmittedCall) -> Callable[[], T]:
    """Wrap a call so that the breaker records its end before the limiter lets the next call begin."""

    def run() -> T:
        failed: bool | None = None
        try:
            result = work()
            failed = False
        except control_flow():
            raise
        except Exception as error:
            failed = _is_tier_failure(error)
            raise
        finally:
            breaker.record(admitted, failed=failed)
        return result

    return run


def _is_retryable(error: BaseException) -> bool:
    try:
        return bool(getattr(error, "is_retryable", False))
    except Exception:  # noqa: BLE001 - a stranger's attribute may raise anything
        return False


def _is_tier_failure(error: Exception) -> bool:
    """Whether an error counts against the tier and not against this request.

    A prompt that is too long, or refused, opens no circuit: else one client could close the tier to all others.
    """
    # By type alone: a stranger's `__class__` may raise anything.
    kind = type(error)
    return _is_retryable(error) or issubclass(kind, BudgetError) or not issubclass(kind, IlisGuardError)
