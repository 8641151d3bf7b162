"""Whoever asked may leave: what waits for them ends, and nobody else is the worse for it."""

import threading
import time

import pytest
import tenacity

from ilis_guard.cascade.caller import ConcurrencyLimiter, ModelCaller
from ilis_guard.concurrency.cancellation import CancelToken
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.errors import BudgetError, ClientDisconnected, TransientModelError


def endless(cancel_token: CancelToken | None = None) -> Deadline:
    return Deadline.after(None, since=time.monotonic(), cancel_token=cancel_token)


def test_endless_deadline_passes_only_on_a_disconnect() -> None:
    cancel_token = CancelToken()
    deadline = endless(cancel_token)
    deadline.check()
    deadline.sleep(0.0)
    # Whatever waits by it can wait so long.
    assert 1e6 < deadline.remaining <= threading.TIMEOUT_MAX
    cancel_token.cancel()
    for what in (deadline.check, lambda: deadline.sleep(3600)):
        with pytest.raises(ClientDisconnected):
            what()


def test_call_without_a_time_limit_needs_no_thread() -> None:
    found = ModelCaller("small").call(threading.current_thread, deadline=endless(CancelToken()))
    assert found is threading.current_thread()


def test_disconnected_client_causes_no_repeated_call() -> None:
    cancel_token, calls = CancelToken(), []

    def busy() -> None:
        calls.append(1)
        cancel_token.cancel()
        raise TransientModelError("busy")

    with pytest.raises(ClientDisconnected):
        ModelCaller("small", backoff=tenacity.wait_fixed(3600)).call(busy, deadline=endless(cancel_token))
    assert calls == [1]


def test_disconnected_waiter_passes_the_notification_on() -> None:
    for _ in range(50):
        limiter, cancel_token = ConcurrencyLimiter(1), CancelToken()
        limiter.acquire(None)
        left, entered = threading.Event(), threading.Event()

        def first(
            limiter: ConcurrencyLimiter = limiter,
            cancel_token: CancelToken = cancel_token,
            left: threading.Event = left,
        ) -> None:
            with pytest.raises(ClientDisconnected):
                limiter.acquire(endless(cancel_token))
            left.set()

        def second(limiter: ConcurrencyLimiter = limiter, entered: threading.Event = entered) -> None:
            limiter.acquire(None)
            entered.set()

        waiting = [threading.Thread(target=target) for target in (first, second)]
        for thread in waiting:
            thread.start()
        # A place comes free while the first of those that wait for it leaves.
        going = [threading.Thread(target=cancel_token.cancel), threading.Thread(target=limiter.release)]
        cancel_token._cancelled.set()
        for thread in going:
            thread.start()
        for thread in (*waiting, *going):
            thread.join()
        assert left.is_set()
        assert entered.is_set()


def test_limiter_waits_until_the_deadline() -> None:
    limiter = ConcurrencyLimiter(1)
    limiter.acquire(None)
    with pytest.raises(BudgetError, match="it waited for other calls of the tier"):
        limiter.acquire(Deadline.after(0.01, since=time.monotonic(), cancel_token=CancelToken()))
    limiter.release()
    limiter.acquire(Deadline.after(0.0, since=time.monotonic() + 60))
