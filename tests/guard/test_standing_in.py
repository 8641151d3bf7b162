"""Models that stand in for tiers, for one call; and decisions whose id the caller brings."""

from dataclasses import replace

import pytest

from ilis_guard import Guard, Policy, Tier
from ilis_guard.errors import ConfigError
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Action

QUESTION = "What is the boiling point of gallium?"
BUNDLE = "packaged:smollm2-135m-instruct-full"


def test_a_model_stands_in_for_a_tiers_own() -> None:
    guard = fake_guard("default", {"small": 0.9, "large": 0.1})
    standing = FakeModel("of the one that stands in")
    assert guard.with_models({"large": standing}).decide(QUESTION).text == "of the one that stands in"
    assert guard.decide(QUESTION).text == "answer of large"


def test_what_there_is_beside_the_models_is_shared() -> None:
    guard = fake_guard("default", {"small": 0.5})
    decision = guard.with_models({"small": FakeModel("2403 °C")}).decide(QUESTION)
    assert isinstance(guard.review, InMemoryQueue)
    assert decision.ticket is not None
    assert guard.review.get(decision.ticket.id).proposed == "2403 °C"
    assert guard.with_models({}).policy is guard.policy


def test_it_stands_in_for_a_tier_that_there_is() -> None:
    with pytest.raises(ConfigError, match=r"there are no tiers \['lrage'\]; the guard has \['small', 'large'\]"):
        fake_guard("default", {"small": 0.9, "large": 0.1}).with_models({"lrage": FakeModel("")})


def test_a_bundle_scores_only_the_model_that_it_was_fitted_to() -> None:
    scorer = LightGBMScorer(read_bundle(BUNDLE))
    fitted = scorer.bundle.metadata.fingerprint
    tier = Tier(name="small", model=FakeModel("own", fingerprint=fitted), scorer=scorer)
    same = FakeModel("same", fingerprint=replace(fitted))
    other = FakeModel("other", fingerprint=replace(fitted, temperature=fitted.temperature + 1))
    assert tier.with_model(same).scorer is scorer
    assert tier.with_model(other).scorer is None
    assert tier.with_model(FakeModel("untapped")).scorer is None


def test_without_a_score_the_policy_rules_on_that() -> None:
    scorer = LightGBMScorer(read_bundle(BUNDLE))
    policy = Policy.parse("version: 1\nname: p\nrules:\n  - {id: unscored, when: error != '', do: abstain, say: No.}\n")
    guard = Guard(tiers=[Tier(name="small", model=FakeModel("own"), scorer=scorer)], policy=policy)
    decision = guard.with_models({"small": FakeModel("untapped")}).decide(QUESTION)
    assert (decision.action, decision.text, decision.rule) == (Action.ABSTAIN, "No.", "unscored")
    assert "has no bundle" in decision.attempts[0].error


def test_nobody_who_stands_in_is_asked_to_stop_at_the_prompt() -> None:
    tier = Tier(name="small", model=FakeModel("own"), scorer=FixedScorer(0.1), prompt_scorer=FixedScorer(0.9))
    assert tier.with_model(FakeModel("other")).prompt_scorer is None


def test_a_decision_has_the_id_that_the_caller_brings_and_one_ticket() -> None:
    guard = fake_guard("default", {"small": 0.5})
    first, again = (guard.decide(QUESTION, id="order-17") for _ in range(2))
    assert first.id == again.id == "order-17"
    assert isinstance(guard.review, InMemoryQueue)
    assert first.ticket is not None
    assert again.ticket is not None
    assert first.ticket.id == again.ticket.id
    assert len(guard.review.list()) == 1


async def test_async_as_well() -> None:
    assert (await fake_guard("default", {"small": 0.1}).adecide(QUESTION, id="order-17")).id == "order-17"


def test_a_ticket_is_found_by_its_decision() -> None:
    guard = fake_guard("default", {"small": 0.5})
    decision = guard.decide(QUESTION, id="order-17")
    assert isinstance(guard.review, InMemoryQueue)
    assert decision.ticket is not None
    found = guard.review.of_decision("order-17")
    assert found == guard.review.get(decision.ticket.id)
    assert guard.review.of_decision("order-18") is None
