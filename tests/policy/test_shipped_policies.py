"""What the ready-made policies do with telling facts."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ilis_guard.policy import Facts, Policy
from ilis_guard.types import Labels, Statistics

FOLDER = Path(__file__).parents[2] / "policies"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
CALM = Statistics(logprob_sum=-1.0, logprob_mean=-0.1, entropy_mean=0.1, margin_min=0.5)


def outcome(name: str, facts: Facts) -> tuple[str, str | None, str | None]:
    ruling = Policy.load(name).evaluate(facts)
    return ruling.action.value, ruling.rule, ruling.to


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_policy_is_named_as_its_file_and_explains_itself(name: str) -> None:
    policy = Policy.load(name)
    assert policy.name == name
    assert policy.description
    lines = (FOLDER / f"{name}.yaml").read_text("utf-8").splitlines()
    for index, line in enumerate(lines):
        if line.startswith("  - id:"):
            assert lines[index - 1].startswith("  # "), f"line {index + 1}: a rule without a comment"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(uncertainty=math.nan, shift=math.nan),
        Facts(uncertainty=0.01, shift=0.9, error="time-out", statistics=CALM),
        Facts(uncertainty=0.01, shift=0.9, error="time-out", statistics=CALM, last_tier=False),
        Facts(uncertainty=-1.0, shift=0.9, statistics=CALM),
        Facts(uncertainty=0.01, shift=None, statistics=CALM),
        Facts(uncertainty=0.01, shift=math.nan, statistics=CALM),
        Facts(uncertainty=0.01, shift=0.0, statistics=CALM),
    ],
)
def test_no_shipped_policy_answers_blindly(name: str, facts: Facts) -> None:
    assert outcome(name, facts)[0] != "answer"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.24, shift=0.5), ("answer", "sure", None)),
        (Facts(uncertainty=0.24, shift=0.01), ("answer", "sure", None)),
        (Facts(uncertainty=0.25, shift=0.5), ("escalate", "unsure-so-ask-a-person", "default")),
        (Facts(uncertainty=0.25, shift=0.5, last_tier=False), ("retry", "unsure-so-try-larger", None)),
        (Facts(uncertainty=0.75, shift=0.5), ("abstain", "hopeless", None)),
        (Facts(uncertainty=0.75, shift=0.001), ("escalate", "unsure-so-ask-a-person", "default")),
        (Facts(), ("abstain", "hopeless", None)),
        (Facts(error="x", last_tier=False), ("retry", "failed-so-try-larger", None)),
        (Facts(error="x"), ("escalate", "failed-so-ask-a-person", "default")),
    ],
)
def test_default(facts: Facts, expected: tuple[str, str, str | None]) -> None:
    assert outcome("default", facts) == expected


@pytest.mark.parametrize(
    ("labels", "uncertainty", "expected"),
    [
        ({}, 0.29, ("answer", "sure-enough", None)),
        ({}, 0.3, ("escalate", "ask-a-person", "support")),
        ({"customer": "private"}, 0.29, ("answer", "sure-enough", None)),
        ({"customer": "business"}, 0.29, ("escalate", "ask-a-person", "support")),
        ({"customer": "business"}, 0.14, ("answer", "sure-enough-for-business", None)),
        ({"topic": "legal"}, 0.0, ("escalate", "legal-is-for-people", "legal")),
        ({"topic": "billing"}, 0.05, ("escalate", "billing-only-when-certain", "billing")),
        ({"topic": "billing"}, 0.04, ("answer", "sure-enough", None)),
    ],
)
def test_customer_support(labels: Labels, uncertainty: float, expected: tuple[str, str, str | None]) -> None:
    assert outcome("customer-support", Facts(uncertainty=uncertainty, shift=0.5, labels=labels)) == expected


def test_customer_support_tries_larger_tiers_only_while_the_customer_waits_short() -> None:
    unsure = Facts(uncertainty=0.6, shift=0.5, last_tier=False)
    assert outcome("customer-support", replace(unsure, seconds=2.0))[0] == "retry"
    assert outcome("customer-support", replace(unsure, seconds=12.0))[0] == "escalate"
    assert outcome("customer-support", Facts(error="x", last_tier=False, attempt=1))[0] == "retry"
    assert outcome("customer-support", Facts(error="x", last_tier=False, attempt=2))[0] == "escalate"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.04, shift=0.5, statistics=CALM), ("answer", "very-sure", None)),
        (Facts(uncertainty=0.04, shift=0.5), ("escalate", "ask-a-clinician", "clinician")),
        (Facts(uncertainty=0.04, shift=0.04, statistics=CALM), ("escalate", "unknown-ground", "clinician")),
        (Facts(uncertainty=0.2, shift=0.5, last_tier=False), ("retry", "try-larger", None)),
        (Facts(uncertainty=0.3, shift=0.5, last_tier=False), ("escalate", "ask-a-clinician", "clinician")),
        (Facts(error="x", last_tier=False), ("escalate", "failed", "clinician")),
        (
            Facts(uncertainty=0.01, shift=0.5, statistics=CALM, labels={"urgent": True}),
            ("escalate", "urgent-is-for-clinicians", "clinician-on-call"),
        ),
        (Facts(uncertainty=0.01, shift=0.5, statistics=CALM, labels={"urgent": False}), ("answer", "very-sure", None)),
    ],
)
def test_clinical(facts: Facts, expected: tuple[str, str, str | None]) -> None:
    assert outcome("clinical", facts) == expected


@pytest.mark.parametrize("error", ["", "x"])
@pytest.mark.parametrize("uncertainty", [None, 0.0, 0.2, 0.6, 1.0])
def test_clinical_never_abstains(uncertainty: float | None, error: str) -> None:
    assert outcome("clinical", Facts(uncertainty=uncertainty, shift=0.5, error=error))[0] != "abstain"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.95, shift=0.5, last_tier=False), ("retry", "too-hard-for-this-tier")),
        (Facts(uncertainty=0.89, shift=0.5, last_tier=False), None),
        (Facts(uncertainty=0.95, shift=0.5), None),
        (Facts(uncertainty=0.98, shift=0.5), ("abstain", "too-hard-for-all")),
        (Facts(uncertainty=0.98, shift=0.01), None),
        (Facts(last_tier=False), None),
    ],
)
def test_cost_first_at_the_prompt(facts: Facts, expected: tuple[str, str] | None) -> None:
    ruling = Policy.load("cost-first").evaluate_prompt(facts).ruling
    assert (None if ruling is None else (ruling.action.value, ruling.rule)) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(uncertainty=0.29, shift=0.5), ("answer", "sure-enough", None)),
        (Facts(uncertainty=0.29, shift=0.001), ("escalate", "ask-a-person", "default")),
        (Facts(uncertainty=0.3, shift=0.5, last_tier=False), ("retry", "try-larger", None)),
        (Facts(error="x", last_tier=False), ("retry", "try-larger", None)),
        (Facts(error="x"), ("escalate", "ask-a-person", "default")),
        (Facts(uncertainty=0.6, shift=0.5), ("abstain", "decline", None)),
        (Facts(), ("abstain", "decline", None)),
    ],
)
def test_cost_first_on_the_answer(facts: Facts, expected: tuple[str, str, str | None]) -> None:
    assert outcome("cost-first", facts) == expected
