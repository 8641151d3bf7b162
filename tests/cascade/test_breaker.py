"""The circuit breaker: opens after so many failures in a row, lets one call through when its time is over."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from structlog.testing import capture_logs

from ilis_guard import events
from ilis_guard.cascade.breaker import AdmittedCall, CircuitBreaker
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import CircuitOpenError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("small", BreakerSettings(failures=3, seconds=30.0), clock=clock)


def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        breaker.record(breaker.admit(), failed=True)


def test_breaker_opens_after_failures_in_a_row(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 2)
    breaker.check()
    with capture_logs() as entries:
        fail(breaker, 1)
    assert entries == [
        {"event": events.CIRCUIT_OPENED, "log_level": "error", "tier": "small", "failures": 3, "seconds": 30.0}
    ]
    clock.now += 10
    for ask in (breaker.check, breaker.admit):
        with pytest.raises(
            CircuitOpenError,
            match=r"'small' is down: 3 calls of its model in a row failed, and no other is made for another 20.0 s",
        ):
            ask()


def test_a_success_between_failures_starts_the_count_anew(breaker: CircuitBreaker) -> None:
    fail(breaker, 2)
    breaker.record(breaker.admit(), failed=False)
    fail(breaker, 2)
    breaker.check()
    fail(breaker, 1)
    with pytest.raises(CircuitOpenError):
        breaker.check()


def test_half_open_breaker_admits_one_call(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    probe = breaker.admit()
    with pytest.raises(CircuitOpenError, match="until the one that is under way has ended"):
        breaker.admit()
    with capture_logs() as entries:
        breaker.record(probe, failed=False)
    assert entries == [{"event": events.CIRCUIT_CLOSED, "log_level": "info", "tier": "small"}]
    # The count began anew: two failures don't open it.
    fail(breaker, 2)
    breaker.check()


def test_failed_trial_call_reopens_the_breaker(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    breaker.record(breaker.admit(), failed=True)
    with pytest.raises(CircuitOpenError, match=r"4 calls of its model in a row failed, .* for another 30\.0 s"):
        breaker.admit()
    clock.now += 30
    breaker.record(breaker.admit(), failed=False)
    breaker.check()


def test_a_trial_call_that_tells_nothing_leaves_the_next_one_the_trial(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    breaker.record(breaker.admit(), failed=None)
    breaker.record(breaker.admit(), failed=False)
    breaker.check()


@pytest.mark.parametrize("late", [True, False, None])
def test_calls_from_before_the_opening_change_nothing(breaker: CircuitBreaker, clock: Clock, late: bool | None) -> None:
    before = breaker.admit()
    fail(breaker, 3)
    breaker.record(before, failed=late)
    with pytest.raises(CircuitOpenError, match="for another 30"):
        breaker.admit()
    clock.now += 30
    probe = breaker.admit()
    breaker.record(before, failed=late)
    with pytest.raises(CircuitOpenError, match="under way"):
        breaker.admit()
    breaker.record(probe, failed=False)
    breaker.check()


def test_a_call_ends_once(breaker: CircuitBreaker) -> None:
    fail(breaker, 1)
    given_up = breaker.admit()
    breaker.record(given_up, failed=True)
    # It came to its end all the same, too late for anybody.
    breaker.record(given_up, failed=False)
    fail(breaker, 1)
    with pytest.raises(CircuitOpenError):
        breaker.check()


def at_once(number: int, do: Callable[[], object]) -> list[object]:
    """Let so many threads do something at the same moment."""
    start = threading.Barrier(number)

    def run(_: int) -> object:
        start.wait()
        try:
            return do()
        except CircuitOpenError as error:
            return error

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(run, range(number)))


def test_of_many_threads_exactly_one_makes_the_trial_call(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(50):
        fail(breaker, 3)
        clock.now += 30
        (probe,) = [found for found in at_once(16, breaker.admit) if isinstance(found, AdmittedCall)]
        breaker.record(probe, failed=False)


def test_failures_of_many_threads_are_all_counted(clock: Clock) -> None:
    for _ in range(20):
        breaker = CircuitBreaker("small", BreakerSettings(failures=16, seconds=30.0), clock=clock)
        at_once(15, partial(fail, breaker, 1))
        breaker.check()
        fail(breaker, 1)
        with pytest.raises(CircuitOpenError, match="16 calls"):
            breaker.check()
