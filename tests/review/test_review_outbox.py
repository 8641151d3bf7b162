"""The outbox: each change writes its deliveries once, in its own transaction, without texts."""

from typing import Any

import pytest
from sqlalchemy import Row, select

from ilis_guard.config.review import EndpointSettings, Event, QueueSettings
from ilis_guard.errors import ReviewError
from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import deliveries
from ilis_guard.types import Action, Attempt, ErrorInfo, Request, Ruling, Verdict
from tests.reviewing import Clock, put


def endpoint(name: str, *events: Event, queues: tuple[str, ...] | None = None) -> EndpointSettings:
    chosen: dict[str, Any] = {"events": events} if events else {}
    return EndpointSettings(name=name, url="https://example.org", queues=queues, **chosen)


def told(queue: ReviewQueue) -> list[Row[Any]]:
    with queue.store.database.reading() as connection:
        return list(connection.execute(select(deliveries).order_by(deliveries.c.created_at, deliveries.c.endpoint)))


def test_each_change_is_announced_to_its_subscribers(url: str, clock: Clock) -> None:
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


def test_a_move_is_announced_to_subscribers_of_both_queues(url: str, clock: Clock) -> None:
    endpoints = [endpoint("chemists", "ticket.overdue", queues=("chemists",))]
    queues = [QueueSettings(name="chemists", due=60.0, overdue="seniors")]
    with ReviewQueue(url, clock=clock, queues=queues, endpoints=endpoints) as queue:
        put(queue, "d")
        clock.now += 60
        queue.sweep()
        assert [row.event for row in told(queue)] == ["ticket.overdue"]


def test_thin_payloads_hold_no_texts(url: str) -> None:
    with ReviewQueue(url, endpoints=[endpoint("all")]) as queue:
        error = ErrorInfo(kind="ModelError", message="secret message", detail="secret error")
        ticket = put(
            queue,
            "d",
            request=Request.of("secret question", {"customer": "secret label"}),
            attempts=[
                Attempt(
                    tier="small",
                    text="secret answer",
                    error=error,
                )
            ],
            rulings=[Ruling(action=Action.ESCALATE, rule="unsure", say="secret message")],
            say="secret message",
        )
        queue.resolve(ticket.id, Verdict.CORRECT, text="secret correction", reason="secret why", reviewer="ada")
        rows = told(queue)
    assert len(rows) == 2
    assert "secret" not in str([row.data for row in rows])


def test_a_failed_write_announces_nothing(url: str) -> None:
    with ReviewQueue(url, endpoints=[endpoint("all")]) as queue:
        with pytest.raises(ReviewError):
            put(queue, "d", say="half a duck \ud83e")
        put(queue, "e")
        put(queue, "e")
        assert [row.event for row in told(queue)] == ["ticket.created"]
