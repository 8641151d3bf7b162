"""Calls of a model: in line, past the breaker, repeated, and given up at the deadline, with real threads."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import tenacity

from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import (
    BudgetError,
    CircuitOpenError,
    ModelError,
    PromptTooLongError,
    TransientModelError,
)

NO_WAIT = tenacity.wait_none()


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    """What hanging models wait for; set at the end, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def soon(seconds: float = 0.05) -> Deadline:
    """A deadline on a stopped clock: a call has the whole time, however long its thread takes to start."""
    return Deadline.after(seconds, since=0.0, clock=lambda: 0.0)


def raising(error: BaseException) -> Callable[[], str]:
    def call() -> str:
        raise error

    return call


def test_without_a_deadline_the_model_works_in_the_callers_thread() -> None:
    assert ModelCaller("small").call(threading.get_ident) == threading.get_ident()


def test_call_with_a_deadline_keeps_context_result_and_error() -> None:
    who = contextvars.ContextVar("who", default="nobody")
    who.set("ada")
    caller = ModelCaller("small", backoff=NO_WAIT)
    assert caller.call(who.get, deadline=soon(60)) == "ada"
    for error in (ModelError("no"), TimeoutError("the model's own"), StopIteration(), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised:
            caller.call(raising(error), deadline=soon(60))
        assert raised.value is error


def test_a_model_that_hangs_is_given_up_at_the_deadline(let_go: threading.Event) -> None:
    with pytest.raises(BudgetError, match=r"the request's 0\.05 seconds are over; the model was given up"):
        ModelCaller("small").call(let_go.wait, deadline=soon())
    assert not let_go.is_set()


def test_a_deadline_that_has_passed_calls_no_model() -> None:
    called: list[int] = []
    with pytest.raises(BudgetError, match="are over"):
        ModelCaller("small").call(lambda: called.append(1), deadline=soon(0))
    assert called == []


def test_a_repeat_that_there_is_no_time_for_is_not_waited_for() -> None:
    calls: list[int] = []

    def busy() -> str:
        calls.append(1)
        raise TransientModelError("busy")

    caller = ModelCaller("small", backoff=tenacity.wait_fixed(3600))
    with pytest.raises(TransientModelError, match="busy"):
        caller.call(busy, deadline=soon(60))
    assert len(calls) == 1


def test_a_repeat_that_there_is_time_for_is_made() -> None:
    replies: list[str | Exception] = [TransientModelError("busy"), "yes"]

    def answer() -> str:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    assert ModelCaller("small", backoff=NO_WAIT).call(answer, deadline=soon(60)) == "yes"


class Crowd:
    """Counts how many are inside at once."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def visit(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.001)
        with self._lock:
            self.inside -= 1


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_limited_calls_all_run_within_the_limit(deadline: float | None) -> None:
    caller, crowd = ModelCaller("small", max_concurrent=3), Crowd()
    with ThreadPoolExecutor(16) as threads:
        made = [
            threads.submit(caller.call, crowd.visit, deadline=None if deadline is None else soon(deadline))
            for _ in range(200)
        ]
    assert [call.exception() for call in made] == [None] * 200
    assert crowd.most == 3


async def test_limit_holds_for_tasks_of_an_event_loop() -> None:
    caller, crowd = ModelCaller("small", max_concurrent=2), Crowd()
    await asyncio.gather(*(asyncio.to_thread(caller.call, crowd.visit, deadline=soon(60)) for _ in range(50)))
    assert crowd.most == 2


def test_abandoned_call_counts_until_its_end(let_go: threading.Event) -> None:
    caller, ended = ModelCaller("small", max_concurrent=1), threading.Event()

    def hang() -> None:
        let_go.wait()
        ended.set()

    with pytest.raises(BudgetError, match="was given up"):
        caller.call(hang, deadline=soon())
    with pytest.raises(BudgetError, match=r"it waited for other calls of the tier \(max_concurrent\)"):
        caller.call(lambda: "yes", deadline=soon())
    let_go.set()
    ended.wait()
    assert caller.call(lambda: "yes", deadline=soon(60)) == "yes"


def test_failed_call_is_released() -> None:
    caller = ModelCaller("small", max_concurrent=1, backoff=NO_WAIT)
    for deadline in (None, soon(60)):
        with pytest.raises(ModelError):
            caller.call(raising(ModelError("no")), deadline=deadline)
    assert caller.call(lambda: "yes") == "yes"


def test_call_without_a_thread_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    caller = ModelCaller("small", max_concurrent=1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            caller.call(lambda: "yes", deadline=soon(60))
    assert caller.call(lambda: "yes", deadline=soon(60)) == "yes"


def breaking(failures: int = 3) -> ModelCaller:
    return ModelCaller("small", breaker=BreakerSettings(failures=failures, seconds=3600.0), backoff=NO_WAIT)


@pytest.mark.parametrize("error", [TransientModelError("busy"), RuntimeError("CUDA out of memory")])
def test_a_tier_that_fails_again_and_again_is_called_no_more(error: Exception) -> None:
    caller, called = breaking(), []
    for _ in range(3):
        with pytest.raises((type(error), CircuitOpenError)):
            caller.call(raising(error))
    with pytest.raises(CircuitOpenError, match="'small' is down"):
        caller.call(lambda: called.append(1))
    assert called == []


def test_a_breaker_that_opens_between_repeats_ends_them() -> None:
    calls: list[int] = []

    def busy() -> str:
        calls.append(1)
        raise TransientModelError("busy")

    with pytest.raises(CircuitOpenError):
        breaking(failures=2).call(busy)
    assert len(calls) == 2


def test_hanging_model_is_a_failure_of_the_tier(let_go: threading.Event) -> None:
    caller = breaking(failures=2)
    for _ in range(2):
        with pytest.raises(BudgetError):
            caller.call(let_go.wait, deadline=soon())
    with pytest.raises(CircuitOpenError):
        caller.call(let_go.wait, deadline=soon(60))


@pytest.mark.parametrize("error", [PromptTooLongError("9 tokens, 8 fit"), ModelError("it refused")])
def test_requests_that_cant_be_answered_close_no_tier_for_others(error: Exception) -> None:
    caller = breaking(failures=1)
    for _ in range(5):
        with pytest.raises(type(error)):
            caller.call(raising(error))
    assert caller.call(lambda: "yes") == "yes"


def test_a_trial_call_that_couldnt_be_begun_leaves_the_next_one_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    now = [0.0]
    caller = ModelCaller(
        "small", breaker=BreakerSettings(failures=1, seconds=1.0), backoff=NO_WAIT, clock=lambda: now[0]
    )
    with pytest.raises(RuntimeError, match="down"):
        caller.call(raising(RuntimeError("down")))
    now[0] = 1.0
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            caller.call(lambda: "yes", deadline=soon(60))
    assert caller.call(lambda: "yes", deadline=soon(60)) == "yes"


def test_interrupts_are_no_failure_of_the_tier() -> None:
    caller = breaking(failures=1)
    with pytest.raises(KeyboardInterrupt):
        caller.call(raising(KeyboardInterrupt()))
    assert caller.call(lambda: "yes") == "yes"


def test_waiting_call_is_refused_if_the_circuit_opens(let_go: threading.Event) -> None:
    caller = ModelCaller(
        "small", max_concurrent=1, breaker=BreakerSettings(failures=1, seconds=3600.0), backoff=NO_WAIT
    )
    began = threading.Event()

    def fail_late() -> None:
        began.set()
        let_go.wait()
        raise RuntimeError("down")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(caller.call, fail_late)
        began.wait()
        second = threads.submit(caller.call, lambda: "yes")
        let_go.set()
        assert isinstance(first.exception(), RuntimeError)
        assert isinstance(second.exception(), CircuitOpenError)
    # Its place is free again.
    with pytest.raises(CircuitOpenError):
        caller.call(lambda: "yes", deadline=soon(60))


def test_under_load_a_tier_goes_down_and_comes_back_and_no_call_is_lost() -> None:
    now = [0.0]
    caller = ModelCaller(
        "small",
        max_concurrent=4,
        breaker=BreakerSettings(failures=5, seconds=1.0),
        backoff=NO_WAIT,
        clock=lambda: now[0],
    )
    is_up = threading.Event()

    def work() -> str:
        if not is_up.is_set():
            raise TransientModelError("busy")
        return "yes"

    def outcomes(calls: int) -> set[str]:
        with ThreadPoolExecutor(16) as threads:
            made = [threads.submit(caller.call, work, deadline=soon(60)) for _ in range(calls)]
        return {type(call.exception()).__name__ for call in made}

    assert outcomes(100) <= {"TransientModelError", "CircuitOpenError"}
    assert outcomes(100) == {"CircuitOpenError"}
    is_up.set()
    assert outcomes(20) == {"CircuitOpenError"}
    now[0] = 1.0
    assert caller.call(work) == "yes"
    assert outcomes(100) == {"NoneType"}
