"""Waiting for a ticket's verdict."""

import asyncio
import copy
import json
import pickle
from dataclasses import replace

import pytest

from ilis_guard.errors import ReviewError, TicketNotFoundError
from ilis_guard.review import ReviewQueue, queue as queue_module
from ilis_guard.testing import fake_guard
from ilis_guard.types import Ticket, Verdict
from tests.reviewing import Clock, put


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_MIN_POLL_SECONDS", 0.001)
    monkeypatch.setattr(queue_module, "_MAX_POLL_SECONDS", 0.01)


async def test_the_waiting_caller_gets_the_verdict(review: ReviewQueue) -> None:
    ticket = put(review, "d")
    waiting = asyncio.create_task(ticket.wait())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    resolved = await asyncio.to_thread(review.resolve, ticket.id, Verdict.CORRECT, text="2403 °C")
    assert await waiting == resolved
    assert await ticket.wait(timeout=0.5) == await review.wait(ticket.id[:8]) == resolved


async def test_the_verdict_may_come_from_another_process(review: ReviewQueue, url: str) -> None:
    ticket = put(review, "d")
    with ReviewQueue(url) as elsewhere:
        resolved = elsewhere.resolve(ticket.id, Verdict.REJECT)
    assert await ticket.wait() == resolved


async def test_an_expired_ticket_has_ended_without_a_verdict(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d", due=60.0)
    clock.now += 60
    timed.sweep()
    ended = await ticket.wait()
    assert (ended.state, ended.verdict) == ("expired", None)


async def test_waiting_has_an_end(review: ReviewQueue) -> None:
    ticket = put(review, "d")
    with pytest.raises(TimeoutError):
        await ticket.wait(timeout=0.03)
    with pytest.raises(TicketNotFoundError):
        await review.wait("0" * 32)


async def test_a_ticket_without_its_queue_names_the_method_to_wait_with(review: ReviewQueue) -> None:
    ticket = put(review, "d")
    copies = [pickle.loads(pickle.dumps(ticket)), copy.deepcopy(ticket), Ticket(**ticket.to_dict())]
    for alone in copies:
        assert alone == ticket
        with pytest.raises(ReviewError, match=rf"wait with ReviewQueue.wait\('{ticket.id}'\)"):
            await alone.wait()
    assert json.loads(json.dumps(ticket.to_dict())) == ticket.to_dict()
    assert "wait" not in ticket.to_dict()
    assert "wait" not in repr(ticket)
    assert replace(ticket, queue="q").waiter == ticket.waiter


async def test_a_decision_leads_to_its_verdict(url: str) -> None:
    with fake_guard("clinical", {"small": 0.9}, review=ReviewQueue(url)) as guard:
        decision = await guard.adecide("Is it safe?")
        assert decision.ticket is not None
        with ReviewQueue(url) as reviewers:
            reviewers.resolve(decision.ticket.id, Verdict.ACCEPT, reviewer="ada")
        ended = await decision.ticket.wait(timeout=10)
    assert (ended.verdict, ended.state) == (Verdict.ACCEPT, "resolved")
