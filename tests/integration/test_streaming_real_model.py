"""Streams of a real model with its packaged bundle: what is shown, what is cut, and who leaves."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

import pytest

from ilis_guard import Decision, Guard, Policy, Retraction, TextDelta
from ilis_guard.cascade.early_stop import PATIENCE
from ilis_guard.cascade.stream import StreamEvent
from ilis_guard.cascade.tier import Tier
from ilis_guard.errors import TransientModelError
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.testing import InMemoryQueue
from ilis_guard.types import Action
from tests.watching import watch

if TYPE_CHECKING:  # importing it imports torch
    from ilis_guard.models.local import LocalModel

pytestmark = pytest.mark.usefixtures("real_model")

KNOWN, UNKNOWN = "What is the capital of Norway?", "What is 48 times 67?"
RULES = """
version: 1
name: p
audit: {fraction: 1.0, queue: audits}
rules:
  - {id: sure, when: uncertainty < LIMIT, do: answer}
  - {id: person, do: escalate}
"""


@pytest.fixture(scope="module")
def tier(smollm2_full: "LocalModel") -> Tier:
    scorer = LightGBMScorer(read_bundle("packaged:smollm2-135m-instruct-full"))
    return Tier(name="small", model=smollm2_full, scorer=scorer, max_concurrent=1)


@pytest.fixture
def queue() -> Iterator[InMemoryQueue]:
    with InMemoryQueue() as made:
        yield made


def guard(tier: Tier, queue: InMemoryQueue, limit: float) -> Guard:
    return Guard(tiers=[tier], policy=Policy.parse(RULES.replace("LIMIT", str(limit))), review=queue)


def joined(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ilis-guard")}


def join_all() -> None:
    for thread in threads():
        thread.join()


def told(made: Decision) -> dict[str, Any]:
    (attempt,) = made.attempts
    return {
        "action": made.action,
        "rules": made.rules,
        "text": made.text,
        "tokens": attempt.tokens,
        "finish_reason": attempt.finish_reason,
        "uncertainty": pytest.approx(attempt.uncertainty, abs=1e-6),
    }


@pytest.mark.parametrize("mode", ["hold", "optimistic", "early_stop"])
def test_a_real_answers_pieces_are_its_text_and_its_decision_is_decides(
    tier: Tier, queue: InMemoryQueue, mode: Any
) -> None:
    watched = guard(tier, queue, 0.99)
    shown = list(watched.stream(KNOWN, mode=mode))
    *_, made = shown
    assert isinstance(made, Decision)
    assert made.action is Action.ANSWER
    assert "Oslo" in made.text
    assert joined(shown) == made.text
    assert (len(shown) > 4) is (mode == "optimistic")
    assert told(made) == told(watched.decide(KNOWN))
    assert threads() == set()


def test_unsure_answer_of_a_real_model_is_retracted(tier: Tier, queue: InMemoryQueue) -> None:
    shown = list(guard(tier, queue, 0.001).stream(KNOWN, mode="optimistic"))
    *_, made = shown
    assert isinstance(made, Decision)
    assert made.action is Action.ESCALATE
    assert made.ticket is not None
    assert joined(shown)
    assert sum(isinstance(event, Retraction) for event in shown) == 1


def test_blocked_answer_of_a_real_model_is_stopped_early(
    tier: Tier, queue: InMemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each unfinished answer is convincingly bad, as far as this follower goes: the model is a real one."""
    monkeypatch.setattr("ilis_guard.cascade.cascade.EarlyStopper", Impatient)
    (made,) = guard(tier, queue, 0.0001).stream(UNKNOWN, mode="early_stop")
    assert isinstance(made, Decision)
    (attempt,) = made.attempts
    assert attempt.stopped_at == attempt.tokens == PATIENCE
    assert attempt.finish_reason is None
    assert len(attempt.text) < len(guard(tier, queue, 0.0001).decide(UNKNOWN).attempts[0].text)
    assert threads() == set()


class Impatient:
    """The real one, to which every score counts."""

    def __new__(cls, **parts: Any) -> Any:
        from ilis_guard.cascade.early_stop import EarlyStopper

        return EarlyStopper(**parts, convincing=0.0)


def test_closing_a_stream_stops_a_real_model_and_frees_its_place(
    tier: Tier, queue: InMemoryQueue, smollm2_full: "LocalModel"
) -> None:
    passes: list[int] = []
    embedding = smollm2_full._model.get_input_embeddings()
    handle = watch(embedding, lambda *_: passes.append(1))
    try:
        with closing(guard(tier, queue, 0.99).stream(KNOWN, mode="optimistic")) as stream:
            assert isinstance(next(stream), TextDelta)
        assert threads() == set()
        assert queue.list() == []
        seen = len(passes)
        assert guard(tier, queue, 0.99).decide(KNOWN).action is Action.ANSWER
        assert len(passes) > seen
    finally:
        handle.remove()


async def test_cancelling_a_stream_stops_a_real_model_at_its_next_token(
    tier: Tier, queue: InMemoryQueue, smollm2_full: "LocalModel"
) -> None:
    passed = threading.Semaphore(0)
    passes: list[int] = []

    def count(*_: Any) -> None:
        passes.append(1)
        passed.release()

    handle = watch(smollm2_full._model.get_input_embeddings(), count)
    watched = guard(tier, queue, 0.99)

    async def read_all() -> None:
        async with aclosing(watched.astream(KNOWN)) as stream:
            async for _ in stream:
                raise AssertionError("it was to be cancelled before")

    try:
        task = asyncio.create_task(read_all())
        await asyncio.to_thread(passed.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(join_all)
        whole = watched.decide(KNOWN).attempts[0].tokens
        assert whole is not None
        assert len(passes) - whole < whole
    finally:
        handle.remove()
    assert len(queue.list()) == 1  # the whole answer's audit, and none of the one that was left


async def test_real_streams_side_by_side_dont_mix(tier: Tier, queue: InMemoryQueue) -> None:
    watched = guard(tier, queue, 0.99)
    alone = {question: watched.decide(question).attempts[0].text for question in (KNOWN, UNKNOWN)}

    async def text(question: str) -> str:
        *_, made = [event async for event in watched.astream(question, mode="optimistic")]
        assert isinstance(made, Decision)
        return made.attempts[0].text

    asked = [KNOWN, UNKNOWN, KNOWN, UNKNOWN]
    assert await asyncio.gather(*map(text, asked)) == [alone[question] for question in asked]


def test_retry_of_a_real_model_sends_nothing_twice(
    tier: Tier, queue: InMemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = guard(tier, queue, 0.99).decide(KNOWN).text
    model: Any = tier.model
    broken: list[int] = []
    stream = model.stream

    def breaks_off_once(messages: Any) -> Any:
        for count, step in enumerate(stream(messages)):
            if count == 4 and not broken:
                broken.append(count)
                raise TransientModelError("the connection broke")
            yield step

    monkeypatch.setattr(model, "stream", breaks_off_once)
    monkeypatch.setattr("ilis_guard.concurrency.cancellation.CancelToken.sleep", lambda *_: None)
    shown = list(guard(tier, queue, 0.99).stream(KNOWN, mode="optimistic"))
    *_, retraction, made = shown
    assert retraction == Retraction(reason="attempt_failed")
    assert isinstance(made, Decision)
    assert (made.action, made.text) == (Action.ANSWER, whole)
    assert joined(shown) != whole
