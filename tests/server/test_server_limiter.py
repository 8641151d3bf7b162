"""The line before the guard: who gets a place, who waits, and who is sent away."""

import asyncio

import pytest

from ilis_guard_server.limits import ConcurrencyLimiter, Deadline, DeadlinePassed, Deadlines, Reason
from ilis_guard_server.problem_details import ApiError


def later() -> Deadline:
    return asyncio.get_running_loop().create_future()


async def turns() -> None:
    """Let everybody go on as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_slots_are_given_in_the_order_of_arrival() -> None:
    limiter, order = ConcurrencyLimiter(1, 5), []

    async def come(name: str) -> None:
        with await limiter.admit(later()):
            order.append(name)
            await turns()

    await asyncio.gather(*(come(name) for name in "abc"))
    assert (order, limiter.in_flight, limiter.waiting) == (["a", "b", "c"], 0, 0)


@pytest.mark.parametrize(("reason", "status"), [("timeout", 429), ("shutdown", 503)])
async def test_waiting_past_the_deadline_is_refused_with_retry_after(reason: Reason, status: int) -> None:
    limiter, over = ConcurrencyLimiter(1, 5), later()
    with await limiter.admit(later()):
        waiting = asyncio.ensure_future(limiter.admit(over))
        await turns()
        assert limiter.waiting == 1
        over.set_result(DeadlinePassed(reason))
        with pytest.raises(ApiError) as refused:
            await waiting
    assert refused.value.status_code == status
    assert int((refused.value.headers or {})["retry-after"]) >= 1
    assert limiter.waiting == 0
    with await limiter.admit(later()):
        assert limiter.in_flight == 1


async def test_a_full_waiting_line_refuses_with_retry_after() -> None:
    seconds = iter([0.0, 100.0, 200.0, 300.0])
    limiter = ConcurrencyLimiter(1, 0, clock=lambda: next(seconds))
    with await limiter.admit(later()):
        pass  # it took a hundred seconds
    with await limiter.admit(later()):
        with pytest.raises(ApiError) as refused:
            await limiter.admit(later())
        assert refused.value.status_code == 429
        assert (refused.value.headers or {})["retry-after"] == "21"


async def test_a_slot_that_comes_at_a_disconnect_goes_to_the_next() -> None:
    limiter = ConcurrencyLimiter(1, 5)
    place = await limiter.admit(later())
    leaving, next_one = asyncio.ensure_future(limiter.admit(later())), asyncio.ensure_future(limiter.admit(later()))
    await turns()
    with place:
        pass
    await asyncio.sleep(0)
    leaving.cancel()
    await turns()
    assert next_one.done()
    with await next_one:
        assert (limiter.in_flight, limiter.waiting) == (1, 0)


async def test_all_deadlines_pass_after_the_shutdown_period() -> None:
    deadlines = Deadlines()
    with deadlines.open(60) as open_before:
        assert not deadlines.is_shutting_down
        deadlines.begin_shutdown(0)
        assert deadlines.is_shutting_down
        assert reason_of(await open_before) == "shutdown"
    with deadlines.open(60) as late:
        assert reason_of(late.result()) == "shutdown"


async def test_a_deadline_passes_by_itself() -> None:
    with Deadlines().open(0) as deadline:
        assert reason_of(await deadline) == "timeout"


def reason_of(passed: Exception) -> str:
    assert isinstance(passed, DeadlinePassed)
    return passed.reason
