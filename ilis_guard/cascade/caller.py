"""Calls of one tier's model: in line, past the breaker, again where they failed in passing, never past a deadline."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from ilis_guard import events
from ilis_guard.cascade.breaker import Breaker, Permit
from ilis_guard.cascade.limiter import Line
from ilis_guard.concurrency.deadline import Deadline, run_with_deadline
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import BudgetError, IlisGuardError, control_flow

CALLS_PER_ATTEMPT: Final = 3
"""A tier whose model fails in passing is called so often before the attempt counts as failed."""
BACKOFF: Final = tenacity.wait_exponential_jitter(multiplier=0.5, max=8)
"""Seconds between these calls."""

T = TypeVar("T")


class ModelCaller:
    """What is known of a tier from one request to the next. Threads may share it.

    Args:
        tier: its name.
        max_concurrent: so many calls are under way at once, and the others wait in line; None for any number. A call
            that was given up counts for as long as it runs.
        breaker: when the tier counts as down; None for never.
        backoff: tenacity's wait between calls of a model that failed in passing.
        clock: the breaker's.
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
        self._line = Line(max_concurrent)
        self._breaker = None if breaker is None else Breaker(tier, breaker, clock=clock)
        self._backoff = backoff

    def anew(self) -> "ModelCaller":
        """With the same settings, of another model: it has a line and a breaker of its own."""
        return self._settings()

    def call(self, work: Callable[[], T], *, deadline: Deadline | None = None) -> T:
        """Let the model work.

        Args:
            work: calls the model once.
            deadline: the request's; None for none.

        Raises:
            BudgetError: the deadline has passed: the model was given up, or never came to its turn.
            CircuitOpenError: the breaker is open.
            ClientDisconnected: whoever asked has left.
            Exception: what the model raised, at its last call.
        """
        stop: stop_base = tenacity.stop_after_attempt(CALLS_PER_ATTEMPT)
        if deadline is not None:
            deadline.check()
            # Rather the model's own error at once than a repeat that there is no time for.
            stop = stop | tenacity.stop_before_delay(deadline.remaining)
        repeated = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_retryable),
            stop=stop,
            wait=self._backoff,
            sleep=time.sleep if deadline is None else deadline.sleep,
            before_sleep=self._log_repeat,
            reraise=True,
        )
        made: T = repeated(self._call_once, work, deadline)
        return made

    def _call_once(self, work: Callable[[], T], deadline: Deadline | None) -> T:
        if self._breaker is None:
            self._line.enter(deadline)
            return run_with_deadline(work, deadline, on_end=self._line.leave)
        # Nobody waits in line for a tier that is down; who waited may find that it went down meanwhile.
        self._breaker.check()
        self._line.enter(deadline)
        try:
            permit = self._breaker.admit()
        except BaseException:
            self._line.leave()
            raise
        try:
            return run_with_deadline(self._telling(work, self._breaker, permit), deadline, on_end=self._line.leave)
        except BaseException as error:
            # Of a call that was given up, or couldn't be begun, nobody has told yet.
            self._breaker.ended(permit, failed=True if isinstance(error, BudgetError) else None)
            raise

    @staticmethod
    def _telling(work: Callable[[], T], breaker: Breaker, permit: Permit) -> Callable[[], T]:
        """The work, which tells the breaker how it ended before it leaves the line: the next in it must know."""

        def told() -> T:
            failed: bool | None = None
            try:
                result = work()
                failed = False
            except control_flow():
                raise
            except Exception as error:
                failed = _is_the_tiers_fault(error)
                raise
            finally:
                breaker.ended(permit, failed=failed)
            return result

        return told

    def _log_repeat(self, state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        events.log().warning(
            events.CALL_REPEATED, tier=self._tier, call=state.attempt_number, error=type(error).__name__
        )


def _is_retryable(error: BaseException) -> bool:
    return bool(getattr(error, "is_retryable", False))


def _is_the_tiers_fault(error: Exception) -> bool:
    """Whether it tells of the tier and not of this request: a prompt that is too long, or refused, closes no tier.

    Somebody who sends such prompts on purpose would otherwise close it for everybody.
    """
    return _is_retryable(error) or isinstance(error, BudgetError) or not isinstance(error, IlisGuardError)
