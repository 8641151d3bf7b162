"""What is logged: the events and fields that `events` names, and no text unless asked for."""

import ast
import inspect
import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from ilis_guard import events
from ilis_guard.errors import TransientModelError
from ilis_guard.guard import Guard
from ilis_guard.models import Model
from ilis_guard.scoring import Scorer
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue

QUESTION = "Is xyzzy contagious?"
ANSWER = "plugh is not"
ESCALATE = "version: 1\nname: p\nrules:\n  - {id: ask, do: escalate, to: q}\n"
ABSTAIN = "version: 1\nname: p\nrules:\n  - {id: no, do: abstain, say: I do not know.}\n"
NOTED = {"event", "log_level"}
"""What structlog's capture adds to each event."""


def documented() -> dict[str, set[str]]:
    """Field names by event, as the docstrings in `events` have them."""
    body = ast.parse(inspect.getsource(events)).body
    found = {}
    for constant, docstring in itertools.pairwise(body):
        if isinstance(constant, ast.AnnAssign) and isinstance(docstring, ast.Expr):
            assert constant.value is not None
            name, told = ast.literal_eval(constant.value), ast.literal_eval(docstring.value)
            fields = re.search(r"Fields: ([\w,\s]+)\.", told)
            assert fields, f"{name} has no documented fields"
            found[name] = set(re.split(r",\s+", fields.group(1)))
    return found


def logged(guard: Guard) -> list[dict[str, Any]]:
    with capture_logs() as entries:
        guard.decide(QUESTION)
    return [dict(entry) for entry in entries]


class FullDisk(InMemoryQueue):
    def escalate(self, **_: Any) -> Any:
        raise OSError(f"no space for {QUESTION} {ANSWER}")


STRANGER = RuntimeError(f"can't answer {QUESTION!r} with {ANSWER!r}")
ONE_TIER_CASES: list[tuple[str, str, Model, Scorer, list[str]]] = [
    ("answered", "answer", FakeModel(ANSWER), FixedScorer(0.1), [events.ATTEMPT_FINISHED]),
    ("abstained", ABSTAIN, FakeModel(ANSWER), FixedScorer(0.1), [events.ATTEMPT_FINISHED]),
    ("escalated", ESCALATE, FakeModel(ANSWER), FixedScorer(0.1), [events.ATTEMPT_FINISHED, events.TICKET_CREATED]),
    ("model failed", ABSTAIN, FakeModel(STRANGER), FixedScorer(0.1), [events.ATTEMPT_FAILED]),
    ("scorer failed", ABSTAIN, FakeModel(ANSWER), FixedScorer(STRANGER), [events.ATTEMPT_FAILED]),
    ("no script for it", ABSTAIN, FakeModel({}), FixedScorer(0.1), [events.ATTEMPT_FAILED]),
    (
        "recovered",
        ABSTAIN,
        FakeModel([TransientModelError("busy"), ANSWER]),
        FixedScorer(0.1),
        [events.CALL_REPEATED, events.ATTEMPT_FINISHED],
    ),
]


@pytest.mark.parametrize(
    ("policy", "model", "scorer", "names"), [pytest.param(*c[1:], id=c[0]) for c in ONE_TIER_CASES]
)
def test_events_have_their_documented_names_and_fields_and_no_texts(
    build: Callable[..., Guard], policy: str, model: Model, scorer: Scorer, names: list[str]
) -> None:
    entries = logged(build(policy, {"small": (model, scorer)}))
    assert [entry["event"] for entry in entries] == [*names, events.DECISION_MADE]
    for entry in entries:
        assert set(entry) - NOTED == documented()[entry["event"]]
    assert "xyzzy" not in json.dumps(entries)
    assert "plugh" not in json.dumps(entries)


def test_failed_escalation_is_logged_without_the_message(build: Callable[..., Guard]) -> None:
    guard = build(ESCALATE, {"small": (FakeModel(ANSWER), FixedScorer(0.1))}, review=FullDisk())
    with capture_logs() as entries:
        made = guard.decide(QUESTION)
    (failed,) = [entry for entry in entries if entry["event"] == events.ESCALATION_FAILED]
    assert failed == {
        "event": "ilis_guard.escalation.failed",
        "log_level": "error",
        "decision": made.id,
        "queue": "q",
        "error": "OSError",
    }
    assert entries[-1]["action"] == "abstain"
    assert "xyzzy" not in json.dumps(entries)


def test_log_fields_equal_the_decision(build: Callable[..., Guard]) -> None:
    tiers = {
        "small": (FakeModel(ANSWER), FixedScorer(0.6, typicality=0.3)),
        "large": (FakeModel(STRANGER), FixedScorer(0)),
    }
    with capture_logs() as entries:
        made = build("retry-then-answer", tiers).decide(QUESTION)
    finished, failed, decided = entries
    small, large = made.attempts
    assert finished == {
        "event": "ilis_guard.attempt.finished",
        "log_level": "info",
        "decision": made.id,
        "tier": "small",
        "attempt": 1,
        "stage": "answer",
        "uncertainty": 0.6,
        "typicality": 0.3,
        "rank": None,
        "departures": [],
        "tokens": 3,
        "stopped_at": None,
        "seconds": small.seconds,
    }
    assert failed == {
        "event": "ilis_guard.attempt.failed",
        "log_level": "warning",
        "decision": made.id,
        "tier": "large",
        "attempt": 2,
        "error": "UnexpectedError: RuntimeError",
        "seconds": large.seconds,
    }
    assert decided == {
        "event": "ilis_guard.decision.made",
        "log_level": "info",
        "decision": made.id,
        "action": "abstain",
        "rule": None,
        "tier": "large",
        "uncertainty": None,
        "calibrated": False,
        "rank": None,
        "attempts": 2,
        "ticket": None,
        "seconds": decided["seconds"],
        "cost": None,
        "mode": "enforce",
        "policy": made.policy,
        "thresholds": {},
        "bundles": {},
        "shadow": None,
    }
    assert decided["seconds"] >= small.seconds + large.seconds


def test_each_repeated_call_is_logged(build: Callable[..., Guard]) -> None:
    model = FakeModel(TransientModelError("busy"))
    entries = logged(build(ABSTAIN, {"small": (model, FixedScorer(0.1))}))
    repeats = [entry for entry in entries if entry["event"] == events.CALL_REPEATED]
    assert [(entry["call"], entry["error"]) for entry in repeats] == [
        (1, "TransientModelError"),
        (2, "TransientModelError"),
    ]


def test_texts_are_logged_where_they_are_asked_for(build: Callable[..., Guard]) -> None:
    entries = logged(build("answer", {"small": (FakeModel(ANSWER), FixedScorer(0.1))}, log_texts=True))
    assert (entries[-1]["prompt"], entries[-1]["text"]) == (QUESTION, ANSWER)


def test_an_answer_held_back_is_not_logged_even_where_texts_are(build: Callable[..., Guard]) -> None:
    entries = logged(build(ABSTAIN, {"small": (FakeModel(ANSWER), FixedScorer(0.1))}, log_texts=True))
    assert entries[-1]["text"] == "I do not know."
    assert "plugh" not in json.dumps(entries)


def test_a_log_that_fails_costs_nobody_a_decision_or_a_ticket(
    build: Callable[..., Guard], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise BrokenPipeError(f"{QUESTION} {ANSWER}")

    before = structlog.get_config()
    structlog.configure(processors=[broken])
    try:
        with InMemoryQueue() as queue:
            made = build(ESCALATE, {"small": (FakeModel(ANSWER), FixedScorer(0.5))}, review=queue).decide(QUESTION)
            assert made.ticket is not None
            assert queue.get(made.ticket.id).decision == made.id
    finally:
        structlog.reset_defaults()
        if before != structlog.get_config():
            structlog.configure(**before)
    assert caplog.messages[-1] == "ilis_guard.decision.made couldn't be logged: BrokenPipeError"
    assert QUESTION not in caplog.text
