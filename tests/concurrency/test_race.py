"""Races between a coroutine and an event that ends it."""

import asyncio

import pytest

from ilis_guard.concurrency.race import cancel, race


class TooLateError(Exception):
    """The other one came first."""


def unset() -> "asyncio.Future[Exception]":
    return asyncio.get_running_loop().create_future()


class Endless:
    """A coroutine that never returns, and notes its end."""

    def __init__(self) -> None:
        self.has_ended = False

    async def run(self) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # ending takes time, too
            self.has_ended = True
        return "never"


async def test_the_result_of_the_winner_is_returned_and_a_shared_future_stays() -> None:
    against = unset()
    for number in range(3):
        assert await race(asyncio.sleep(0, number), against) == number
    assert not against.done()


async def test_the_error_of_the_winner_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await race(fail(), unset())


async def test_the_loser_has_ended_when_the_other_ones_exception_is_raised() -> None:
    against, endless = unset(), Endless()
    asyncio.get_running_loop().call_soon(against.set_result, TooLateError())
    with pytest.raises(TooLateError):
        await race(endless.run(), against)
    assert endless.has_ended


async def test_where_both_are_done_the_result_counts() -> None:
    against, done = unset(), asyncio.get_running_loop().create_future()
    against.set_result(TooLateError())
    done.set_result("in time")
    assert await race(done, against) == "in time"


async def test_a_coroutine_that_is_raced_against_ends_with_the_race() -> None:
    against = Endless()

    async def watch() -> Exception:
        await against.run()
        return TooLateError()

    assert await race(asyncio.sleep(0, "won"), watch()) == "won"
    assert against.has_ended


async def test_a_cancelled_race_ends_both() -> None:
    endless, against = Endless(), unset()
    racing = asyncio.ensure_future(race(endless.run(), against))
    await asyncio.sleep(0)
    await cancel(racing)
    assert racing.cancelled()
    assert endless.has_ended
    assert not against.done()
