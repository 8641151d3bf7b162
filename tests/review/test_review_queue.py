"""The review queue: escalation, lists, records and verdicts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from ilis_guard.errors import ReviewError, TicketNotFoundError, TicketResolvedError
from ilis_guard.review import ReviewQueue, TicketEvent, TicketRecord
from ilis_guard.types import Action, Attempt, Message, Request, Ruling, Statistics, Ticket, TicketKind, Verdict
from tests.reviewing import FAILURE, RULING, put

SIGNATURE = np.array([[0.0, 0.1, 3.5], [0.25, 0.0, 1e-7], [12.0, 0.3, 0.0]], dtype=np.float32)


def _with_ids(monkeypatch: pytest.MonkeyPatch, *ids: str) -> None:
    """Tickets to come get these ids."""

    class Given:
        def __init__(self, hex_id: str) -> None:
            self.hex = hex_id

    given = iter(ids)
    monkeypatch.setattr("uuid.uuid4", lambda: Given(next(given)))


def test_a_record_holds_everything_that_was_escalated(review: ReviewQueue) -> None:
    request = Request(
        messages=(
            Message(role="system", content="Antworte kurz. 用中文。 \x00 \ud800"),
            Message(role="user", content="What's 1'; DROP TABLE tickets; -- 🦆?"),
        ),
        labels={"channel": "chät", "amount": 10**20, "risk": 0.5, "whole": 2.0, "vip": True},
    )
    statistics = Statistics(logprob_sum=-3.25, logprob_mean=-0.65, entropy_mean=0.7, margin_min=0.01)
    attempts = [
        Attempt(
            tier="small",
            text="Ente 🦆",
            uncertainty=0.1,
            typicality=1 / 3,
            signatures={"mean": SIGNATURE, "prompt": SIGNATURE.T},
            statistics=statistics,
            seconds=0.2,
            tokens=5,
        ),
        Attempt(tier="large", error=FAILURE, seconds=30.0),
    ]

    ticket = review.escalate(
        decision="d1",
        request=request,
        attempts=attempts,
        queue="ducks",
        policy="sha256:ff",
        rule=None,
        rulings=(RULING, Ruling(action=Action.ESCALATE, rule=None)),
        say="A person will look at this.",
    )
    record = review.get(ticket.id)

    assert ticket.state == "open"
    assert ticket.queue == "ducks"
    assert record == TicketRecord(
        ticket=ticket,
        decision="d1",
        request=request.to_dict(),
        attempts=tuple(attempt.to_dict() for attempt in attempts),
        policy="sha256:ff",
        rule=None,
        rulings=(RULING, Ruling(action=Action.ESCALATE, rule=None)),
        say="A person will look at this.",
        overdue="expire",
        history=(TicketEvent(at=ticket.created_at, type="created", by="", version=1, details={}),),
    )
    assert {name: type(value) for name, value in record.request["labels"].items()} == {
        "channel": str,
        "amount": int,
        "risk": float,
        "whole": float,
        "vip": bool,
    }
    np.testing.assert_array_equal(np.array(record.attempts[0]["signatures"]["mean"], dtype=np.float32), SIGNATURE)
    assert record.proposed == "Ente 🦆"
    assert json.loads(json.dumps(record.to_dict()))["ticket"]["id"] == ticket.id


def test_tickets_outlive_the_queue_that_took_them(url: str) -> None:
    with ReviewQueue(url) as first:
        ticket = first.escalate(decision="d", request=Request.of("?"), attempts=[], queue="q", policy="p", rule="r")
    with ReviewQueue(url) as second:
        assert second.list() == [ticket]


def test_a_decision_escalated_again_keeps_its_ticket(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    first = escalate("d", queue="chemists")

    assert escalate("d", queue="others", attempts=[]) == first
    assert len(review.list()) == 1
    assert len(review.get(first.id).attempts) == 1

    resolved = review.resolve(first.id, Verdict.REJECT)
    assert escalate("d") == resolved


@pytest.mark.parametrize("missing", ["decision", "queue"])
def test_a_ticket_needs_a_decision_and_a_queue(escalate: Callable[..., Ticket], missing: str) -> None:
    with pytest.raises(ReviewError, match="needs a decision id and a queue name"):
        escalate(**{"decision": "d", missing: ""})


def test_the_list_is_oldest_first_and_filters(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    tickets = [escalate(f"d{number}", queue="even" if number % 2 == 0 else "odd") for number in range(6)]
    resolved = review.resolve(tickets[2].id, Verdict.ACCEPT)

    assert review.list() == [*tickets[:2], resolved, *tickets[3:]]
    assert review.list(limit=2) == tickets[:2]
    assert review.list(queue="odd") == tickets[1::2]
    assert review.list(state="resolved") == [resolved]
    assert review.list(state="open", queue="even") == [tickets[0], tickets[4]]
    assert review.list(queue="nobody's") == []


def test_prompts_are_read_without_attempts(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    turns = [
        Message(role="user", content="q"),
        Message(role="assistant", content="a"),
        Message(role="user", content="r"),
    ]
    first, second = escalate("d1"), escalate("d2", request=Request.of(turns))
    escalate("d3")
    assert review.prompts([first.id, second.id, "f" * 32]) == {
        first.id: "What is the boiling point of gallium?",
        second.id: "r",
    }
    assert review.prompts([]) == {}


def test_overdue_tickets_have_not_ended(url: str) -> None:
    now = [1000.0]
    with ReviewQueue(url, clock=lambda: now[0]) as review:
        late, claimed, _in_time, resolved, _without = (
            review.escalate(
                decision=f"d{number}",
                request=Request.of("q"),
                attempts=[Attempt(tier="small", text="a")],
                queue="chemists",
                policy="p",
                rule=None,
                due=due,
            )
            for number, due in enumerate([20, 10, 100, 10, None])
        )
        review.claim(claimed.id, reviewer="ana")
        review.resolve(resolved.id, Verdict.ACCEPT)
        now[0] += 50
        assert [ticket.id for ticket in review.list(is_overdue=True)] == [claimed.id, late.id]
        assert [ticket.id for ticket in review.list(is_overdue=True, claimed_by="ana")] == [claimed.id]
        assert [(counts.overdue, counts.claimed) for counts in review.counts()] == [(2, 1)]


def test_a_list_with_invalid_filters_is_refused(review: ReviewQueue) -> None:
    with pytest.raises(ReviewError, match="got the state 'closed'"):
        review.list(state="closed")  # type: ignore[arg-type]
    with pytest.raises(ReviewError, match="at least 1, got 0"):
        review.list(limit=0)
    with pytest.raises(ReviewError, match="too large"):
        review.list(limit=2**70)


def test_the_first_characters_of_an_id_are_enough(
    review: ReviewQueue, escalate: Callable[..., Ticket], monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_ids(monkeypatch, "abcd0" + "0" * 27, "abcd" + "f" * 28, "abce" + "0" * 28)
    first, second, third = escalate("d1"), escalate("d2"), escalate("d3")

    assert review.get("abcd0").ticket == first
    assert review.get(" ABCDF ").ticket == second
    assert review.resolve("abce", Verdict.REJECT).id == third.id
    with pytest.raises(TicketNotFoundError, match=f"several.*{first.id}, {second.id}; give more"):
        review.get("abcd")
    with pytest.raises(TicketNotFoundError, match="several"):
        review.resolve("abcd", Verdict.REJECT)
    assert review.list(state="open") == [first, second]


def test_only_a_few_candidates_are_named(
    review: ReviewQueue, escalate: Callable[..., Ticket], monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_ids(monkeypatch, *(f"abcd{number:028x}" for number in range(9)))
    for number in range(9):
        escalate(f"d{number}")

    with pytest.raises(TicketNotFoundError, match=r", \.\.\.; give more") as caught:
        review.get("abcd")
    assert str(caught.value).count("abcd0") == 5


@pytest.mark.parametrize("unknown", ["ffffffff", "%%%%", "____", "zzzz", "абвг", "' OR 1=1 --", "0" * 33])
def test_an_unknown_id_is_not_found(review: ReviewQueue, escalate: Callable[..., Ticket], unknown: str) -> None:
    escalate("d")
    with pytest.raises(TicketNotFoundError, match="no ticket's id starts with"):
        review.get(unknown)
    with pytest.raises(TicketNotFoundError, match="no ticket's id starts with"):
        review.resolve(unknown, Verdict.REJECT)


@pytest.mark.parametrize("short", ["", "   ", "abc"])
def test_an_empty_or_short_id_never_picks_the_only_ticket(
    review: ReviewQueue, escalate: Callable[..., Ticket], short: str
) -> None:
    ticket = escalate("d")
    with pytest.raises(TicketNotFoundError, match="too short"):
        review.resolve(short, Verdict.REJECT)
    assert review.list() == [ticket]


@pytest.mark.parametrize(
    ("verdict", "text"), [(Verdict.ACCEPT, ""), (Verdict.CORRECT, "2 403 °C\n"), (Verdict.REJECT, "")]
)
def test_a_verdict_ends_a_ticket(
    review: ReviewQueue, escalate: Callable[..., Ticket], verdict: Verdict, text: str
) -> None:
    opened = escalate("d")

    ticket = review.resolve(opened.id, verdict, text=text, reason="I looked it up - twice", reviewer="Ada")

    assert ticket.ended_at is not None
    assert ticket.ended_at >= opened.created_at
    assert ticket == Ticket(
        id=opened.id,
        queue=opened.queue,
        state="resolved",
        created_at=opened.created_at,
        version=2,
        verdict=verdict,
        text=text,
        reason="I looked it up - twice",
        ended_at=ticket.ended_at,
    )
    assert review.get(opened.id).ticket == ticket
    assert review.get(opened.id).reviewer == "Ada"


def test_the_same_verdict_again_changes_nothing(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    opened = escalate("d")
    first = review.resolve(opened.id, Verdict.CORRECT, text="2403 °C", reason="handbook", reviewer="Ada")

    assert review.resolve(opened.id, Verdict.CORRECT, text="2403 °C", reason="same", reviewer="Bob") == first
    assert review.get(opened.id).reviewer == "Ada"


def test_another_verdict_on_a_resolved_ticket_names_the_earlier_one(
    review: ReviewQueue, escalate: Callable[..., Ticket]
) -> None:
    opened = escalate("d")
    first = review.resolve(opened.id, Verdict.CORRECT, text="2403 °C")

    with pytest.raises(TicketResolvedError, match="already ended with the verdict 'correct'; 'reject' can't"):
        review.resolve(opened.id, Verdict.REJECT)
    with pytest.raises(TicketResolvedError, match="already ended with the verdict 'correct'; another text") as caught:
        review.resolve(opened.id, Verdict.CORRECT, text="7 °C")
    assert "2403" not in str(caught.value)
    assert review.get(opened.id).ticket == first


@pytest.mark.parametrize(
    ("verdict", "text", "message"),
    [
        (Verdict.CORRECT, "", "needs the right answer"),
        (Verdict.CORRECT, " \n\t", "needs the right answer"),
        (Verdict.ACCEPT, "yes", "'accept' takes no text"),
        (Verdict.REJECT, " ", "'reject' takes no text"),
        ("approve", "", "got 'approve'"),
    ],
)
def test_a_verdict_that_makes_no_sense_leaves_the_ticket_open(
    review: ReviewQueue, escalate: Callable[..., Ticket], verdict: Any, text: str, message: str
) -> None:
    ticket = escalate("d")
    with pytest.raises(ReviewError, match=message):
        review.resolve(ticket.id, verdict, text=text)
    assert review.list(state="open") == [ticket]


@pytest.mark.parametrize("attempts", [[], [Attempt(tier="small", error=FAILURE)], [Attempt(tier="s", text=" ")]])
def test_where_no_attempt_answered_there_is_nothing_to_accept(
    review: ReviewQueue, escalate: Callable[..., Ticket], attempts: list[Attempt]
) -> None:
    ticket = escalate("d", attempts=attempts)

    assert review.get(ticket.id).proposed is None
    with pytest.raises(ReviewError, match="no answer to accept"):
        review.resolve(ticket.id, Verdict.ACCEPT)
    assert review.resolve(ticket.id, Verdict.CORRECT, text="2403 °C").state == "resolved"


def test_the_last_answer_is_proposed(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    attempts = [
        Attempt(tier="small", text="first"),
        Attempt(tier="middle", text="second"),
        Attempt(tier="large", error=FAILURE),
    ]
    assert review.get(escalate("d", attempts=attempts).id).proposed == "second"


def test_events_name_the_ticket_once_and_never_its_texts(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    with capture_logs() as logged:
        ticket = escalate("d")
        escalate("d")
        review.resolve(ticket.id, Verdict.CORRECT, text="2403 °C", reason="handbook")
        review.resolve(ticket.id, Verdict.CORRECT, text="2403 °C")

    assert logged == [
        {"event": "ilis_guard.ticket.created", "ticket": ticket.id, "queue": "chemists", "log_level": "info"},
        {
            "event": "ilis_guard.ticket.resolved",
            "ticket": ticket.id,
            "queue": "chemists",
            "verdict": "correct",
            "log_level": "info",
        },
    ]


@pytest.mark.parametrize("kind", ["escalated", "audited"])
def test_a_ticket_keeps_its_kind(
    review: ReviewQueue, escalate: Callable[..., Ticket], tmp_path: Path, kind: TicketKind
) -> None:
    ticket = escalate("d", kind=kind)
    review.resolve(ticket.id, Verdict.ACCEPT)
    review.redact(older_than=0)
    review.export(tmp_path / "rows.jsonl")
    record = review.get(ticket.id)

    assert (ticket.kind, record.ticket.kind, record.to_dict()["ticket"]["kind"]) == (kind, kind, kind)
    assert (record.ticket.state, record.redacted_at is not None) == ("resolved", True)
    assert json.loads((tmp_path / "rows.jsonl").read_text())["ticket_kind"] == kind


def test_a_ticket_of_an_unknown_kind_is_refused(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    with pytest.raises(ReviewError, match=r"(?i)check constraint"):
        escalate("d", kind="ignored")
    assert review.list() == []


def test_names_that_look_alike_are_one_queue_and_one_reviewer(review: ReviewQueue, tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    first = put(review, "d1", queue=decomposed)
    second = put(review, "d2", queue=composed)
    assert {first.queue, second.queue} == {composed}
    assert {ticket.id for ticket in review.list(queue=decomposed)} == {first.id, second.id}

    review.claim(second.id, reviewer="Eve")
    claimed = review.claim_next(reviewer="Jose\u0301", queue=decomposed)
    assert claimed is not None
    assert (claimed.id, claimed.claimed_by) == (first.id, "Jos\u00e9")
    assert review.list(claimed_by="Jose\u0301") == review.list(claimed_by="Jos\u00e9") == [claimed]
    review.resolve(first.id, Verdict.ACCEPT, reviewer="Jos\u00e9")
    assert review.export(tmp_path / "rows.jsonl", queue=decomposed) == 1
