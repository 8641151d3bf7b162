"""What each shipped policy says to chosen facts, and does in a guard."""

from dataclasses import replace
from typing import Any

import pytest

from ilis_guard.cascade.tier import Tier
from ilis_guard.guard import Guard
from ilis_guard.policy import Facts, Policy
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Action, Decision, Generation, Labels, Statistics

CALM = Statistics(logprob_sum=-1.0, logprob_mean=-0.1, entropy_mean=0.1, margin_min=0.5)


def outcome(name: str, facts: Facts) -> tuple[str, str | None, str | None]:
    ruling = Policy.load(name).evaluate(facts)
    return ruling.action.value, ruling.rule, ruling.to


def early(name: str, facts: Facts) -> tuple[str, str | None] | None:
    ruling = Policy.load(name).evaluate_prompt(facts).ruling
    return None if ruling is None else (ruling.action.value, ruling.rule)


def queued(decision: Decision) -> str | None:
    """The queue where the decision's ticket waits; None where it has none."""
    return None if decision.ticket is None else decision.ticket.queue


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.24, typicality=0.5), ("answer", "sure", None)),
        (Facts(uncertainty=0.24, typicality=0.01), ("answer", "sure", None)),
        (Facts(uncertainty=0.25, typicality=0.5), ("escalate", "unsure-so-ask-a-person", "default")),
        (Facts(uncertainty=0.25, typicality=0.5, last_tier=False), ("retry", "unsure-so-try-larger", None)),
        (Facts(uncertainty=0.75, typicality=0.5), ("abstain", "hopeless", None)),
        (Facts(uncertainty=0.75, typicality=0.001), ("escalate", "unsure-so-ask-a-person", "default")),
        (Facts(), ("escalate", "unsure-so-ask-a-person", "default")),
        (Facts(uncertainty=0.01, typicality=0.5, calibrated=False), ("escalate", "unsure-so-ask-a-person", "default")),
        (
            Facts(uncertainty=0.01, typicality=0.5, calibrated=False, last_tier=False),
            ("retry", "unsure-so-try-larger", None),
        ),
        (Facts(uncertainty=0.9, typicality=0.5, calibrated=False, rank=0.59), ("answer", "among-the-surest", None)),
        (
            Facts(uncertainty=0.1, typicality=0.5, calibrated=False, rank=0.6),
            ("escalate", "unsure-so-ask-a-person", "default"),
        ),
        (Facts(error="x", last_tier=False), ("retry", "failed-so-try-larger", None)),
        (Facts(error="x"), ("escalate", "failed-so-ask-a-person", "default")),
    ],
)
def test_default(facts: Facts, expected: tuple[str, str, str | None]) -> None:
    assert outcome("default", facts) == expected


def test_default_in_a_guard() -> None:
    with fake_guard("default", {"small": 0.9, "large": 0.5}) as guard:
        made = guard.decide("?")
        assert (made.rules, queued(made)) == (("unsure-so-try-larger", "unsure-so-ask-a-person"), "default")


@pytest.mark.parametrize(
    ("labels", "uncertainty", "expected"),
    [
        ({}, 0.29, ("answer", "sure-enough", None)),
        ({}, 0.31, ("escalate", "ask-a-person", "support")),
        ({"customer": "private"}, 0.29, ("answer", "sure-enough", None)),
        ({"customer": "business"}, 0.29, ("escalate", "ask-a-person", "support")),
        ({"customer": "business"}, 0.14, ("answer", "sure-enough-for-business", None)),
        ({"topic": "legal"}, 0.0, ("escalate", "legal-is-for-people", "legal")),
        ({"topic": "billing"}, 0.05, ("escalate", "billing-only-when-certain", "billing")),
        ({"topic": "billing"}, 0.04, ("answer", "sure-enough", None)),
        ({"topic": 7}, 0.04, ("escalate", "ask-a-person", "support")),
    ],
)
def test_customer_support(labels: Labels, uncertainty: float, expected: tuple[str, str, str | None]) -> None:
    facts = Facts(uncertainty=uncertainty, threshold=0.3, typicality=0.5, labels=labels)
    assert outcome("customer-support", facts) == expected


def test_customer_support_gives_billing_no_score_that_is_not_calibrated() -> None:
    facts = Facts(uncertainty=0.01, typicality=0.5, threshold=0.3, labels={"topic": "billing"}, calibrated=False)
    assert outcome("customer-support", facts) == ("escalate", "billing-only-when-certain", "billing")
    assert outcome("customer-support", replace(facts, error="x", last_tier=False))[:2] == (
        "retry",
        "failed-so-try-larger",
    )


def test_customer_support_retries_only_while_the_wait_is_short() -> None:
    unsure = Facts(uncertainty=0.6, threshold=0.3, typicality=0.5, last_tier=False)
    assert outcome("customer-support", replace(unsure, seconds=2.0))[0] == "retry"
    assert outcome("customer-support", replace(unsure, seconds=12.0))[0] == "escalate"
    assert outcome("customer-support", Facts(error="x", last_tier=False))[:2] == ("retry", "failed-so-try-larger")
    assert outcome("customer-support", Facts(error="x"))[:2] == ("escalate", "failed-so-ask-a-person")


@pytest.mark.parametrize(("labels", "hours"), [({}, 4), ({"topic": "billing"}, 8), ({"topic": "legal"}, 48)])
def test_customer_support_says_until_when_a_person_has_to_look(labels: Labels, hours: int) -> None:
    ruling = Policy.load("customer-support").evaluate(Facts(uncertainty=0.6, labels=labels))
    assert ruling.due == hours * 3600


def test_customer_support_in_a_guard() -> None:
    thresholds = {"small": 0.1, "middle": 0.4, "large": 0.4}
    with fake_guard("customer-support", {"small": 0.2, "middle": 0.2, "large": 0.2}, thresholds=thresholds) as guard:
        made = guard.decide("Where is my parcel?")
        assert (made.action, made.rules, made.text) == (
            Action.ANSWER,
            ("try-larger", "sure-enough"),
            "answer of middle",
        )
        assert made.thresholds == thresholds
    # Two are asked at most, however many there are.
    down = RuntimeError("down")
    with fake_guard("customer-support", {"small": down, "middle": down, "large": 0.0}, thresholds=thresholds) as guard:
        made = guard.decide("Where is my parcel?")
        assert (made.rules, queued(made)) == (("failed-so-try-larger", "failed-so-ask-a-person"), "support")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.04, typicality=0.5, statistics=CALM), ("answer", "very-sure", None)),
        (Facts(uncertainty=0.06, typicality=0.5, statistics=CALM), ("escalate", "ask-a-clinician", "clinician")),
        (Facts(uncertainty=0.04, typicality=0.5), ("escalate", "ask-a-clinician", "clinician")),
        (
            Facts(uncertainty=0.04, typicality=0.5, statistics=replace(CALM, margin_min=0.09)),
            ("escalate", "ask-a-clinician", "clinician"),
        ),
        (Facts(uncertainty=0.04, typicality=0.04, statistics=CALM), ("escalate", "unknown-ground", "clinician")),
        (Facts(uncertainty=0.2, typicality=0.5, last_tier=False), ("retry", "try-larger", None)),
        (Facts(uncertainty=0.3, typicality=0.5, last_tier=False), ("escalate", "ask-a-clinician", "clinician")),
        (
            Facts(uncertainty=0.01, typicality=0.5, statistics=CALM, calibrated=False, rank=0.01, last_tier=False),
            ("escalate", "ask-a-clinician", "clinician"),
        ),
        (Facts(error="x", last_tier=False), ("escalate", "failed", "clinician")),
        (
            Facts(uncertainty=0.01, typicality=0.5, statistics=CALM, labels={"urgent": False}),
            ("answer", "very-sure", None),
        ),
    ],
)
def test_clinical(facts: Facts, expected: tuple[str, str, str | None]) -> None:
    assert outcome("clinical", replace(facts, threshold=0.05)) == expected


@pytest.mark.parametrize(
    ("labels", "is_urgent"),
    [({}, False), ({"urgent": False}, False), ({"urgent": True}, True), ({"urgent": "no"}, True)],
)
def test_clinical_calls_a_clinician_before_the_model_writes(labels: Labels, is_urgent: bool) -> None:
    ruling = Policy.load("clinical").evaluate_prompt(Facts(labels=labels)).ruling
    assert (ruling is not None) is is_urgent
    if ruling is not None:
        assert (ruling.rule, ruling.to, ruling.due) == ("urgent-is-for-clinicians", "clinician-on-call", 600)


def test_clinical_in_a_guard_shows_every_answer_to_a_clinician() -> None:
    queue = InMemoryQueue()
    with fake_guard("clinical", {"small": 0.04, "large": 0.04}, thresholds={"large": 0.05}, review=queue) as guard:
        made = guard.decide("How is gallium melted?")
        assert (made.action, made.rules, made.text) == (Action.ANSWER, ("try-larger", "very-sure"), "answer of large")
        assert [queue.get(audit.id).proposed for audit in queue.list(queue="clinical-audit")] == ["answer of large"]
        urgent = guard.decide("How much for a child?", labels={"urgent": True})
        assert (urgent.rule, queued(urgent)) == ("urgent-is-for-clinicians", "clinician-on-call")
        assert urgent.attempts[0].text == ""


@pytest.mark.parametrize("error", ["", "x"])
@pytest.mark.parametrize("uncertainty", [None, 0.0, 0.2, 0.6, 1.0])
def test_clinical_never_abstains(uncertainty: float | None, error: str) -> None:
    facts = Facts(uncertainty=uncertainty, threshold=0.05, typicality=0.5, error=error)
    assert outcome("clinical", facts)[0] != "abstain"
    assert outcome("clinical", replace(facts, threshold=None))[0] == "escalate"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.95, typicality=0.5, last_tier=False), ("retry", "too-hard-for-this-tier")),
        (Facts(uncertainty=0.89, typicality=0.5, last_tier=False), None),
        (Facts(uncertainty=0.95, typicality=0.5), None),
        (Facts(uncertainty=0.98, typicality=0.5), ("abstain", "too-hard-for-all")),
        (Facts(uncertainty=0.98, typicality=0.01), None),
        (Facts(last_tier=False), None),
        (Facts(uncertainty=0.95, typicality=0.5, last_tier=False, calibrated=False), None),
        (Facts(uncertainty=0.99, typicality=0.5, calibrated=False), None),
        (
            Facts(uncertainty=0.1, typicality=0.5, last_tier=False, calibrated=False, rank=0.9),
            ("retry", "among-the-hardest"),
        ),
    ],
)
def test_cost_first_at_the_prompt(facts: Facts, expected: tuple[str, str] | None) -> None:
    assert early("cost-first", facts) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.29, typicality=0.5), ("answer", "sure-enough", None)),
        (Facts(uncertainty=0.29, typicality=0.001), ("escalate", "ask-a-person", "default")),
        (Facts(uncertainty=0.3, typicality=0.5, last_tier=False), ("retry", "try-larger", None)),
        (Facts(error="x", last_tier=False), ("retry", "try-larger", None)),
        (Facts(error="x"), ("escalate", "ask-a-person", "default")),
        (Facts(uncertainty=0.6, typicality=0.5), ("abstain", "decline", None)),
        (Facts(), ("escalate", "ask-a-person", "default")),
        (Facts(uncertainty=0.9, typicality=0.5, calibrated=False, rank=0.69), ("answer", "among-the-surest", None)),
        (Facts(uncertainty=0.1, typicality=0.5, calibrated=False, rank=0.7), ("escalate", "ask-a-person", "default")),
        (Facts(uncertainty=0.1, typicality=0.5, calibrated=False, last_tier=False), ("retry", "try-larger", None)),
    ],
)
def test_cost_first_on_the_answer(facts: Facts, expected: tuple[str, str, str | None]) -> None:
    assert outcome("cost-first", facts) == expected


def test_cost_first_in_a_guard_stops_where_the_money_is_spent() -> None:
    doubtful = {"small": 0.5, "middle": 0.5, "large": 0.1}
    prices = {"small": 0.001, "middle": 0.02, "large": 1.0}
    with fake_guard("cost-first", doubtful, prompts={"small": 0.1}, costs=prices) as guard:
        made = guard.decide("?")
        assert (made.rules, queued(made)) == (("try-larger", "ask-a-person"), "default")
        assert made.cost == pytest.approx(0.021)
    with fake_guard("cost-first", doubtful, prompts={"small": 0.95}) as guard:
        assert guard.decide("?").rules == ("too-hard-for-this-tier", "try-larger", "sure-enough")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(labels={"target": "production", "task": "migrate"}), ("escalate", "production-is-for-its-owners")),
        (Facts(labels={"target": "production", "task": "explain"}), None),
        (Facts(labels={"target": "production"}), None),
        (Facts(prompt_length=20_001, last_tier=False), ("retry", "long-so-ask-larger")),
        (Facts(prompt_length=20_001), None),
        (Facts(prompt_length=20_000, last_tier=False), None),
    ],
)
def test_code_assistant_at_the_prompt(facts: Facts, expected: tuple[str, str] | None) -> None:
    assert early("code-assistant", facts) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.39, typicality=0.5), ("answer", "sure-enough", None)),
        (Facts(uncertainty=0.39, typicality=0.5, labels={"task": "complete"}), ("answer", "sure-enough", None)),
        (Facts(uncertainty=0.39, typicality=0.5, labels={"task": "explain"}), ("abstain", "decline", None)),
        (Facts(uncertainty=0.19, typicality=0.5, labels={"task": "explain"}), ("answer", "sure-explanation", None)),
        (Facts(uncertainty=0.1, typicality=0.5, finish_reason="length"), ("abstain", "failed-or-cut", None)),
        (
            Facts(uncertainty=0.1, typicality=0.5, finish_reason="length", last_tier=False),
            ("retry", "failed-or-cut-so-try-larger", None),
        ),
        (Facts(error="x"), ("abstain", "failed-or-cut", None)),
        (Facts(uncertainty=0.4, typicality=0.5, last_tier=False), ("retry", "try-larger", None)),
        (Facts(uncertainty=0.4, typicality=0.5), ("abstain", "decline", None)),
        (Facts(), ("abstain", "decline", None)),
        (Facts(uncertainty=0.9, typicality=0.5, calibrated=False, rank=0.49), ("answer", "among-the-surest", None)),
        (
            Facts(uncertainty=0.1, typicality=0.5, calibrated=False, rank=0.1, labels={"task": "explain"}),
            ("abstain", "decline", None),
        ),
        (Facts(uncertainty=0.1, typicality=0.5, calibrated=False, rank=0.5), ("abstain", "decline", None)),
    ],
)
def test_code_assistant_on_the_answer(facts: Facts, expected: tuple[str, str, str | None]) -> None:
    assert outcome("code-assistant", facts) == expected


def test_code_assistant_in_a_guard_gives_no_half_function() -> None:
    cut = Generation(text="def half(", tokens=64, prompt_tokens=1, finish_reason="length", seconds=0.1)
    tiers = [
        Tier(name="small", model=FakeModel([cut]), scorer=FixedScorer(0.1)),
        Tier(name="large", model=FakeModel("def whole(): ..."), scorer=FixedScorer(0.1)),
    ]
    with Guard(tiers=tiers, policy=Policy.load("code-assistant"), review=InMemoryQueue()) as guard:
        made = guard.decide("Halve it.")
    assert (made.rules, made.text) == (("failed-or-cut-so-try-larger", "sure-enough"), "def whole(): ...")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"has_context": True}, None),
        ({"has_context": True, "best_match": 0.5}, None),
        ({"has_context": True, "best_match": 0.49}, ("abstain", "hardly-fits")),
        ({"has_context": True, "best_match": 0}, ("abstain", "hardly-fits")),
        ({"has_context": False}, ("abstain", "nothing-found")),
        ({"has_context": "true"}, ("abstain", "nothing-found")),
        ({}, ("abstain", "nothing-found")),
    ],
)
def test_rag_with_context_at_the_prompt(labels: Labels, expected: tuple[str, str] | None) -> None:
    assert early("rag-with-context", Facts(labels=labels)) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.1, typicality=0.5), ("answer", "sure-enough")),
        (Facts(uncertainty=0.1, typicality=0.5, labels={"age_days": 730}), ("answer", "sure-enough")),
        (Facts(uncertainty=0.1, typicality=0.5, labels={"age_days": 730.5}), ("escalate", "outdated")),
        (Facts(uncertainty=0.1, typicality=0.04, last_tier=False), ("retry", "try-larger")),
        (
            Facts(uncertainty=0.1, typicality=0.5, finish_reason="length", last_tier=False),
            ("retry", "failed-so-try-larger"),
        ),
        (Facts(error="x", last_tier=False), ("retry", "failed-so-try-larger")),
        (Facts(uncertainty=0.3, typicality=0.5, sampling_key="lot 12"), ("escalate", "show-an-editor")),
        (Facts(uncertainty=0.3, typicality=0.5, sampling_key="lot 0"), ("abstain", "read-it-yourself")),
        (
            Facts(uncertainty=0.1, typicality=0.5, finish_reason="length", sampling_key="lot 0"),
            ("abstain", "read-it-yourself"),
        ),
        (Facts(error="x", sampling_key="lot 0"), ("abstain", "read-it-yourself")),
    ],
)
def test_rag_with_context_on_the_answer(facts: Facts, expected: tuple[str, str]) -> None:
    assert outcome("rag-with-context", replace(facts, threshold=0.2))[:2] == expected


def test_rag_with_context_shows_an_editor_a_fifth() -> None:
    unsure = [Facts(uncertainty=0.9, sampling_key=f"lot {number}") for number in range(2000)]
    policy = Policy.load("rag-with-context")
    shown = sum(policy.evaluate(facts).rule == "show-an-editor" for facts in unsure)
    assert 340 < shown < 460


def test_rag_with_context_in_a_guard_asks_no_model_where_nothing_was_found() -> None:
    with fake_guard("rag-with-context", {"small": 0.1}, thresholds={"small": 0.2}) as guard:
        nothing = guard.decide("Who wrote it?", labels={"has_context": False})
        assert (nothing.action, nothing.rule, nothing.attempts[0].text) == (Action.ABSTAIN, "nothing-found", "")
        found: dict[str, Any] = {"has_context": True, "best_match": 0.8, "age_days": 3}
        assert guard.decide("Who wrote it?", labels=found).text == "answer of small"
        old = guard.decide("Who wrote it?", labels={**found, "age_days": 1000})
        assert (old.rule, queued(old)) == ("outdated", "document-owners")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.3, typicality=0.5), ("answer", "covered", None)),
        (Facts(uncertainty=0.31, typicality=0.5, last_tier=False), ("retry", "try-larger", None)),
        (Facts(uncertainty=0.31, typicality=0.5), ("escalate", "ask-a-person", "support")),
        (Facts(uncertainty=0.1, typicality=0.001, last_tier=False), ("escalate", "unknown-ground", "support")),
        (Facts(error="x", last_tier=False), ("escalate", "failed", "support")),
        (Facts(), ("escalate", "ask-a-person", "support")),
    ],
)
def test_shadow_roll_out(facts: Facts, expected: tuple[str, str, str | None]) -> None:
    assert outcome("shadow-roll-out", replace(facts, threshold=0.3)) == expected


def test_shadow_roll_out_in_a_guard_changes_nothing_and_records() -> None:
    with fake_guard("shadow-roll-out", {"small": 0.9, "large": 0.1}, thresholds={"small": 0.3}) as guard:
        made = guard.decide("?")
        assert (made.mode, made.action, made.text) == ("shadow", Action.ANSWER, "answer of small")
        assert (made.ticket, len(made.attempts)) == (None, 1)
        assert made.shadow is not None
        assert (made.shadow.action, made.shadow.rule) == (Action.RETRY, "try-larger")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(calibrated=False, rank=0.59), ("answer", "among-the-surest", None)),
        (Facts(calibrated=False, rank=0.6), ("escalate", "ask-a-person", "default")),
        (Facts(calibrated=False, rank=0.6, last_tier=False), ("retry", "try-larger", None)),
        (Facts(calibrated=False), ("escalate", "ask-a-person", "default")),
        (Facts(calibrated=False, last_tier=False), ("escalate", "ask-a-person", "default")),
        (Facts(uncertainty=0.01, typicality=0.9), ("escalate", "ask-a-person", "default")),
        (Facts(error="ScoringError", last_tier=False), ("retry", "failed-so-try-larger", None)),
        (Facts(error="ScoringError"), ("escalate", "failed-so-ask-a-person", "default")),
    ],
)
def test_cold_start(facts: Facts, expected: tuple[str, str, str | None]) -> None:
    assert outcome("cold-start", facts) == expected
