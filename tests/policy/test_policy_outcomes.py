"""From a policy file to a ruling: one fixture per outcome."""

from pathlib import Path

import pytest

from ilis_guard.policy import Facts, Policy
from ilis_guard.types import Action

FIXTURES = Path(__file__).parent / "fixtures"
FACTS = Facts(uncertainty=0.15, typicality=0.5, tier="small", last_tier=False, labels={"topic": "legal"})

OUTCOMES = {
    "answer": (Action.ANSWER, "sure", None, ""),
    "abstain": (Action.ABSTAIN, None, None, ""),
    "retry-next": (Action.RETRY, "again", None, ""),
    "retry-named": (Action.RETRY, "again", "large", ""),
    "escalate-default": (Action.ESCALATE, "person", "default", ""),
    "escalate-queue": (Action.ESCALATE, "person", "legal", "A lawyer will look at this."),
    "no-rule-holds": (Action.ABSTAIN, None, None, ""),
}


def test_every_fixture_has_its_outcome() -> None:
    assert {file.stem for file in FIXTURES.glob("*.yaml")} == set(OUTCOMES)


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_file_becomes_a_ruling(name: str) -> None:
    policy = Policy.load(FIXTURES / f"{name}.yaml")
    ruling = policy.evaluate(FACTS)
    assert policy.name == name
    assert (ruling.action, ruling.rule, ruling.to, ruling.say) == OUTCOMES[name]


def test_an_abstain_rule_says_its_message() -> None:
    ruling = Policy.load(FIXTURES / "abstain.yaml").evaluate(Facts(uncertainty=0.9))
    assert (ruling.action, ruling.rule, ruling.say) == (Action.ABSTAIN, "unsure", "I don't know.")
