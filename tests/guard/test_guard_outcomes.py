"""From a policy's file to a decision: one fixture per outcome."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ilis_guard.cascade.tier import Tier
from ilis_guard.errors import ConfigError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Action, Decision, Labels, Score, Verdict
from tests.explained import why

QUESTION = "What is the boiling point of gallium?"


def decided(path: Path, tiers: dict[str, float | Score | Exception | None], labels: Labels | None = None) -> Decision:
    with fake_guard(path, tiers) as guard:
        return guard.decide(QUESTION, labels=labels)


def test_answer(fixture: Callable[[str], Path]) -> None:
    made = decided(fixture("answer"), {"small": 0.1})
    assert (made.action, made.text, made.uncertainty) == (Action.ANSWER, "answer of small", 0.1)
    assert (made.rule, made.rules, made.ticket) == ("sure", ("sure",), None)
    assert why(made) == ("rule 'sure' decided: answer, because `uncertainty < 0.2` is true (uncertainty is 0.1)",)
    assert made.policy == Policy.load(fixture("answer")).fingerprint


def test_abstain_says_the_policys_message_and_not_the_answer(fixture: Callable[[str], Path]) -> None:
    made = decided(fixture("abstain"), {"small": 0.6})
    assert (made.action, made.text, made.rule, made.ticket) == (Action.ABSTAIN, "I don't know.", "hopeless", None)
    assert made.attempts[0].text == "answer of small"


def test_retry_then_answer(fixture: Callable[[str], Path]) -> None:
    made = decided(fixture("retry-then-answer"), {"small": 0.6, "large": 0.1})
    assert (made.action, made.text, made.uncertainty) == (Action.ANSWER, "answer of large", 0.1)
    assert made.rules == ("larger", "sure")
    assert [(attempt.tier, attempt.uncertainty) for attempt in made.attempts] == [("small", 0.6), ("large", 0.1)]


def test_retry_with_no_tier_left_passes_on_to_the_next_rule(fixture: Callable[[str], Path]) -> None:
    made = decided(fixture("retry-exhausted"), {"small": 0.6, "large": 0.7})
    assert (made.action, made.text, made.uncertainty) == (Action.ABSTAIN, "No model was sure.", 0.7)
    assert made.rules == ("larger", "give-up")
    assert "rule 'larger' passed over: it would retry, but there is no larger tier" in why(made)


def test_retry_to_a_named_tier_skips_those_between(fixture: Callable[[str], Path]) -> None:
    made = decided(fixture("retry-skips"), {"small": 0.6, "middle": 0.1, "large": 0.1, "largest": 0.1})
    assert [attempt.tier for attempt in made.attempts] == ["small", "large"]
    assert made.text == "answer of large"


def test_retry_to_a_named_tier_never_goes_back(fixture: Callable[[str], Path]) -> None:
    made = decided(fixture("retry-skips"), {"large": 0.6, "largest": 0.1})
    assert [attempt.tier for attempt in made.attempts] == ["large"]
    assert made.action is Action.ABSTAIN
    assert "rule 'largest' passed over: it would retry on 'large', but that tier made this attempt" in why(made)


def test_escalate_holds_the_answer_back_and_stores_a_ticket(build: Callable[..., Guard]) -> None:
    with InMemoryQueue() as queue:
        guard = build("escalate", {"small": (FakeModel("2400 °C"), FixedScorer(0.6))}, review=queue)
        made = guard.decide(QUESTION, labels={"topic": "chemistry"})
        assert made.ticket is not None
        record = queue.get(made.ticket.id)
    assert (made.action, made.text) == (Action.ESCALATE, "A chemist will write to you.")
    assert (record.ticket, record.decision, record.policy) == (made.ticket, made.id, made.policy)
    assert (record.ticket.queue, record.rule, record.say) == ("chemists", "person", "A chemist will write to you.")
    assert record.request == {"messages": [{"role": "user", "content": QUESTION}], "labels": {"topic": "chemistry"}}
    assert record.rulings == made.rulings
    assert list(record.attempts) == [attempt.to_dict() for attempt in made.attempts]
    assert record.proposed == "2400 °C"


def test_a_policy_that_is_exhausted_abstains_and_says_so(fixture: Callable[[str], Path]) -> None:
    made = decided(fixture("no-rule-holds"), {"small": 0.6})
    assert (made.action, made.text, made.rule, made.rules) == (Action.ABSTAIN, "", None, (None,))
    assert why(made)[-1] == "no rule held: abstained"


@pytest.mark.parametrize(
    ("labels", "action"),
    [
        ({"topic": "legal"}, Action.ESCALATE),
        ({"topic": "sports"}, Action.ANSWER),
        # Nobody said whether it is legal: nothing is answered.
        ({}, Action.ABSTAIN),
    ],
)
def test_labels_reach_the_conditions(fixture: Callable[[str], Path], labels: Labels, action: Action) -> None:
    assert decided(fixture("labels"), {"small": 0.1}, labels).action is action


def test_a_missing_label_is_named_in_the_reasons(fixture: Callable[[str], Path]) -> None:
    reasons = why(decided(fixture("labels"), {"small": 0.1}))
    assert reasons[1] == (
        "rule 'sure' passed over: rule 'legal' couldn't be evaluated, so nothing is answered after it: the label "
        "'topic' is absent; ask has(labels.topic) first"
    )


def test_conditions_count_over_all_attempts(build: Callable[..., Guard]) -> None:
    policy = (
        "version: 1\nname: p\nrules:\n"
        "  - {id: long, when: tokens == 5 && attempt == 2 && last_tier, do: abstain}\n"
        "  - {id: again, do: retry}\n"
    )
    tiers = {"a": (FakeModel("two words"), FixedScorer(0.5)), "b": (FakeModel("and three more"), FixedScorer(0.5))}
    assert build(policy, tiers).decide(QUESTION).rules == ("again", "long")


def test_unknown_tier_in_a_policy_is_refused(fixture: Callable[[str], Path]) -> None:
    path = fixture("retry-skips")
    with pytest.raises(ConfigError) as refused:
        fake_guard(path, {"small": 0.5})
    assert str(refused.value) == (
        f"{path}:9:9: rule 'largest' retries on the tier 'large', which doesn't exist; there are ['small']"
    )


def test_escalating_policy_without_a_queue_is_refused(fixture: Callable[[str], Path]) -> None:
    path = fixture("escalate")
    tier = Tier(name="small", model=FakeModel("x"), scorer=FixedScorer(0.1))
    with pytest.raises(ConfigError) as refused:
        Guard(tiers=[tier], policy=Policy.load(path))
    assert str(refused.value).startswith(f"{path}:6:9: rule 'person' escalates, and there is no queue")


def test_a_policy_that_never_escalates_needs_no_queue(fixture: Callable[[str], Path]) -> None:
    tier = Tier(name="small", model=FakeModel("x"), scorer=FixedScorer(0.1))
    with Guard(tiers=[tier], policy=Policy.load(fixture("answer"))) as guard:
        assert guard.decide(QUESTION).text == "x"


def test_a_guard_without_tiers_or_with_two_of_one_name_is_refused(fixture: Callable[[str], Path]) -> None:
    policy = Policy.load(fixture("answer"))
    twin = Tier(name="small", model=FakeModel("x"))
    with pytest.raises(ConfigError, match="needs at least one tier"):
        Guard(tiers=[], policy=policy)
    with pytest.raises(ConfigError, match=r"different names, got \['small', 'small'\]"):
        Guard(tiers=[twin, twin], policy=policy)


def test_a_decision_is_json_complete_and_survives_pickling(fixture: Callable[[str], Path]) -> None:
    made = decided(fixture("escalate"), {"small": Score(uncertainty=np.float32(0.75), typicality=np.float32(0.5))})  # type: ignore[arg-type]  # a scorer of NumPy's habits
    assert made.ticket is not None
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    signatures = {name: signature.tolist() for name, signature in made.attempts[0].signatures.items()}
    assert set(signatures) == {"prompt", "last", "mean"}
    assert told == {
        "id": made.id,
        "created_at": made.created_at,
        "action": "escalate",
        "text": "A chemist will write to you.",
        "uncertainty": 0.75,
        "calibrated": True,
        "rank": None,
        "rule": "person",
        "rulings": [ruling.to_dict() for ruling in made.rulings],
        "policy": made.policy,
        "labels": {},
        "prompt_length": len(QUESTION),
        "mode": "enforce",
        "thresholds": {},
        "bundles": {},
        "shadow": None,
        "cost": 0.0,
        "ticket": made.ticket.to_dict() | {"state": "open", "queue": "chemists", "verdict": None},
        "ticket_error": None,
        "attempts": [
            {
                "tier": "small",
                "stage": "answer",
                "text": "answer of small",
                "uncertainty": 0.75,
                "typicality": 0.5,
                "rank": None,
                "calibrated": True,
                "departures": [],
                "prompt_score": None,
                "prompt_seconds": None,
                "prompt_cost": None,
                "statistics": {"logprob_sum": -0.1 * 3, "logprob_mean": -0.1, "entropy_mean": 0.2, "margin_min": 0.5},
                "seconds": made.attempts[0].seconds,
                "prompt_tokens": 7,
                "tokens": 3,
                "cost": 0.0,
                "finish_reason": "stop",
                "stopped_at": None,
                "error": None,
                "signatures": signatures,
            }
        ],
    }
    again = pickle.loads(pickle.dumps(made))
    assert again.to_dict() == made.to_dict()
    assert again.action is Action.ESCALATE


def test_resolved_ticket_keeps_the_decision(build: Callable[..., Guard]) -> None:
    with InMemoryQueue() as queue:
        made = build("escalate", {"small": (FakeModel("2400 °C"), FixedScorer(0.6))}, review=queue).decide(QUESTION)
        assert made.ticket is not None
        resolved = queue.resolve(made.ticket.id, Verdict.CORRECT, text="2403 °C")
        assert queue.get(resolved.id).decision == made.id
        assert resolved.text == "2403 °C"
