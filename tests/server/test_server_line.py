"""The line before the guard: who gets a place, who waits, and who is sent away."""

import asyncio

import pytest

from ilis_guard_server.limits import STOPPING, TOO_LONG, Ending, Line
from ilis_guard_server.problems import RefusedError


def later() -> "asyncio.Future[str]":
    return asyncio.get_running_loop().create_future()


async def turns() -> None:
    """Let everybody go on as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_places_are_given_in_the_order_of_coming() -> None:
    line, order = Line(1, 5), []

    async def come(name: str) -> None:
        with await line.enter(later()):
            order.append(name)
            await turns()

    await asyncio.gather(*(come(name) for name in "abc"))
    assert (order, line.under_way, line.waiting) == (["a", "b", "c"], 0, 0)


@pytest.mark.parametrize(("why", "status"), [(TOO_LONG, 429), (STOPPING, 503)])
async def test_who_waits_until_time_is_over_is_told_to_come_again(why: str, status: int) -> None:
    line, over = Line(1, 5), later()
    with await line.enter(later()):
        waiting = asyncio.ensure_future(line.enter(over))
        await turns()
        assert line.waiting == 1
        over.set_result(why)
        with pytest.raises(RefusedError) as refused:
            await waiting
    assert refused.value.status_code == status
    assert int((refused.value.headers or {})["retry-after"]) >= 1
    assert line.waiting == 0
    with await line.enter(later()):
        assert line.under_way == 1


async def test_a_full_line_lets_nobody_in_and_says_for_how_long() -> None:
    seconds = iter([0.0, 100.0, 200.0, 300.0])
    line = Line(1, 0, clock=lambda: next(seconds))
    with await line.enter(later()):
        pass  # it took a hundred seconds
    with await line.enter(later()):
        with pytest.raises(RefusedError) as refused:
            await line.enter(later())
        assert refused.value.status_code == 429
        assert (refused.value.headers or {})["retry-after"] == "21"


async def test_who_leaves_just_when_their_turn_comes_leaves_it_to_the_next() -> None:
    line = Line(1, 5)
    place = await line.enter(later())
    leaving, next_one = asyncio.ensure_future(line.enter(later())), asyncio.ensure_future(line.enter(later()))
    await turns()
    with place:
        pass
    await asyncio.sleep(0)
    leaving.cancel()
    await turns()
    assert next_one.done()
    with await next_one:
        assert (line.under_way, line.waiting) == (1, 0)


async def test_everything_ends_once_the_server_has_waited_long_enough() -> None:
    ending = Ending()
    with ending.within(60) as under_way:
        assert not ending.is_near
        ending.begin(0)
        assert ending.is_near
        assert await under_way == STOPPING
    with ending.within(60) as late:
        assert late.result() == STOPPING


async def test_what_takes_too_long_ends_by_itself() -> None:
    with Ending().within(0) as over:
        assert await over == TOO_LONG
