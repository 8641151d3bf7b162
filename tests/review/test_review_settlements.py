"""A request is given up or committed, never both: the one leaves no ticket, the other one ticket with its answer."""

import asyncio
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from typing import Any, Final

import pytest

from ilis_guard import Guard, Policy, ReviewQueue, Tier
from ilis_guard.cascade.settlement import Settlement
from ilis_guard.errors import ClientDisconnected, TicketPendingError
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard.types import Action, Decision, ErrorInfo, Ticket
from tests.locks import WatchedQueue, locked

QUESTION: Final = "What is the boiling point of gallium?"
ANSWER: Final = "2400 °C perhaps"
POLICY: Final = "version: 1\nname: p\nrules: [{id: ask, do: escalate, say: A person will look at it.}]\n"
HUNDREDS: Final = 200
AUDITING: Final = """
version: 1
name: p
audit: {fraction: 1.0, queue: audits}
rules: [{id: any, when: uncertainty <= 1.0, do: answer}]
"""


def guard_of(queue: Any, policy: str = POLICY) -> Guard:
    tier = Tier(name="small", model=FakeModel(ANSWER), scorer=FixedScorer(0.5))
    return Guard(tiers=[tier], policy=Policy.parse(policy), review=queue)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("ilis-guard-stream", "ilis-guard-call")]


def ended() -> None:
    """Wait until nothing decides any more."""
    for thread in workers():
        thread.join()


@pytest.fixture
def queue(url: str) -> Iterator[WatchedQueue]:
    with WatchedQueue(url) as one:
        yield one


def proposed(queue: ReviewQueue) -> list[str | None]:
    return [queue.get(ticket.id).proposed for ticket in queue.list(limit=1000)]


async def read(guard: Guard, **options: Any) -> Decision:
    async with aclosing(guard.astream(QUESTION, **options)) as events:
        made = [event async for event in events][-1]
    assert isinstance(made, Decision)
    return made


async def test_streams_that_are_cancelled_while_their_tickets_wait_for_a_lock_leave_none(
    url: str, queue: WatchedQueue
) -> None:
    guard = guard_of(queue)
    with locked(url):
        tasks = [asyncio.create_task(read(guard)) for _ in range(20)]
        for _ in tasks:
            await asyncio.to_thread(queue.began.acquire)
        for task in tasks:
            task.cancel()
        assert {type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)} == {asyncio.CancelledError}
    await asyncio.to_thread(ended)
    assert queue.list() == []
    # The queue itself goes on.
    assert (await read(guard)).ticket is not None


async def test_a_cancelled_decision_leaves_no_ticket_either(url: str, queue: WatchedQueue) -> None:
    with locked(url):
        task = asyncio.create_task(guard_of(queue).adecide(QUESTION))
        await asyncio.to_thread(queue.began.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(ended)
    assert queue.list() == []


def test_a_closed_stream_leaves_no_ticket(url: str, queue: WatchedQueue) -> None:
    settlement = Settlement()
    seen: list[BaseException] = []

    def reads() -> None:
        try:
            guard_of(queue).decide(QUESTION, settlement=settlement)
        except ClientDisconnected as gone:
            seen.append(gone)

    thread = threading.Thread(target=reads)
    with locked(url):
        thread.start()
        queue.began.acquire()
        settlement.cancel()
    thread.join()
    assert len(seen) == 1
    assert queue.list() == []


@pytest.mark.parametrize("policy", [POLICY, AUDITING], ids=["escalated", "audited"])
async def test_a_request_whose_time_is_over_while_its_ticket_is_stored_has_that_ticket(
    url: str, queue: WatchedQueue, policy: str
) -> None:
    guard, settlement = guard_of(queue, policy), Settlement()
    with locked(url):
        task = asyncio.create_task(read(guard, settlement=settlement, id="order-17"))
        await asyncio.to_thread(queue.began.acquire)
        pending = settlement.expire()
        # Now it can't be given up any more, not even by leaving.
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await asyncio.to_thread(ended)
    assert pending is not None
    assert pending.ticket is None
    assert pending.ticket_error is not None
    assert pending.ticket_error.kind == "TicketPendingError"
    expected = (Action.ABSTAIN, "") if policy is POLICY else (Action.ANSWER, ANSWER)
    assert (pending.action, pending.text) == expected
    assert proposed(queue) == [ANSWER]
    # Whoever asks again learns how it ended.
    again = guard.decide(QUESTION, id="order-17")
    assert again.ticket is not None
    assert again.ticket_error is None
    assert (again.id, again.ticket.id) == (pending.id, queue.list()[0].id)


async def test_a_request_whose_time_is_over_before_its_decision_has_none(queue: WatchedQueue) -> None:
    settlement = Settlement()
    assert settlement.expire() is None
    with pytest.raises(ClientDisconnected):
        await read(guard_of(queue), settlement=settlement)
    assert queue.list() == []


async def test_hundreds_of_streams_cancelled_at_any_time_are_given_up_or_committed(queue: WatchedQueue) -> None:
    """By its settlement, each was one of the two; and so says the queue."""
    guard, draw = guard_of(queue), random.Random(17)
    settlements = {f"id-{number}": Settlement() for number in range(HUNDREDS)}
    made: dict[str, Decision] = {}

    async def reads(key: str) -> None:
        made[key] = await read(guard, settlement=settlements[key], id=key)

    for start in range(0, HUNDREDS, 10):
        tasks = [asyncio.create_task(reads(key)) for key in list(settlements)[start : start + 10]]
        await asyncio.to_thread(queue.began.acquire, timeout=draw.random() / 20)
        for task in tasks:
            await asyncio.sleep(draw.random() / 100)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(ended)
    tickets = {record.decision: record for record in (queue.get(one.id) for one in queue.list(limit=1000))}
    assert len(tickets) == len(queue.list(limit=1000))
    assert set(tickets) == {key for key, one in settlements.items() if not one.cancel_token.is_cancelled}
    assert {record.proposed for record in tickets.values()} <= {ANSWER}
    assert set(made) <= set(tickets)
    for key, one in made.items():
        assert one.ticket is not None
        assert one.ticket.id == tickets[key].ticket.id
    # The decision of a committed one is kept, whoever read it.
    for key in tickets:
        assert guard.decide(QUESTION, id=key).ticket is not None
    assert len(queue.list(limit=1000)) == len(tickets)


def test_a_queue_without_transactions_has_no_half_either() -> None:
    stored: list[str] = []

    class Plain:
        def escalate(self, *, decision: str, **_: Any) -> Ticket:
            settlement.cancel()
            stored.append(decision)
            return Ticket(id="1", queue="q", state="open", created_at=0.0)

        def close(self) -> None:
            """Nothing to release."""

    settlement = Settlement()
    made = guard_of(Plain()).decide(QUESTION, settlement=settlement)
    assert made.ticket is not None
    assert stored == [made.id]


def test_of_leaving_and_committing_the_first_counts() -> None:
    left, committed = Settlement(), Settlement()
    left.cancel()
    with pytest.raises(ClientDisconnected):
        left.commit()
    committed.commit()
    committed.cancel()
    assert not committed.cancel_token.is_cancelled
    assert ErrorInfo.of(TicketPendingError("x")).message.startswith("The request was still being put before a person")


PROGRAM: Final = """
import sys
from ilis_guard import Guard, Policy, ReviewQueue, Tier
from ilis_guard.testing import FakeModel, FixedScorer
tier = Tier(name="small", model=FakeModel({answer!r}), scorer=FixedScorer(0.5))
with ReviewQueue(sys.argv[1]) as queue:
    guard = Guard(tiers=[tier], policy=Policy.parse({policy!r}), review=queue)
    for number in range(10_000):
        made = guard.decide({question!r}, id=f"id-{{number}}")
        print(number, made.ticket.id, flush=True)
"""


@pytest.mark.usefixtures("process")
def test_decisions_under_their_ids_survive_kill_9(url: str) -> None:
    code = PROGRAM.format(answer=ANSWER, policy=POLICY, question=QUESTION)
    confirmed: dict[str, str] = {}
    for count in (3, 7):
        with subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            lines = [next(running.stdout).split() for _ in range(count)]
            running.send_signal(signal.SIGKILL)
            lines += [line.split() for line in running.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        for number, ticket in lines:
            # What was confirmed before the last kill is the same after it.
            assert confirmed.setdefault(number, ticket) == ticket
    with ReviewQueue(url) as queue:
        tickets = queue.list(limit=10_000)
        assert {ticket.id for ticket in tickets} >= set(confirmed.values())
        assert len({queue.get(ticket.id).decision for ticket in tickets}) == len(tickets)
        # A ticket and the decision that it belongs to are committed together.
        for stored in tickets:
            record = queue.find_decision(queue.get(stored.id).decision)
            assert record is not None
            assert record.ticket == stored


def test_what_is_raised_before_a_commit_undoes_all_of_it(queue: WatchedQueue) -> None:
    def refuse() -> None:
        raise ClientDisconnected("gone")

    made = guard_of(queue).decide(QUESTION, id="kept")
    record = queue.find_decision("kept")
    assert record is not None
    stored: list[Callable[[], Any]] = [
        lambda: queue.record_decision(type(record)(id="other", digest="x", values={}), before_commit=refuse),
        lambda: queue.escalate(
            decision="other",
            request=guard_of(queue)._request(QUESTION, None, ()),
            attempts=made.attempts,
            queue="q",
            policy="p",
            rule=None,
            decision_record=type(record)(id="other", digest="x", values={}),
            before_commit=refuse,
        ),
    ]
    for store in stored:
        with pytest.raises(ClientDisconnected):
            store()
    assert queue.find_decision("other") is None
    assert len(queue.list()) == 1
