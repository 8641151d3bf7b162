"""What endpoints are to hear is written with the change that it tells of, once, and says no text."""

from typing import Any

import pytest
from sqlalchemy import Row, select

from ilis_guard.config.review import EndpointSettings, Event, QueueSettings
from ilis_guard.errors import ReviewError
from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import deliveries
from ilis_guard.types import Attempt, Request, Verdict
from tests.reviewing import Clock, put


def endpoint(name: str, *events: Event, queues: tuple[str, ...] | None = None) -> EndpointSettings:
    chosen: dict[str, Any] = {"events": events} if events else {}
    return EndpointSettings(name=name, url="https://example.org", queues=queues, **chosen)


def told(queue: ReviewQueue) -> list[Row[Any]]:
    with queue._ledger.reading() as connection:
        return list(connection.execute(select(deliveries).order_by(deliveries.c.created_at, deliveries.c.endpoint)))


def test_each_change_is_told_to_whoever_wants_to_hear_of_it(url: str, clock: Clock) -> None:
    endpoints = [
        endpoint("all"),
        endpoint("verdicts", "ticket.resolved"),
        endpoint("seniors", "ticket.created", "ticket.overdue", queues=("seniors",)),
        endpoint("others", queues=("others",)),
    ]
    queues = [QueueSettings(name="chemists", due=60.0, overdue="seniors")]
    with ReviewQueue(url, clock=clock, queues=queues, endpoints=endpoints) as queue:
        ticket = put(queue, "d")
        for change in (
            lambda: queue.claim(ticket.id, reviewer="ada"),
            lambda: queue.claim(ticket.id, reviewer="ada"),
            lambda: queue.renew(ticket.id, reviewer="ada"),
            lambda: queue.release(ticket.id, reviewer="ada"),
            queue.sweep,
            lambda: queue.resolve(ticket.id, Verdict.ACCEPT, reviewer="ada"),
            lambda: queue.resolve(ticket.id, Verdict.ACCEPT, reviewer="ada"),
            lambda: queue.redact(older_than=0),
        ):
            clock.now += 60
            change()
        rows = told(queue)

    assert [(row.event, row.endpoint) for row in rows] == [
        ("ticket.created", "all"),
        ("ticket.claimed", "all"),
        ("ticket.overdue", "all"),
        ("ticket.overdue", "seniors"),
        ("ticket.resolved", "all"),
        ("ticket.resolved", "verdicts"),
    ]
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert (row.ticket, row.state, row.tries, row.last_error) == (ticket.id, "pending", 0, "")
        assert row.next_try_at == row.created_at
    overdue = rows[2].data
    assert (overdue["queue"], overdue["moved_from"], overdue["moved_to"]) == ("seniors", "chemists", "seniors")
    assert [row.data["state"] for row in rows] == ["open", "claimed", "open", "open", "resolved", "resolved"]
    assert [row.data["version"] for row in rows] == [1, 2, 4, 4, 5, 5]
    assert rows[-1].data["verdict"] == "accept"


def test_a_ticket_that_moves_is_told_of_where_it_leaves_too(url: str, clock: Clock) -> None:
    endpoints = [endpoint("chemists", "ticket.overdue", queues=("chemists",))]
    queues = [QueueSettings(name="chemists", due=60.0, overdue="seniors")]
    with ReviewQueue(url, clock=clock, queues=queues, endpoints=endpoints) as queue:
        put(queue, "d")
        clock.now += 60
        queue.sweep()
        assert [row.event for row in told(queue)] == ["ticket.overdue"]


def test_no_text_of_anybody_is_told(url: str) -> None:
    with ReviewQueue(url, endpoints=[endpoint("all")]) as queue:
        ticket = put(
            queue,
            "d",
            request=Request.of("secret question", {"customer": "secret label"}),
            attempts=[Attempt(tier="small", text="secret answer", error="secret error")],
            reasons=["secret reason"],
            say="secret message",
        )
        queue.resolve(ticket.id, Verdict.CORRECT, text="secret correction", reason="secret why", reviewer="ada")
        rows = told(queue)
    assert len(rows) == 2
    assert "secret" not in str([row.data for row in rows])


def test_what_is_not_stored_is_not_told(url: str) -> None:
    with ReviewQueue(url, endpoints=[endpoint("all")]) as queue:
        with pytest.raises(ReviewError):
            put(queue, "d", say="half a duck \ud83e")
        put(queue, "e")
        put(queue, "e")
        assert [row.event for row in told(queue)] == ["ticket.created"]
