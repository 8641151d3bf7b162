"""A decision may have an id of its caller's, under which it is made once, however often it is asked for."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from ilis_guard import Guard, Policy, Tier, events
from ilis_guard.cascade.idempotency import MAX_REMEMBERED
from ilis_guard.cascade.settlement import Settlement
from ilis_guard.errors import ClientDisconnected, QueueStorageError, RequestConflictError, ReviewError
from ilis_guard.review import ReviewQueue
from ilis_guard.review.decisions import KEEP_SECONDS
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Action, Decision, Generation, Message, Ticket, Verdict
from tests.reviewing import Clock

QUESTION: Final = "What is the boiling point of gallium?"
ANSWERING: Final = "version: 1\nname: p\nrules: [{id: any, when: uncertainty <= 1.0, do: answer}]\n"


def calls(guard: Guard) -> int:
    return sum(len(tier.model.calls) for tier in guard.tiers if isinstance(tier.model, FakeModel))


def test_a_decision_has_the_id_that_the_caller_brings_and_one_ticket() -> None:
    with InMemoryQueue() as queue:
        guard = fake_guard("default", {"small": 0.5}, review=queue)
        first, again = (guard.decide(QUESTION, id="order-17") for _ in range(2))
        assert first.id == again.id == "order-17"
        assert first.ticket is not None
        assert again.ticket is not None
        assert first.ticket.id == again.ticket.id
        assert len(queue.list()) == 1
        assert calls(guard) == 1


@pytest.mark.parametrize("uncertainty", [0.1, 0.5, 0.95], ids=["answered", "escalated", "abstained"])
@pytest.mark.parametrize("policy", ["default", "customer-support", "cost-first"])
def test_the_same_decision_is_the_same_in_all_its_parts(policy: str, uncertainty: float) -> None:
    prompts = {"small": 0.2} if policy == "cost-first" else None
    with fake_guard(policy, {"small": uncertainty, "large": uncertainty}, prompts=prompts) as guard:
        first = guard.decide(QUESTION, labels={"topic": "chemistry", "vip": True}, id="order-17")
        before = calls(guard)
        again = guard.decide(QUESTION, labels={"topic": "chemistry", "vip": True}, id="order-17")
        assert again.to_dict() == first.to_dict()
        assert again.rulings == first.rulings
        for one, other in zip(again.attempts, first.attempts, strict=True):
            assert {name: each.dtype for name, each in one.signatures.items()} == {
                name: each.dtype for name, each in other.signatures.items()
            }
        assert calls(guard) == before


async def test_by_every_entrance() -> None:
    with fake_guard("default", {"small": 0.1}) as guard:
        made = [
            guard.decide(QUESTION, id="a"),
            await guard.adecide(QUESTION, id="a"),
            list(guard.stream(QUESTION, id="a"))[-1],
            [event async for event in guard.astream(QUESTION, id="a", mode="optimistic")][-1],
        ]
        assert len({one.created_at for one in made if isinstance(one, Decision)}) == 1
        assert calls(guard) == 1


def test_decisions_have_ids_of_their_own() -> None:
    guard = fake_guard("default", {"small": 0.1})
    assert guard.decide(QUESTION).id != guard.decide(QUESTION).id


@pytest.mark.parametrize("changed", [{"prompt": "Who?"}, {"labels": {"a": 1}}, {"stop": ["."]}], ids=str)
@pytest.mark.parametrize("uncertainty", [0.1, 0.5], ids=["answered", "escalated"])
async def test_an_id_with_another_request_is_an_error(changed: dict[str, Any], uncertainty: float) -> None:
    with fake_guard("default", {"small": uncertainty}) as guard:
        guard.decide(QUESTION, id="order-17")
        prompt = changed.get("prompt", QUESTION)
        options = {name: value for name, value in changed.items() if name != "prompt"}
        entrances: list[Callable[[], Any]] = [
            lambda: guard.decide(prompt, **options, id="order-17"),
            lambda: list(guard.stream(prompt, **options, id="order-17")),
            lambda: guard.without_models("late").decide(prompt, **options, id="order-17"),
        ]
        for entrance in entrances:
            with pytest.raises(RequestConflictError, match="give each request an id of its own"):
                entrance()
        with pytest.raises(RequestConflictError):
            await guard.adecide(prompt, **options, id="order-17")
        assert calls(guard) == 1


def test_ticket_is_found_by_decision() -> None:
    with InMemoryQueue() as queue:
        decision = fake_guard("default", {"small": 0.5}, review=queue).decide(QUESTION, id="order-17")
        assert decision.ticket is not None
        assert queue.of_decision("order-17") == queue.get(decision.ticket.id)
        assert queue.of_decision("order-18") is None


def test_guard_has_its_queue_as_review() -> None:
    with InMemoryQueue() as queue:
        guard = fake_guard("default", {"small": 0.5}, review=queue)
        assert guard.review is queue
        assert isinstance(guard.review, ReviewQueue)


async def test_a_returned_decisions_ticket_is_as_it_is_by_now() -> None:
    with InMemoryQueue() as queue:
        guard = fake_guard("default", {"small": 0.5}, review=queue)
        first = guard.decide(QUESTION, id="order-17")
        assert first.ticket is not None
        queue.resolve(first.ticket.id, Verdict.REJECT)
        again = guard.decide(QUESTION, id="order-17")
        assert again.ticket is not None
        assert (again.action, again.ticket.verdict) == (Action.ESCALATE, Verdict.REJECT)
        assert (await again.ticket.wait(60)).ended_at is not None


def test_a_decision_is_kept_for_a_day_and_its_ticket_longer() -> None:
    clock = Clock()
    with InMemoryQueue(clock=clock) as queue:
        guard = fake_guard("default", {"small": 0.5}, review=queue)
        first = guard.decide(QUESTION, id="order-17")
        clock.now += KEEP_SECONDS
        assert guard.decide(QUESTION, id="order-17").created_at == first.created_at
        clock.now += 1
        later = guard.decide(QUESTION, id="order-17")
        assert later.created_at > first.created_at
        assert (later.ticket is not None, len(queue.list()), calls(guard)) == (True, 1, 2)
        clock.now += KEEP_SECONDS + 1
        with pytest.raises(RequestConflictError, match="has a ticket of another request"):
            guard.decide("Who?", id="order-17")
        # What is old enough goes when others come.
        guard.decide("Who?", id="order-18")
        assert queue.find_decision("order-17") is None
        assert queue.find_decision("order-18") is not None


@pytest.mark.parametrize("change", ["redact", "purge"])
def test_redaction_and_purging_forget_decisions(change: str) -> None:
    clock = Clock()
    with InMemoryQueue(clock=clock) as queue:
        guard = fake_guard("default", {"small": 0.5}, review=queue)
        made = guard.decide(QUESTION, id="order-17")
        assert made.ticket is not None
        queue.resolve(made.ticket.id, Verdict.ACCEPT)
        clock.now += 100
        assert getattr(queue, change)(older_than=50) == 1
        assert queue.find_decision("order-17") is None


class Slow(FakeModel):
    """Answers when it is let, once for each time."""

    def __init__(self) -> None:
        super().__init__("2403 °C")
        self.let = threading.Semaphore(0)
        self.began = threading.Semaphore(0)

    def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
        self.began.release()
        self.let.acquire()
        return super().generate(messages, **options)


def slow_guard(review: Any = None) -> tuple[Guard, Slow]:
    model = Slow()
    tier = Tier(name="small", model=model, scorer=FixedScorer(0.1))
    return Guard(tiers=[tier], policy=Policy.parse(ANSWERING), review=review), model


@pytest.mark.parametrize("has_queue", [False, True])
def test_requests_that_come_together_are_decided_once(has_queue: bool) -> None:
    guard, model = slow_guard(InMemoryQueue() if has_queue else None)
    with ThreadPoolExecutor(8) as threads:
        made = [threads.submit(guard.decide, QUESTION, id="order-17") for _ in range(8)]
        model.began.acquire()
        with pytest.raises(RequestConflictError):
            guard.decide("Who?", id="order-17")
        model.let.release()
        assert len({one.result().created_at for one in made}) == 1
    assert calls(guard) == 1


async def test_whoever_waits_takes_over_from_one_that_was_given_up() -> None:
    guard, model = slow_guard()
    first = asyncio.create_task(guard.adecide(QUESTION, id="order-17"))
    await asyncio.to_thread(model.began.acquire)
    second = asyncio.create_task(guard.adecide(QUESTION, id="order-17"))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    # The first one's model still works.
    await asyncio.to_thread(model.began.acquire)
    model.let.release(2)
    assert (await second).text == "2403 °C"
    assert (await guard.adecide(QUESTION, id="order-17")).created_at == (await second).created_at


def test_whoever_waits_may_be_given_up_too() -> None:
    guard, model = slow_guard()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(guard.decide, QUESTION, id="order-17")
        model.began.acquire()
        settlement = Settlement()
        second = threads.submit(guard.decide, QUESTION, id="order-17", settlement=settlement)
        settlement.cancel()
        with pytest.raises(ClientDisconnected):
            second.result()
        model.let.release()
        assert first.result().text == "2403 °C"


def test_without_a_database_the_newest_decisions_are_remembered() -> None:
    tier = Tier(name="small", model=FakeModel("2403 °C"), scorer=FixedScorer(0.1))
    guard = Guard(tiers=[tier], policy=Policy.parse(ANSWERING))
    for number in range(MAX_REMEMBERED + 1):
        guard.decide(QUESTION, id=f"id-{number}")
    before = calls(guard)
    guard.decide(QUESTION, id="id-1")
    assert calls(guard) == before
    guard.decide("Forgotten, so it is another's.", id="id-0")
    assert calls(guard) == before + 1
    with pytest.raises(RequestConflictError):
        guard.decide(QUESTION, id="id-0")


def test_a_decision_that_lacks_its_ticket_is_not_remembered() -> None:
    class Flaky:
        """A queue of the user's own, whose disk is full at first."""

        def __init__(self) -> None:
            self.errors: list[Exception] = [ReviewError("the disk is full")]

        def escalate(self, **_: Any) -> Ticket:
            if self.errors:
                raise self.errors.pop()
            return Ticket(id="1", queue="default", state="open", created_at=0.0)

        def close(self) -> None:
            """Nothing to release."""

    guard = fake_guard("default", {"small": 0.5}, review=Flaky())
    made = [guard.decide(QUESTION, id="order-17") for _ in range(3)]
    assert [one.action for one in made] == [Action.ABSTAIN, Action.ESCALATE, Action.ESCALATE]
    assert made[1] is made[2]
    assert calls(guard) == 2


def test_an_answer_is_given_though_it_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise QueueStorageError("the disk is full")

    with fake_guard("default", {"small": 0.1}) as guard, monkeypatch.context() as patched:
        patched.setattr(ReviewQueue, "record_decision", broken)
        patched.setattr(ReviewQueue, "find_decision", broken)
        with capture_logs() as entries:
            assert guard.decide(QUESTION, id="order-17").text == "answer of small"
    logged = [entry["event"] for entry in entries]
    assert events.DECISION_NOT_FOUND in logged
    assert events.DECISION_NOT_RECORDED in logged
