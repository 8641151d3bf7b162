"""What becomes tickets: escalations of all or of a sample, with the policy's own time, and audits of answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from ilis_guard import events
from ilis_guard.cascade.tier import Tier
from ilis_guard.config.review import QueueSettings
from ilis_guard.errors import ConfigError, ReviewError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.policy.explain import explain_decision
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action, Verdict
from tests.explained import why

if TYPE_CHECKING:
    from tests.postgresql import Server

QUESTION = "What is the boiling point of gallium?"
ANSWER = """
version: 1
name: p
audit: {fraction: 0.25, queue: audits}
rules:
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: person, do: escalate, to: people, due: 90m}
"""
SAMPLED = """
version: 1
name: p
rules:
  - {id: some, do: escalate, to: people, sample: 0.25}
  - {id: no, do: abstain, say: Sorry.}
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReviewQueue]:
    url = f"sqlite:///{tmp_path}/tickets.db"
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgresql")
        url = server.new_queue()
    settings = [QueueSettings(name="people", due=60.0), QueueSettings(name="audits", due=86_400.0)]
    with ReviewQueue(url, queues=settings, clock=lambda: 1_800_000_000.0) as opened:
        yield opened


def guard(policy: str, uncertainty: float, review: Any) -> Guard:
    tier = Tier(name="small", model=FakeModel("2403 °C"), scorer=FixedScorer(uncertainty))
    return Guard(tiers=[tier], policy=Policy.parse(policy), review=review)


def test_audit_samples_a_share_and_callers_get_all_answers(queue: ReviewQueue) -> None:
    watched = guard(ANSWER, 0.1, queue)
    made = [watched.decide(QUESTION) for _ in range(200)]
    assert {(decision.action, decision.text) for decision in made} == {(Action.ANSWER, "2403 °C")}
    drawn = [decision for decision in made if decision.ticket is not None]
    # 200 independent draws of a quarter: fewer than 20 or more than 80 come about once in a hundred million times.
    assert 20 < len(drawn) < 80
    assert {decision.id for decision in drawn} == {
        decision.id for decision in made if watched.policy.audits(decision.id)
    }
    assert len(queue.list(limit=300)) == len(drawn)
    record = queue.get(drawn[0].ticket.id)  # type: ignore[union-attr]  # those that have one
    assert (record.ticket.queue, record.rule, record.probability) == ("audits", "sure", 0.25)
    assert (record.proposed, record.say, record.decision) == ("2403 °C", "", drawn[0].id)
    assert record.ticket.due_at == 1_800_086_400.0
    assert (record.ticket.kind, record.rulings) == ("audited", drawn[0].rulings)
    assert why(drawn[0])[-1] == "sampled for an audit in the queue 'audits'"
    assert record.explain() == explain_decision(drawn[0])
    assert explain_decision(drawn[0]) == (
        "The tier 'small' answered with an uncertainty of 0.1. By rule 'sure' the answer is given, because "
        "`uncertainty < 0.2` is true (uncertainty is 0.1). It also waits in the queue 'audits' for a person's look."
    )


def test_abstentions_are_never_audited(queue: ReviewQueue) -> None:
    watched = guard(ANSWER.replace("do: escalate, to: people, due: 90m", "do: abstain"), 0.9, queue)
    assert {watched.decide(QUESTION).ticket for _ in range(50)} == {None}


def test_the_policys_own_time_wins_over_the_queues(queue: ReviewQueue) -> None:
    made = guard(ANSWER, 0.9, queue).decide(QUESTION)
    assert made.ticket is not None
    assert (made.ticket.due_at, queue.get(made.ticket.id).probability) == (1_800_000_000.0 + 5400, 1.0)
    without = guard(ANSWER.replace(", due: 90m", ""), 0.9, queue).decide(QUESTION)
    assert without.ticket is not None
    assert without.ticket.due_at == 1_800_000_060.0


def test_sampled_escalations_store_and_export_their_probability(queue: ReviewQueue, tmp_path: Path) -> None:
    watched = guard(SAMPLED, 0.9, queue)
    made = [watched.decide(QUESTION) for _ in range(200)]
    drawn = [decision.ticket for decision in made if decision.ticket is not None]
    assert 20 < len(drawn) < 80
    assert {decision.text for decision in made if decision.ticket is None} == {"Sorry."}
    assert {queue.get(ticket.id).probability for ticket in drawn} == {0.25}
    queue.resolve(drawn[0].id, Verdict.ACCEPT)
    queue.export(tmp_path / "rows.jsonl")
    assert '"probability": 0.25' in (tmp_path / "rows.jsonl").read_text()


class BrokenQueue(InMemoryQueue):
    def escalate(self, **_: Any) -> Any:
        raise ReviewError(f"the disk is full of {QUESTION}")


def test_failed_audit_is_logged_and_the_answer_stands() -> None:
    watched = guard(ANSWER.replace("0.25", "1.0"), 0.1, BrokenQueue())
    with capture_logs() as entries:
        made = watched.decide(QUESTION)
    assert (made.action, made.text, made.rule, made.ticket) == (Action.ANSWER, "2403 °C", "sure", None)
    assert why(made)[-1].startswith("the audit's ticket couldn't be stored: ReviewError: the disk is full")
    (failed,) = [entry for entry in entries if entry["event"] == events.AUDIT_FAILED]
    assert failed == {
        "event": "ilis_guard.audit.failed",
        "log_level": "error",
        "decision": made.id,
        "queue": "audits",
        "error": "ReviewError",
    }


def test_a_policy_that_audits_needs_a_queue() -> None:
    policy = ANSWER.replace("  - {id: person, do: escalate, to: people, due: 90m}\n", "")
    with pytest.raises(ConfigError, match=r"<string>:4:8: the policy audits answers, and there is no queue"):
        guard(policy, 0.1, None)
