"""A guard with another model in a tier's place, as wrapped runnables have it."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ilis_guard import Action, Generation, Guard, Message, Policy, Tier
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import BundleMismatchError, CircuitOpenError, ConfigError, ModelError
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from tests.explained import problem

PACKAGED = "packaged:smollm2-135m-instruct-full"
POLICY = """
version: 1
name: by-score
rules:
  - {id: failed, when: 'error != ""', do: retry}
  - {id: sure, when: 'uncertainty < 0.3', do: answer}
  - {id: unsure, do: retry}
  - {id: declined, do: abstain}
"""


def guard(small: float = 0.1, *, breaker: BreakerSettings | None = None) -> Guard:
    return Guard(
        tiers=[
            Tier(name="small", model=FakeModel("own"), scorer=FixedScorer(small), breaker=breaker),
            Tier(name="large", model=FakeModel("larger"), scorer=FixedScorer(0.1)),
        ],
        policy=Policy.parse(POLICY),
    )


def test_replaced_model_answers_only_in_the_new_guard() -> None:
    first = guard()
    other = first.with_model("small", FakeModel("placed"))
    assert other.decide("q").text == "placed"
    assert first.decide("q").text == "own"


def test_a_tier_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="'huge'"):
        guard().with_model("huge", FakeModel("placed"))


def test_the_policys_file_is_followed_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ilis_guard.policy.reload.CHECK_SECONDS", 0.0)
    monkeypatch.setattr("ilis_guard.policy.reload.SETTLE_SECONDS", 0.01)
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    first = guard()
    first.follow(file)
    other = first.with_model("small", FakeModel("placed"))
    file.write_text(POLICY.replace("name: by-score", "name: changed"))
    for _ in range(500):
        if other.policy.name == "changed":
            break
        time.sleep(0.01)
    assert other.policy.name == first.policy.name == "changed"


def test_replaced_model_has_a_new_breaker() -> None:
    first = guard(breaker=BreakerSettings(failures=1, seconds=60))
    other = first.with_model("small", FakeModel(OSError("down")))
    assert "UnexpectedError: OSError" in problem(other.decide("q").attempts[0])
    assert CircuitOpenError.__name__ in problem(other.decide("q").attempts[0])
    assert first.decide("q").text == "own"


def test_bundle_of_another_model_is_dropped() -> None:
    bundle = read_bundle(PACKAGED)
    tiers = [Tier(name="small", model=FakeModel("own"), scorer=LightGBMScorer(bundle))]
    first = Guard(tiers=tiers, policy=Policy.parse(POLICY))
    decision = first.with_model("small", FakeModel("placed")).decide("q")
    assert (decision.action, decision.uncertainty, decision.bundles) == (Action.ABSTAIN, None, {})
    assert "no bundle" in problem(decision.attempts[0])
    fits = FakeModel("placed", fingerprint=bundle.metadata.fingerprint)
    assert first.with_model("small", fits).decide("q").bundles == {"small": bundle.digest}


def test_a_model_that_a_bundle_was_not_fitted_to_is_refused() -> None:
    bundle = read_bundle(PACKAGED)
    tiers = [Tier(name="small", model=FakeModel("own"), scorer=LightGBMScorer(bundle))]
    fitted: Any = bundle.metadata.fingerprint
    stranger = FakeModel("placed", fingerprint=replace(fitted, weights="0" * 16))
    with pytest.raises(BundleMismatchError, match="weights differ"):
        Guard(tiers=tiers, policy=Policy.parse(POLICY)).with_model("small", stranger)


def test_prompt_bundle_refuses_a_model_that_cannot_stop_at_the_prompt() -> None:
    class Plain:
        fingerprint = None

        def generate(self, messages: object) -> Generation:  # noqa: ARG002
            raise AssertionError

    with pytest.raises(ConfigError, match="prompt bundle"):
        fake_guard("cost-first", {"small": 0.1}, prompts={"small": 0.1}).with_model("small", Plain())


def test_check_runs_on_every_answer_before_the_score() -> None:
    passed: list[tuple[str, str]] = []

    def check(tier: str, generation: Generation) -> None:
        passed.append((tier, generation.text))
        if tier == "small":
            raise ModelError("can't be parsed")

    decision = guard().with_model("small", FakeModel("placed"), check=check).decide("q")
    assert passed == [("small", "placed"), ("large", "larger")]
    assert (decision.text, decision.rules) == ("larger", ("failed", "sure"))
    assert problem(decision.attempts[0]) == "ModelError: can't be parsed"
    assert (decision.attempts[0].text, decision.attempts[0].uncertainty) == ("placed", None)


def test_sent_prompt_reaches_larger_tiers_tickets_and_facts() -> None:
    sent = (Message(role="system", content="Be brief."), Message(role="user", content="Capital of Norway?"))
    large = FakeModel("larger")
    generation = replace(FakeModel("placed").generate(sent), sent=sent)
    policy = POLICY.replace("do: abstain", "do: escalate, to: people")
    with InMemoryQueue() as queue:
        tiers = [
            Tier(name="small", model=FakeModel(generation), scorer=FixedScorer(0.9)),
            Tier(name="large", model=large, scorer=FixedScorer(0.9)),
        ]
        decision = Guard(tiers=tiers, policy=Policy.parse(policy), review=queue).decide("Norway")
        assert decision.ticket is not None
        assert large.calls == [sent]
        shown = queue.get(decision.ticket.id).request["messages"]
        assert [turn["content"] for turn in shown] == ["Be brief.", "Capital of Norway?"]
    assert decision.prompt_length == len("Capital of Norway?")
