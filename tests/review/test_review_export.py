"""Export of verdicts as labelled rows, in the vocabulary of questions and harvests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilis_guard.lab.questions import Question
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Attempt, Message, Request, Statistics, Verdict
from tests.reviewing import FAILURE, Clock, put

SIGNATURE = np.array([[0.0, 0.5], [0.25, 0.0]], dtype=np.float32)
STATISTICS = Statistics(logprob_sum=-3.0, logprob_mean=-1.0, entropy_mean=0.5, margin_min=0.1)
ATTEMPTS = [
    Attempt(tier="small", text="Bergen", uncertainty=0.7),
    Attempt(
        tier="middle",
        text="Oslo",
        uncertainty=0.3,
        typicality=0.2,
        signatures={"mean": SIGNATURE, "prompt": SIGNATURE.T},
        statistics=STATISTICS,
        tokens=2,
        finish_reason="stop",
    ),
    Attempt(tier="large", error=FAILURE),
]


def exported(review: ReviewQueue, to: Path, **how: Any) -> list[dict[str, Any]]:
    count = review.export(to, **how)
    rows = [json.loads(line) for line in to.read_text("utf-8").splitlines()]
    assert len(rows) == count
    return rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_a_row_holds_its_sampling_probability(review: ReviewQueue, file: Path) -> None:
    for number, probability in enumerate((1.0, 0.25, 0.02)):
        ticket = put(review, f"d{number}", probability=probability)
        assert review.get(ticket.id).to_dict()["probability"] == probability
        review.resolve(ticket.id, Verdict.ACCEPT)
    assert [row["probability"] for row in exported(review, file)] == [1.0, 0.25, 0.02]


def test_a_row_holds_question_answer_verdict_and_reason_for_review(
    timed: ReviewQueue, clock: Clock, file: Path
) -> None:
    request = Request.of("What is the capital of Norway?", {"topic": "geography"})
    ticket = put(timed, "d", request=request, attempts=ATTEMPTS)
    ended = timed.resolve(ticket.id, Verdict.ACCEPT, reason="I live there", reviewer="ada")
    (row,) = exported(timed, file)
    assert row == {
        "id": ticket.id,
        "dataset": "review",
        "kind": "open",
        "question": "What is the capital of Norway?",
        "messages": [{"role": "user", "content": "What is the capital of Norway?"}],
        "answers": ["Oslo"],
        "text": "Oslo",
        "correct": True,
        "tier": "middle",
        "uncertainty": 0.3,
        "typicality": 0.2,
        "rank": None,
        "calibrated": True,
        "departures": [],
        "tokens": 2,
        "finish_reason": "stop",
        **STATISTICS.to_dict(),
        "rule": "unsure",
        "probability": 1.0,
        "policy": "sha256:abc",
        "queue": "chemists",
        "labels": {"topic": "geography"},
        "verdict": "accept",
        "reviewer": "ada",
        "reason": "I live there",
        "created_at": clock.now,
        "ended_at": ended.ended_at,
        "redacted": False,
        "ticket_kind": "escalated",
    }
    # What the lab can read as a question, it does.
    assert Question(**{name: row[name] for name in ("id", "dataset", "kind", "question", "answers")})


def test_a_corrected_and_a_rejected_answer_were_wrong(timed: ReviewQueue, file: Path) -> None:
    timed.resolve(put(timed, "d", attempts=ATTEMPTS).id, Verdict.CORRECT, text="Kristiania")
    timed.resolve(put(timed, "e", attempts=ATTEMPTS).id, Verdict.REJECT)
    rows = exported(timed, file)
    assert sorted((row["verdict"], row["text"], row["correct"], row["answers"]) for row in rows) == [
        ("correct", "Oslo", False, ["Kristiania"]),
        ("reject", "Oslo", False, []),
    ]


def test_where_no_tier_answered_nothing_was_right(timed: ReviewQueue, file: Path) -> None:
    ticket = put(timed, "d", attempts=[Attempt(tier="small", error=FAILURE)])
    timed.resolve(ticket.id, Verdict.CORRECT, text="Oslo")
    (row,) = exported(timed, file)
    assert (row["text"], row["correct"], row["answers"], row["tier"]) == ("", False, ["Oslo"], None)
    assert (row["uncertainty"], row["tokens"]) == (None, None)


def test_signatures_come_when_asked_for_as_a_harvest_has_them(timed: ReviewQueue, file: Path) -> None:
    timed.resolve(put(timed, "d", attempts=ATTEMPTS).id, Verdict.ACCEPT)
    assert "mean" not in exported(timed, file)[0]
    (row,) = exported(timed, file, signatures=True)
    assert row["mean"] == SIGNATURE.ravel().tolist()
    assert row["prompt"] == SIGNATURE.T.ravel().tolist()


def test_only_verdicts_are_exported_and_a_queues_alone_when_asked_for(
    timed: ReviewQueue, clock: Clock, file: Path
) -> None:
    put(timed, "open")
    put(timed, "expired", due=1.0)
    clock.now += 1
    timed.sweep()
    resolved = [timed.resolve(put(timed, name, queue=name).id, Verdict.ACCEPT) for name in ("a", "b")]
    assert {row["id"] for row in exported(timed, file)} == {ticket.id for ticket in resolved}
    assert [row["queue"] for row in exported(timed, file, queue="b")] == ["b"]
    assert exported(timed, file, queue="c") == []


def test_a_whole_conversation_is_there_and_no_rule_is_none(timed: ReviewQueue, file: Path) -> None:
    turns = (Message(role="user", content="Hi"), Message(role="assistant", content="Hello"))
    request = Request(messages=(*turns, Message(role="user", content="And now?")))
    timed.resolve(put(timed, "d", request=request, rule=None).id, Verdict.ACCEPT)
    (row,) = exported(timed, file)
    assert row["question"] == "And now?"
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "user"]
    assert row["rule"] is None


def test_redacted_rows_still_serve_recalibration(timed: ReviewQueue, file: Path) -> None:
    timed.resolve(put(timed, "d", attempts=ATTEMPTS).id, Verdict.ACCEPT)
    timed.redact(older_than=0)
    (row,) = exported(timed, file, signatures=True)
    assert (row["question"], row["text"], row["answers"]) == ("[redacted]", "[redacted]", [])
    assert row["redacted"] is True
    assert (row["tier"], row["uncertainty"], row["correct"]) == ("middle", 0.3, True)
    assert row["mean"] == SIGNATURE.ravel().tolist()


def test_a_complete_export_replaces_the_file_and_is_private(timed: ReviewQueue, file: Path) -> None:
    file.write_text("an earlier export")
    for number in range(120):
        timed.resolve(put(timed, f"d{number}").id, Verdict.ACCEPT)
    assert len({row["id"] for row in exported(timed, file)}) == 120
    assert file.stat().st_mode & 0o077 == 0
    assert [path.name for path in file.parent.iterdir() if "jsonl" in path.name] == [file.name]
