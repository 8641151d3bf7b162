"""Retention: old tickets are redacted, exported and deleted; open ones and pending deliveries stay."""

import json
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from sqlalchemy import func, select, update
from structlog.testing import capture_logs

from ilis_guard.config.review import EndpointSettings
from ilis_guard.errors import ReviewError, TicketNotFoundError
from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import deliveries, history
from ilis_guard.types import (
    Action,
    Attempt,
    ErrorInfo,
    Message,
    Obstacle,
    PartOutcome,
    Request,
    RuleOutcome,
    Ruling,
    Statistics,
    Ticket,
    Verdict,
)
from tests.reviewing import RULING, Clock, put

DAY: Final = 86_400.0
SIGNATURE: Final = np.array([[0.0, 0.5], [0.25, 0.0]], dtype=np.float32)
SECRETS: Final = ("Fabergé", "geheimnis")


def secretive(queue: ReviewQueue, decision: str) -> Ticket:
    """A ticket whose texts are all secret."""
    return put(
        queue,
        decision,
        request=Request(
            messages=(
                Message(role="system", content="Fabergé said"),
                Message(role="user", content="What is the geheimnis?"),
            ),
            labels={"topic": "eggs"},
        ),
        attempts=[
            Attempt(
                tier="small",
                text="The geheimnis is Fabergé",
                uncertainty=0.4,
                typicality=0.2,
                signatures={"mean": SIGNATURE},
                statistics=Statistics(logprob_sum=-3.0, logprob_mean=-1.0, entropy_mean=0.5, margin_min=0.1),
                tokens=3,
                finish_reason="stop",
            ),
            Attempt(tier="large", error=ErrorInfo(kind="ModelError", message="It failed.", detail="geheimnis?")),
        ],
        rulings=[
            Ruling(
                action=Action.RETRY,
                rule="large",
                outcomes=(
                    RuleOutcome(
                        rule="first",
                        stage="answer",
                        outcome="failed",
                        condition="labels.topic == 'eggs'",
                        detail="Fabergé isn't a number",
                    ),
                    RuleOutcome(
                        rule="second",
                        stage="answer",
                        outcome="obstructed",
                        obstacle=Obstacle(kind="invalid_labels", detail="geheimnis"),
                    ),
                    RuleOutcome(
                        rule="large",
                        stage="answer",
                        outcome="decided",
                        parts=(PartOutcome(condition="true", value=True, facts={"labels.owner": "Fabergé"}),),
                    ),
                ),
            ),
            RULING,
        ],
    )


def test_redaction_takes_the_texts_and_leaves_the_rest(timed: ReviewQueue, clock: Clock) -> None:
    ticket = secretive(timed, "d")
    timed.resolve(ticket.id, Verdict.CORRECT, text="No geheimnis", reason="Fabergé is dead", reviewer="ada")
    before = timed.get(ticket.id)
    clock.now += DAY
    assert timed.redact(older_than=DAY + 1) == 0
    assert timed.get(ticket.id) == before
    with capture_logs() as logged:
        assert timed.redact(older_than=DAY) == 1
    assert timed.redact(older_than=0) == 0
    record = timed.get(ticket.id)

    assert not any(secret in json.dumps(record.to_dict(), ensure_ascii=False) for secret in SECRETS)
    assert logged == [{"event": "ilis_guard.tickets.redacted", "tickets": 1, "log_level": "info"}]
    assert record.redacted_at == clock.now
    assert (record.request["labels"], record.policy, record.rule) == (before.request["labels"], "sha256:abc", "unsure")
    assert [turn["role"] for turn in record.request["messages"]] == ["system", "user"]
    for was, now in zip(before.attempts, record.attempts, strict=True):
        assert {name: now[name] for name in now if name not in ("text", "error")} == {
            name: was[name] for name in was if name not in ("text", "error")
        }
    assert record.proposed == "[redacted]"
    assert [attempt["error"] for attempt in record.attempts] == [
        None,
        {"kind": "ModelError", "message": "It failed.", "detail": ""},
    ]
    rules = [[(one.rule, one.outcome) for one in ruling.outcomes] for ruling in record.rulings]
    assert rules == [[(one.rule, one.outcome) for one in ruling.outcomes] for ruling in before.rulings]
    assert (record.ticket.verdict, record.ticket.ended_at, record.reviewer) == (
        Verdict.CORRECT,
        before.ticket.ended_at,
        "ada",
    )
    assert record.history[:-1] == before.history
    assert (record.history[-1].type, record.history[-1].at) == ("redacted", clock.now)


def test_tickets_that_wait_are_neither_redacted_nor_deleted(timed: ReviewQueue, clock: Clock) -> None:
    opened, claimed = put(timed, "d"), put(timed, "e")
    timed.claim(claimed.id, reviewer="ada", lease=10 * DAY)
    before = [timed.get(ticket.id) for ticket in (opened, claimed)]
    clock.now += 5 * DAY
    assert (timed.redact(older_than=0), timed.purge(older_than=0)) == (0, 0)
    assert [timed.get(ticket.id) for ticket in (opened, claimed)] == before


def test_redacted_texts_are_erased_from_the_file(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "tickets.db"
    with ReviewQueue(f"sqlite:///{file}", clock=clock) as queue:
        for number in range(20):
            queue.resolve(secretive(queue, f"d{number}").id, Verdict.REJECT, reason="Fabergé")
        assert any(b"geheimnis" in path.read_bytes() for path in tmp_path.iterdir())
        assert queue.redact(older_than=0) == 20
        for path in tmp_path.iterdir():
            assert b"geheimnis" not in path.read_bytes()
            assert "Fabergé".encode() not in path.read_bytes()


def test_old_tickets_are_deleted_with_all_that_belongs_to_them(timed: ReviewQueue, clock: Clock) -> None:
    old, expired = put(timed, "old"), put(timed, "expired", due=60.0)
    timed.resolve(old.id, Verdict.ACCEPT)
    clock.now += 60
    timed.sweep()
    clock.now += 30 * DAY
    young = put(timed, "young")
    timed.resolve(young.id, Verdict.ACCEPT)
    with capture_logs() as logged:
        assert timed.purge(older_than=30 * DAY) == 2
    assert logged == [{"event": "ilis_guard.tickets.purged", "tickets": 2, "log_level": "info"}]
    assert [ticket.id for ticket in timed.list()] == [young.id]
    for gone in (old, expired):
        with pytest.raises(TicketNotFoundError):
            timed.get(gone.id)
    with timed.store.database.reading() as connection:
        assert set(connection.scalars(select(history.c.ticket))) == {young.id}


def test_a_ticket_with_a_pending_delivery_is_not_purged(url: str, clock: Clock) -> None:
    endpoints = [EndpointSettings(name="ops", url="https://ops.example", events=("ticket.resolved",))]
    with ReviewQueue(url, clock=clock, endpoints=endpoints) as queue:
        tickets = [put(queue, decision) for decision in ("pending", "delivered", "exhausted", "disabled")]
        for ticket in tickets:
            queue.resolve(ticket.id, Verdict.ACCEPT)
            state = queue.get(ticket.id).decision
            with queue.store.database.writing() as connection:
                connection.execute(deliveries.update().where(deliveries.c.ticket == ticket.id).values(state=state))
        assert queue.purge(older_than=0) == 3
        assert [ticket.id for ticket in queue.list()] == [tickets[0].id]
        with queue.store.database.reading() as connection:
            assert connection.scalar(select(func.count()).select_from(deliveries)) == 1


def test_everything_that_is_deleted_is_exported_first(timed: ReviewQueue, tmp_path: Path) -> None:
    tickets = [secretive(timed, f"d{number}") for number in range(120)]
    for ticket in tickets[1:]:
        timed.resolve(ticket.id, Verdict.ACCEPT, reviewer="ada")
    expected = [timed.get(ticket.id).to_dict() for ticket in tickets[1:]]
    file = tmp_path / "gone.jsonl"
    assert timed.purge(older_than=0, export_to=file) == 119
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert sorted(lines, key=lambda line: line["ticket"]["id"]) == sorted(
        expected, key=lambda line: line["ticket"]["id"]
    )
    assert [ticket.id for ticket in timed.list()] == [tickets[0].id]
    assert file.stat().st_mode & 0o077 == 0, "prompts and answers are nobody else's to read"
    assert not list(tmp_path.glob(".gone*")), "no unfinished file is left"


@pytest.mark.parametrize("problem", ["it is there", "no such folder"])
def test_a_failed_export_prevents_the_purge(timed: ReviewQueue, tmp_path: Path, problem: str) -> None:
    timed.resolve(put(timed, "d").id, Verdict.ACCEPT)
    file = tmp_path / "gone.jsonl" if problem == "it is there" else tmp_path / "nowhere/gone.jsonl"
    if problem == "it is there":
        file.write_text("an earlier export")
    with pytest.raises((ReviewError, OSError), match=r"already there|No such file"):
        timed.purge(older_than=0, export_to=file)
    assert len(timed.list()) == 1
    with suppress(FileNotFoundError):
        assert file.read_text() == "an earlier export"


def test_a_disk_that_fills_up_during_the_export_leaves_all_tickets(timed: ReviewQueue, tmp_path: Path) -> None:
    attempts = [Attempt(tier="small", text="x" * 400_000)]
    timed.resolve(put(timed, "d", attempts=attempts).id, Verdict.ACCEPT)
    most, hardest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hardest))
    try:
        with pytest.raises(OSError, match="File too large"):
            timed.purge(older_than=0, export_to=tmp_path / "gone.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hardest))
    assert len(timed.list()) == 1
    assert not list(tmp_path.glob("*gone*"))


@pytest.mark.parametrize("age", [-1, float("nan")])
def test_an_age_is_a_length_of_time(timed: ReviewQueue, age: float) -> None:
    change: Callable[..., Any]
    for change in (timed.redact, timed.purge):
        with pytest.raises(ReviewError, match="at least 0 seconds"):
            change(older_than=age)


def test_a_replay_during_a_purge_keeps_the_ticket(request: pytest.FixtureRequest, clock: Clock) -> None:
    url = request.getfixturevalue("postgresql").new_queue()
    crm = EndpointSettings(name="crm", url="https://crm.test/", secret="${S}", events=("ticket.created",))
    with ReviewQueue(url, endpoints=[crm], clock=clock) as queue, ThreadPoolExecutor(1) as others:
        ticket = put(queue, "d")
        queue.resolve(ticket.id, Verdict.REJECT)
        clock.now += DAY
        with queue.store.database.writing() as connection:
            connection.execute(update(deliveries).values(state="exhausted"))
        with queue.store.database.writing() as connection:
            connection.execute(update(deliveries).values(state="pending"))  # as a replay does
            purging = others.submit(queue.purge, older_than=DAY)
            with queue.store.database.reading() as looking:
                for _ in repeat(None):
                    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    if purging.done() or looking.exec_driver_sql(waits).scalar_one():
                        break
                    looking.exec_driver_sql("SELECT pg_stat_clear_snapshot(), pg_sleep(0.01)")
        assert purging.result() == 0
        assert queue.get(ticket.id).ticket.id == ticket.id
        with queue.store.database.reading() as connection:
            assert connection.execute(select(deliveries.c.state)).scalars().all() == ["pending"]
