"""Who reads a stream may be slow, stop reading, or leave at any time; nobody else is the worse for it."""

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any

import pytest
import tenacity
from structlog.testing import capture_logs

from ilis_guard import Guard, Policy, TextDelta, events
from ilis_guard.cascade.tier import Tier
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import TransientModelError
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action, Decision, Generation, Message, Step, StreamMode
from tests.explained import problem

QUESTION = "What is the boiling point of gallium?"
WORDS = "one two three four five six seven eight"
RULES = """
version: 1
name: p
audit: {fraction: 1.0, queue: audits}
rules:
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: larger, do: retry}
  - {id: person, do: escalate}
"""
NAMES = ("ilis-guard-stream", "ilis-guard-call")


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in NAMES]


def gone() -> None:
    """Wait until no stream's thread is left; one that stays hangs here, where the test's time-out finds it."""
    for thread in workers():
        thread.join()
    assert workers() == []


def until(happened: Callable[[], bool]) -> None:
    while not happened():
        time.sleep(0.001)


class Stepping(FakeModel):
    """Says a word each time it is let; its calls look at their deadline, as those of a local model do."""

    def __init__(self, text: str = WORDS, *, free: int = 0) -> None:
        super().__init__(text)
        self.let = threading.Semaphore(free)
        self.words = 0
        self.is_waiting = threading.Event()
        self.ended = threading.Event()

    def _next(self) -> None:
        self.is_waiting.set()
        self.let.acquire()
        self.words += 1

    def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
        deadline = options.get("deadline")
        try:
            for _ in WORDS.split():
                self._next()
                if deadline is not None:
                    deadline.check()
            return super().generate(messages, **options)
        finally:
            self.ended.set()

    def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
        steps = super().stream(messages, stop=stop)
        try:
            yield next(steps)
            for step in steps:
                if step.generation.finish_reason is None:
                    self._next()
                yield step
        finally:
            self.ended.set()


@pytest.fixture
def queue() -> Iterator[InMemoryQueue]:
    with InMemoryQueue() as made:
        yield made


@pytest.fixture
def guarded(queue: InMemoryQueue) -> Callable[..., Guard]:
    def build(*models: Any, uncertainty: float = 0.1, head: str = "", **settings: Any) -> Guard:
        tiers = [
            Tier(name=f"tier-{number}", model=model, scorer=FixedScorer(uncertainty), **settings)
            for number, model in enumerate(models)
        ]
        return Guard(tiers=tiers, policy=Policy.parse(RULES + head), review=queue, backoff=tenacity.wait_fixed(3600))

    return build


def tickets(queue: InMemoryQueue) -> int:
    return len(queue.list())


def test_closing_a_stream_ends_generation_at_the_next_word(guarded: Callable[..., Guard], queue: InMemoryQueue) -> None:
    model = Stepping(free=2)
    with capture_logs() as entries:
        stream = guarded(model).stream(QUESTION, mode="optimistic")
        assert [next(stream), next(stream)] == [TextDelta(text="one"), TextDelta(text=" two")]
        model.is_waiting.wait()
        threading.Timer(0.05, model.let.release).start()
        stream.close()
    assert model.ended.is_set()
    assert model.words <= 3
    gone()
    assert tickets(queue) == 0
    (left,) = [entry for entry in entries if entry["event"] == events.STREAM_ABANDONED]
    assert set(left) == {"event", "log_level", "decision", "seconds"}
    assert [entry for entry in entries if entry["event"] == events.DECISION_MADE] == []


def test_dropping_a_stream_closes_the_generation(guarded: Callable[..., Guard], queue: InMemoryQueue) -> None:
    stream = guarded(Stepping(free=8)).stream(QUESTION, mode="optimistic")
    next(stream)
    del stream
    gone()
    assert tickets(queue) == 0


def test_a_stream_that_nobody_reads_asks_nothing(guarded: Callable[..., Guard]) -> None:
    model = FakeModel(WORDS)
    stream = guarded(model).stream(QUESTION)
    assert workers() == []
    stream.close()
    assert model.calls == []


def test_reader_that_stops_after_all_words_makes_no_ticket(guarded: Callable[..., Guard], queue: InMemoryQueue) -> None:
    model = FakeModel(WORDS)
    with closing(guarded(model).stream(QUESTION, mode="optimistic")) as stream:
        assert [next(stream) for _ in range(8)][-1] == TextDelta(text=" eight")
    gone()
    assert tickets(queue) == 0


def test_reading_the_rest_of_a_stream_makes_the_ticket(guarded: Callable[..., Guard], queue: InMemoryQueue) -> None:
    *_, made = guarded(FakeModel(WORDS)).stream(QUESTION, mode="optimistic")
    assert isinstance(made, Decision)
    assert made.ticket is not None
    assert tickets(queue) == 1


def test_idle_reader_holds_no_call_of_the_tier(guarded: Callable[..., Guard]) -> None:
    watched = guarded(FakeModel(WORDS), max_concurrent=1)
    stalled = watched.stream(QUESTION, mode="optimistic")
    next(stalled)
    assert watched.decide(QUESTION).action is Action.ANSWER
    *_, made = stalled
    assert isinstance(made, Decision)
    assert made.action is Action.ANSWER


def test_disconnected_reader_frees_the_tier(guarded: Callable[..., Guard]) -> None:
    model = Stepping(free=2)
    watched = guarded(model, max_concurrent=1)
    stream = watched.stream(QUESTION, mode="optimistic")
    next(stream)
    model.let.release(16)
    stream.close()
    assert watched.decide(QUESTION).action is Action.ANSWER


def test_leaving_says_nothing_of_the_tier() -> None:
    """Neither that it is well, nor that it is down: a breaker counts on where it was."""
    busy = FakeModel(TransientModelError("busy"))
    model = Stepping(free=1)

    class Both:
        fingerprint = None

        def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
            return busy.generate(messages, **options)

        def stream(self, messages: Sequence[Message]) -> Generator[Step, None, None]:
            return model.stream(messages)

    watched = Guard(
        tiers=[
            Tier(name="only", model=Both(), scorer=FixedScorer(0.1), breaker=BreakerSettings(failures=4)),
        ],
        policy=Policy.parse(RULES),
        review=InMemoryQueue(),
        backoff=tenacity.wait_none(),
    )
    assert "busy" in problem(watched.decide(QUESTION).attempts[0])
    stream = watched.stream(QUESTION, mode="optimistic")
    next(stream)
    model.let.release(16)
    stream.close()
    gone()
    assert "is down" in problem(watched.decide(QUESTION).attempts[0])


@pytest.mark.parametrize("mode", ["hold", "optimistic", "early_stop"])
@pytest.mark.parametrize("head", ["", "budget: {max_seconds: 60}"])
async def test_cancelled_reader_closes_the_stream(
    guarded: Callable[..., Guard], queue: InMemoryQueue, mode: StreamMode, head: str
) -> None:
    model = Stepping()

    async def reading() -> None:
        async for _ in guarded(model, head=head).astream(QUESTION, mode=mode):
            pass

    task = asyncio.create_task(reading())
    await asyncio.to_thread(model.is_waiting.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    model.let.release(16)
    await asyncio.to_thread(gone)
    assert model.ended.is_set()
    assert model.words <= 2
    assert tickets(queue) == 0


async def test_closing_an_async_stream_ends_generation(guarded: Callable[..., Guard], queue: InMemoryQueue) -> None:
    model = Stepping(free=1)
    async with aclosing(guarded(model).astream(QUESTION, mode="optimistic")) as stream:
        assert await anext(stream) == TextDelta(text="one")
    model.let.release(16)
    await asyncio.to_thread(gone)
    assert model.words <= 2
    assert tickets(queue) == 0


async def test_disconnected_reader_stops_waiting_for_the_tier(guarded: Callable[..., Guard]) -> None:
    model = Stepping()
    watched = guarded(model, max_concurrent=1)
    first = asyncio.create_task(_last(watched))
    await asyncio.to_thread(model.is_waiting.wait)
    before = len(workers())
    second = asyncio.create_task(_last(watched))
    await asyncio.to_thread(until, lambda: len(workers()) > before)
    waiting = workers()[-1]
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.to_thread(waiting.join)
    model.let.release(16)
    assert (await first).action is Action.ANSWER


async def test_disconnected_reader_skips_the_repeated_call(
    guarded: Callable[..., Guard],
) -> None:
    """The fixture's guard waits for an hour before it calls a model again."""
    asked = threading.Event()

    class Busy(FakeModel):
        def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
            del messages, options
            asked.set()
            raise TransientModelError("busy")

    task = asyncio.create_task(_last(guarded(Busy("x"))))
    await asyncio.to_thread(asked.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(gone)


async def _last(guard: Guard) -> Decision:
    made = [event async for event in guard.astream(QUESTION)][-1]
    assert isinstance(made, Decision)
    return made


async def test_many_streams_block_neither_event_loop_nor_executor(
    guarded: Callable[..., Guard],
) -> None:
    model = Stepping()
    watched = guarded(model)
    tasks = [asyncio.create_task(_last(watched)) for _ in range(100)]
    await asyncio.to_thread(until, lambda: len(workers()) == 100)
    assert await asyncio.to_thread(lambda: "free") == "free"
    model.let.release(100 * 8)
    assert {made.action for made in await asyncio.gather(*tasks)} == {Action.ANSWER}


def test_a_stream_outlives_no_event_loop(guarded: Callable[..., Guard], queue: InMemoryQueue) -> None:
    model = Stepping(free=1)

    async def reads_one() -> None:
        stream = guarded(model).astream(QUESTION, mode="optimistic")
        assert await anext(stream) == TextDelta(text="one")

    asyncio.run(reads_one())
    model.let.release(16)
    gone()
    assert tickets(queue) == 0


async def test_asynchronous_events_are_the_same(guarded: Callable[..., Guard]) -> None:
    watched = guarded(FakeModel(WORDS))
    found = [event async for event in watched.astream(QUESTION, mode="optimistic")]
    assert [event.text for event in found[:-1] if isinstance(event, TextDelta)] == [
        word if number == 0 else f" {word}" for number, word in enumerate(WORDS.split())
    ]
    assert isinstance(found[-1], Decision)
    assert found[-1].text == WORDS


def test_a_call_that_was_given_up_shows_nothing_any_more(guarded: Callable[..., Guard]) -> None:
    model = Stepping(free=2)
    watched = guarded(model, head="budget: {max_seconds: 0.5}")
    *pieces, _, made = list(watched.stream(QUESTION, mode="optimistic"))
    assert isinstance(made, Decision)
    assert pieces == [TextDelta(text="one"), TextDelta(text=" two")]
    assert made.action is not Action.ANSWER
    assert "seconds are over" in problem(made.attempts[0])
    model.let.release(16)
    gone()
    assert model.words <= 3
