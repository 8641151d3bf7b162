"""The public API as a typed program uses it. mypy checks this file; nobody runs it, and pytest doesn't collect it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import numpy as np
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from numpy.typing import NDArray

from ilis_guard import (
    Action,
    Attempt,
    Decision,
    Facts,
    Generation,
    Guard,
    IlisGuardError,
    Message,
    Policy,
    Request,
    Retraction,
    ReviewQueue,
    Ruling,
    Score,
    Statistics,
    StreamEvent,
    StreamMode,
    TextDelta,
    Ticket,
    Tier,
    Verdict,
    __version__,
)
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Fingerprint
from ilis_guard_langchain import ChatIlisGuard, GuardedRunnable, Refused, wrap


class OwnModel:
    """A user's model has no base class."""

    fingerprint: Fingerprint | None = None

    def generate(self, messages: Sequence[Message]) -> Generation:
        text = messages[-1].content.upper()
        return Generation(text=text, tokens=1, prompt_tokens=1, finish_reason="stop", seconds=0.1)


class OwnScorer:
    """A user's scorer has none either."""

    def score(self, generation: Generation) -> Score:
        return Score(uncertainty=1 / (1 + (generation.tokens or 0)), typicality=1.0)


def answers(path: Path) -> str:
    with Guard.from_config(path) as guard:
        assert_type(guard, Guard)
        decision = guard.decide("What is the capital of Norway?", labels={"topic": "geography", "vip": True, "n": 1})
    assert_type(decision, Decision)
    assert_type(guard.decide("What is the capital of Norway?", stop=["\n"]), Decision)
    assert_type(decision.action, Action)
    assert_type(decision.uncertainty, float | None)
    assert_type(decision.attempts, tuple[Attempt, ...])
    assert_type(decision.attempts[0].statistics, Statistics | None)
    assert_type(decision.ticket, Ticket | None)
    assert_type(decision.rule, str | None)
    return decision.text if decision.action is Action.ANSWER else ""


def conversations(guard: Guard) -> None:
    guard.decide([{"role": "user", "content": "?"}])
    guard.decide([Message(role="system", content="Be brief."), Message(role="user", content="?")])
    guard.decide([{"role": "user", "content": "?"}], labels={"topic": "x"})
    guard.decide(7)  # type: ignore[arg-type]
    guard.decide("?", labels={"topic": ["x"]})  # type: ignore[dict-item]
    Message(role="tool", content="?")  # type: ignore[arg-type]
    assert_type(Request.of("?").prompt, str)


async def awaits(guard: Guard) -> tuple[Decision, Decision]:
    return await asyncio.gather(guard.adecide("?"), guard.adecide("!"))


def shows(guard: Guard, mode: StreamMode) -> str:
    text = ""
    for event in guard.stream("?", mode=mode):
        assert_type(event, StreamEvent)
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, Retraction):
            text = event.reason
        else:
            assert_type(event, Decision)
    guard.stream("?", mode="fast")  # type: ignore[arg-type]
    return text


async def shows_on(guard: Guard) -> list[StreamEvent]:
    return [event async for event in guard.astream("?", labels={"topic": "x"})]


async def waits(guard: Guard, queue: ReviewQueue) -> Verdict | None:
    decision = await guard.adecide("?")
    if decision.ticket is None:
        return None
    assert_type(await queue.wait(decision.ticket.id, timeout=1.0), Ticket)
    return (await decision.ticket.wait(timeout=60)).verdict


def builds(url: str) -> Guard:
    policy = Policy.load("default")
    tiers = [Tier(name="own", model=OwnModel(), scorer=OwnScorer()), Tier(name="fake", model=FakeModel("x"))]
    Tier(name="wrong", model=OwnScorer())  # type: ignore[arg-type]
    return Guard(tiers=tiers, policy=policy, review=ReviewQueue(url))


def rules() -> Ruling:
    ruling = Policy.parse("...").evaluate(Facts(uncertainty=0.1, labels={"topic": "legal"}))
    assert_type(ruling.action, Action)
    ruling.say = "x"  # type: ignore[misc]
    return ruling


def reviews(queue: ReviewQueue) -> None:
    for ticket in queue.list(state="open", queue="legal"):
        assert_type(queue.get(ticket.id).proposed, str | None)
        assert_type(queue.resolve(ticket.id, Verdict.CORRECT, text="Oslo", reviewer="ada"), Ticket)
    queue.list(state="closed")  # type: ignore[arg-type]
    if (mine := queue.claim_next(reviewer="ada", queue="legal")) is not None:
        assert_type(queue.renew(mine.id, reviewer="ada").claimed_until, float | None)
        queue.release(mine.id, reviewer="ada")
    assert_type(queue.sweep(), int)


def tests_of_their_own() -> None:
    guard = fake_guard(Path("policy.yaml"), {"small": 0.9, "large": Score(uncertainty=0.1, typicality=0.5), "x": None})
    assert_type(guard, Guard)
    model = FakeModel({"a": "b", "c": TimeoutError()})
    assert_type(model.calls, list[tuple[Message, ...]])
    FakeModel(["a", RuntimeError("b")])
    FixedScorer([0.1, Score(uncertainty=0.1, typicality=0.5), ValueError()])
    with InMemoryQueue() as queue:
        reviews(queue)


def signatures(attempt: Attempt) -> NDArray[np.float32]:
    found = attempt.signature
    return np.zeros((0, 0), np.float32) if found is None else found


def errors() -> str:
    try:
        return __version__
    except IlisGuardError as error:
        assert_type(error.is_retryable, bool)
        return str(error)


def wrapped(guard: Guard) -> str:
    guarded = wrap(RunnableLambda(str.upper), guard, tier="small", labels={"topic": "geography"}, as_output=str)
    assert_type(guarded, GuardedRunnable)
    output = guarded.invoke("capital of Norway?")
    return output.text if isinstance(output, Refused) else str(output)


def chats(path: Path) -> str:
    chat = ChatIlisGuard.from_config(path, labels={"topic": "geography"}, stream_mode="optimistic")
    assert_type(chat, ChatIlisGuard)
    assert_type(chat.guard, Guard)
    message = chat.invoke("What is the capital of Norway?", stop=["\n"])
    assert_type(message, AIMessage)
    return message.text
