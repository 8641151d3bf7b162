"""Overdue tickets expire or move to another queue, exactly once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from structlog.testing import capture_logs

from ilis_guard.config.review import QueueSettings, overdue_cycle
from ilis_guard.errors import ReviewError
from ilis_guard.review import QueueCounts, ReviewQueue
from ilis_guard.types import Verdict
from tests.reviewing import Clock, put

QUEUES = [
    QueueSettings(name="chemists", priority=2, due=3600.0, overdue="seniors"),
    QueueSettings(name="seniors", priority=1, due=600.0, overdue="head"),
]


@pytest.fixture
def chain(url: str, clock: Clock) -> Any:
    """Chemists' overdue tickets go to seniors, theirs to the head, where they wait for as long as it takes."""
    with ReviewQueue(url, clock=clock, queues=QUEUES) as queue:
        yield queue


def test_a_ticket_without_a_due_time_never_expires(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d")
    clock.now += 1e9
    assert timed.sweep() == 0
    assert timed.list() == [ticket]
    assert (ticket.due_at, ticket.priority, timed.get(ticket.id).overdue) == (None, 0, "expire")


def test_a_queues_settings_apply_to_its_tickets(chain: ReviewQueue, clock: Clock) -> None:
    ticket = put(chain, "d")
    assert (ticket.due_at, ticket.priority, chain.get(ticket.id).overdue) == (clock.now + 3600, 2, "seniors")
    other = put(chain, "e", due=60.0, priority=7, overdue="expire")
    assert (other.due_at, other.priority, chain.get(other.id).overdue) == (clock.now + 60, 7, "expire")
    # Zero is a priority, and not none.
    assert put(chain, "f", priority=0).priority == 0


def test_an_overdue_ticket_expires_without_a_verdict(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d", due=60.0)
    clock.now += 59.9
    assert timed.sweep() == 0
    clock.now += 0.2
    with capture_logs() as logged:
        assert timed.sweep() == 1
        assert timed.sweep() == 0
    record = timed.get(ticket.id)

    assert (record.ticket.state, record.ticket.verdict, record.ticket.ended_at) == ("expired", None, clock.now)
    assert [(entry.type, entry.by, entry.details) for entry in record.history[1:]] == [
        ("expired", "", {"was_due_at": ticket.due_at})
    ]
    assert logged == [
        {
            "event": "ilis_guard.ticket.overdue",
            "ticket": ticket.id,
            "queue": "chemists",
            "overdue": "expire",
            "log_level": "info",
        }
    ]
    assert put(timed, "d") == record.ticket


def test_an_overdue_ticket_moves_on_and_waits_by_its_new_queues_rules(chain: ReviewQueue, clock: Clock) -> None:
    opened = put(chain, "d")
    clock.now += 3600
    assert chain.sweep() == 1
    moved = chain.get(opened.id)
    assert (moved.ticket.queue, moved.ticket.state, moved.ticket.version) == ("seniors", "open", 2)
    assert (moved.ticket.due_at, moved.overdue) == (clock.now + 600, "head")
    assert moved.ticket.priority == 2, "a ticket that has waited too long doesn't become less urgent"
    assert moved.history[-1].details == {
        "was_due_at": opened.due_at,
        "moved_from": "chemists",
        "moved_to": "seniors",
    }

    clock.now += 600
    assert chain.sweep() == 1
    last = chain.get(opened.id).ticket
    assert (last.queue, last.due_at) == ("head", None)
    clock.now += 1e9
    assert chain.sweep() == 0
    assert chain.resolve(opened.id, Verdict.ACCEPT).state == "resolved"


def test_a_claimed_overdue_ticket_may_be_finished(timed: ReviewQueue, clock: Clock) -> None:
    finished, dropped = put(timed, "d", due=60.0), put(timed, "e", due=60.0)
    timed.claim(finished.id, reviewer="ada", lease=120)
    timed.claim(dropped.id, reviewer="bob", lease=120)
    clock.now += 60
    assert timed.sweep() == 0
    assert timed.counts() == [QueueCounts(queue="chemists", open=0, claimed=2, overdue=2, resolved=0, expired=0)]
    timed.resolve(finished.id, Verdict.ACCEPT, reviewer="ada")
    clock.now += 60
    assert timed.sweep() == 1
    assert timed.get(dropped.id).ticket.state == "expired"
    assert timed.get(finished.id).ticket.state == "resolved"


def test_a_clock_that_goes_back_brings_no_ticket_back(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d", due=60.0)
    clock.now += 60
    timed.sweep()
    clock.now -= 3600
    assert timed.sweep() == 0
    assert timed.get(ticket.id).ticket.state == "expired"
    assert [entry.type for entry in timed.get(ticket.id).history] == ["created", "expired"]


def test_several_sweep_at_once_and_each_ticket_expires_once(timed: ReviewQueue, clock: Clock) -> None:
    tickets = [put(timed, f"d{number}", due=60.0) for number in range(250)]
    clock.now += 60
    with ThreadPoolExecutor(4) as threads:
        swept = list(threads.map(lambda _: timed.sweep(), range(4)))
    assert sum(swept) == len(tickets)
    for ticket in tickets:
        assert [entry.type for entry in timed.get(ticket.id).history] == ["created", "expired"]


@pytest.mark.parametrize("name", [" a", "a\nb", "x" * 500, "expire ", "医生"])
def test_a_queue_may_have_any_name(timed: ReviewQueue, clock: Clock, name: str) -> None:
    """What guard.yaml couldn't write, a program may; nothing escalated is refused for its queue's name."""
    ticket = put(timed, "d", queue=name, due=60.0, overdue=name + "!")
    assert timed.claim_next(reviewer="ada", queue=name, lease=1) is not None
    clock.now += 60
    assert timed.sweep() == 1
    moved = timed.get(ticket.id)
    assert (moved.ticket.queue, moved.ticket.due_at, moved.overdue) == (name + "!", None, "expire")


@pytest.mark.parametrize("due", [0, -1.0, float("nan"), float("inf"), 1e12])
def test_a_due_time_lies_ahead(timed: ReviewQueue, due: float) -> None:
    with pytest.raises(ReviewError, match="due in more than 0 seconds"):
        put(timed, "d", due=due)
    assert timed.list() == []


def test_counts_are_by_queue_and_state(timed: ReviewQueue, clock: Clock) -> None:
    def some(queue: str, count: int, change: Callable[[str], object] = lambda _: None, **changes: Any) -> None:
        for number in range(count):
            change(put(timed, f"{queue}{number}{changes}{change}", queue=queue, **changes).id)

    some("a", 3, due=60.0)
    clock.now += 60
    timed.sweep()
    some("a", 1)
    some("a", 2, lambda id_: timed.claim(id_, reviewer="ada"))
    some("b", 2, lambda id_: timed.resolve(id_, Verdict.REJECT))
    some("b", 1, due=30.0)
    clock.now += 30

    assert timed.counts() == [
        QueueCounts(queue="a", open=1, claimed=2, overdue=0, resolved=0, expired=3),
        QueueCounts(queue="b", open=1, claimed=0, overdue=1, resolved=2, expired=0),
    ]
    assert [len(timed.list(state=state)) for state in ("open", "claimed", "resolved", "expired")] == [2, 2, 2, 3]


@pytest.mark.parametrize(
    ("moves", "circle"),
    [
        ({"a": "b", "b": "c"}, False),
        ({"a": "a"}, True),
        ({"a": "b", "b": "a"}, True),
        ({"x": "a", "a": "b", "b": "c", "c": "b"}, True),
        ({"a": "expire"}, False),
    ],
)
def test_queues_whose_overdue_tickets_come_back_are_found(moves: dict[str, str], circle: bool) -> None:
    queues = [QueueSettings(name=name, due=1.0, overdue=to) for name, to in moves.items()]
    assert (overdue_cycle(queues) is not None) == circle
