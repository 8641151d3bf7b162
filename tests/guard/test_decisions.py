"""Decisions: their representation on one line, and the part of them that callers of an API may see."""

import json
from typing import Any

import pytest
import tenacity

from ilis_guard.cascade.tier import Tier
from ilis_guard.errors import ReviewError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action, Attempt, Decision, ErrorInfo, Ticket

QUESTION = "What is the boiling point of gallium?"
SECRET = "postgresql://admin:s3cret@db.internal/answers"
POLICY = """
version: 1
name: p
rules:
  - {id: priority, when: labels.priority > 3, do: abstain}
  - {id: failed, when: error != '', do: escalate}
  - {id: sure, when: uncertainty < 0.2, do: answer}
"""


class FailingQueue(InMemoryQueue):
    """A queue that can't store tickets."""

    def escalate(self, **_: Any) -> Ticket:
        raise ReviewError(f"could not connect to {SECRET}")


def guard(model: FakeModel, queue: InMemoryQueue) -> Guard:
    shadow = Policy.parse(POLICY.replace("name: p", "name: shadow"))
    tier = Tier(name="small", model=model, scorer=FixedScorer(0.123456))
    return Guard(tiers=[tier], policy=Policy.parse(POLICY), shadow=shadow, review=queue, backoff=tenacity.wait_none())


@pytest.fixture
def failed() -> Decision:
    """A decision with every kind of error: of the model, of rules' conditions, and of the queue."""
    with FailingQueue() as queue:
        return guard(FakeModel(RuntimeError(f"no connection to {SECRET}")), queue).decide(QUESTION)


def keys_of(values: Any) -> set[str]:
    """The keys at any depth."""
    if isinstance(values, dict):
        return {*values, *(key for value in values.values() for key in keys_of(value))}
    return {key for value in values for key in keys_of(value)} if isinstance(values, list) else set()


def test_values_for_callers_have_no_details_of_errors(failed: Decision) -> None:
    assert failed.action is Action.ABSTAIN
    shown = failed.for_callers()
    assert keys_of(shown).isdisjoint({"detail", "facts", "parts", "condition"})
    assert SECRET not in json.dumps(shown, allow_nan=False)
    (attempt,) = shown["attempts"]
    assert set(attempt["error"]) == set(shown["ticket_error"]) == {"kind", "message"}
    assert (attempt["error"]["kind"], shown["ticket_error"]["kind"]) == ("UnexpectedError", "ReviewError")
    assert [one["outcome"] for one in shown["rulings"][0]["outcomes"]] == ["failed", "decided"]
    assert shown["shadow"]["rulings"] == shown["rulings"]


def test_values_for_operators_have_the_details_of_errors(failed: Decision) -> None:
    complete = failed.to_dict()
    assert SECRET in complete["attempts"][0]["error"]["detail"]
    assert SECRET in complete["ticket_error"]["detail"]
    assert set(failed.for_callers()) == set(complete)


def test_representation_of_a_decision_is_one_line_without_texts() -> None:
    with InMemoryQueue() as queue:
        made = guard(FakeModel("2403 °C\n"), queue).decide(QUESTION, labels={"priority": 1})
    assert repr(made) == (f"Decision(action='answer', rule='sure', uncertainty=0.123, attempts=1, id={made.id!r})")


def test_representation_of_a_decision_names_its_ticket() -> None:
    with InMemoryQueue() as queue:
        made = guard(FakeModel(RuntimeError(SECRET)), queue).decide(QUESTION)
    assert made.ticket is not None
    assert repr(made) == (
        f"Decision(action='escalate', rule='failed', uncertainty=None, attempts=1, ticket={made.ticket.id!r}, "
        f"id={made.id!r})"
    )


def test_representation_of_an_attempt_is_one_line_without_texts() -> None:
    attempt = Attempt(tier="small", text="2403\n°C", uncertainty=0.123456, tokens=3)
    assert repr(attempt) == "Attempt(tier='small', stage='answer', uncertainty=0.123, tokens=3)"


def test_representation_of_a_failed_attempt_has_the_kind_of_its_error() -> None:
    attempt = Attempt(tier="small", error=ErrorInfo.of(RuntimeError(SECRET)))
    assert repr(attempt) == (
        "Attempt(tier='small', stage='answer', uncertainty=None, tokens=0, error='UnexpectedError')"
    )
