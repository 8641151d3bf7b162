"""Rules of stage `prompt`: asked before a token is generated, they may spare an answer and never give one."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ilis_guard.cascade.tier import Tier
from ilis_guard.errors import ConfigError, ModelError, ScoringError, TransientModelError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Action, Attempt, Generation, Message, Score
from tests.explained import problem, why

QUESTION = "What is the airspeed of an unladen swallow?"
ROUTING = """
version: 1
name: routing
rules:
  - {id: too-hard, stage: prompt, when: uncertainty > 0.8, do: retry}
  - {id: for-people, stage: prompt, when: has(labels.topic) && labels.topic == "legal", do: escalate, to: legal}
  - {id: hopeless, stage: prompt, when: uncertainty > 0.95 && last_tier, do: abstain, say: No.}
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: larger, do: retry}
"""


class CountingModel(FakeModel):
    """Counts the answers that were asked for and given."""

    given = 0

    def generate(self, messages: Sequence[Message], **options: object) -> Generation:
        generation = super().generate(messages, **options)  # type: ignore[arg-type]  # handed on as it came
        self.given += generation.finish_reason is not None
        return generation


def tier(name: str, prompt: float | Score | Exception | None, answer: float = 0.1) -> Tier:
    prompt_scorer = None if prompt is None else FixedScorer(prompt)
    model = CountingModel(f"answer of {name}")
    return Tier(name=name, model=model, scorer=FixedScorer(answer), prompt_scorer=prompt_scorer)


def guard(*tiers: Tier, policy: str = ROUTING) -> Guard:
    return Guard(tiers=tiers, policy=Policy.parse(policy), review=InMemoryQueue())


def test_hard_question_goes_to_the_larger_tier_at_the_prompt() -> None:
    small, large = tier("small", 0.9), tier("large", 0.5)
    made = guard(small, large).decide(QUESTION)
    assert (made.action, made.text, made.rules) == (Action.ANSWER, "answer of large", ("too-hard", "sure"))
    first, second = made.attempts
    assert (first.stage, first.text, first.tokens, first.uncertainty) == ("prompt", "", 0, 0.9)
    assert first.prompt_score == Score(uncertainty=0.9, typicality=1.0)
    assert set(first.signatures) == {"prompt"}
    assert (first.statistics, first.finish_reason, problem(first)) == (None, None, "")
    assert (second.stage, second.uncertainty, second.tokens) == ("answer", 0.1, 3)
    assert second.prompt_score == Score(uncertainty=0.5, typicality=1.0)
    assert isinstance(small.model, CountingModel)
    assert small.model.given == 0
    assert why(made)[0] == (
        "rule 'too-hard' decided at the prompt: retry, because `uncertainty > 0.8` is true (uncertainty is 0.9)"
    )


def test_model_answers_if_no_rule_holds_at_the_prompt() -> None:
    made = guard(tier("small", 0.5)).decide(QUESTION)
    assert (made.action, made.text, made.rules) == (Action.ANSWER, "answer of small", ("sure",))
    assert why(made)[0] == "rule 'too-hard' passed over: `uncertainty > 0.8` is false (uncertainty is 0.5)"
    assert made.attempts[0].prompt_score == Score(uncertainty=0.5, typicality=1.0)


def test_the_largest_tier_may_abstain_at_the_prompt() -> None:
    made = guard(tier("only", 0.97)).decide(QUESTION)
    assert (made.action, made.text, made.rules, made.uncertainty) == (Action.ABSTAIN, "No.", ("hopeless",), 0.97)
    assert "rule 'too-hard' passed over: it would retry, but there is no larger tier" in why(made)


def test_escalation_at_the_prompt_has_no_proposed_answer() -> None:
    with InMemoryQueue() as queue:
        made = Guard(tiers=[tier("small", 0.1)], policy=Policy.parse(ROUTING), review=queue).decide(
            QUESTION, labels={"topic": "legal"}
        )
        assert (made.action, made.text) == (Action.ESCALATE, "")
        assert made.ticket is not None
        record = queue.get(made.ticket.id)
    assert (record.rule, record.proposed, record.ticket.queue) == ("for-people", None, "legal")
    assert (record.attempts[0]["stage"], record.attempts[0]["tokens"]) == ("prompt", 0)


def test_label_rules_at_the_prompt_need_no_model_call() -> None:
    small = tier("small", None)
    made = guard(small, tier("large", 0.1)).decide(QUESTION, labels={"topic": "legal"})
    assert made.rules == ("for-people",)
    assert isinstance(small.model, CountingModel)
    assert small.model.calls == []
    assert (made.attempts[0].uncertainty, made.attempts[0].signatures) == (None, {})


def test_score_rules_at_the_prompt_need_a_prompt_bundle() -> None:
    made = guard(tier("small", None), tier("large", 0.1)).decide(QUESTION)
    assert (made.text, made.attempts[0].prompt_score) == ("answer of small", None)


def test_policy_without_prompt_rules_scores_no_prompt() -> None:
    scored = tier("small", ScoringError("nobody should ask"))
    made = guard(
        scored, policy="version: 1\nname: p\nrules:\n  - {id: a, when: uncertainty < 0.5, do: answer}\n"
    ).decide("?")
    assert (made.action, made.attempts[0].prompt_score) == (Action.ANSWER, None)


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (ScoringError("the map is broken"), "ScoringError: the map is broken"),
        (
            Score(uncertainty=float("nan"), typicality=1.0),
            "ScoringError: the uncertainty must lie between 0 and 1, got nan",
        ),
        (ZeroDivisionError("/"), "UnexpectedError: ZeroDivisionError: /"),
    ],
)
def test_a_prompt_that_cant_be_scored_is_a_failed_attempt_and_no_answer(prompt: Score | Exception, error: str) -> None:
    only = tier("only", prompt)
    made = guard(only).decide(QUESTION)
    assert (made.action, made.rule, problem(made.attempts[0])) == (Action.ABSTAIN, None, error)
    assert isinstance(only.model, CountingModel)
    assert only.model.given == 0


def test_after_a_prompt_rule_that_couldnt_be_evaluated_nothing_is_answered() -> None:
    """The rule might have sent the request to a person."""
    policy = ROUTING.replace("has(labels.topic) && ", "")
    made = guard(tier("small", 0.1), policy=policy).decide(QUESTION)
    assert (made.action, made.rule) == (Action.ABSTAIN, None)
    assert any("rule 'for-people' couldn't be evaluated, so nothing is answered after it" in why for why in why(made))


def test_a_model_that_goes_on_without_asking_gives_no_answer() -> None:
    class Deaf(FakeModel):
        def generate(self, messages: Sequence[Message], **_: object) -> Generation:
            return super().generate(messages)

    deaf = Tier(name="deaf", model=Deaf("yes"), scorer=FixedScorer(0.0), prompt_scorer=FixedScorer(0.9))
    made = guard(deaf).decide(QUESTION)
    assert made.action is Action.ABSTAIN
    assert (
        problem(made.attempts[0])
        == "ModelError: the model of the tier 'deaf' answered without asking whether to proceed"
    )


def test_ruling_at_the_prompt_stands_if_the_model_fails_afterwards() -> None:
    """Else the rules of stage `answer` would send on what a rule kept from every model."""

    class Failing(FakeModel):
        def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
            super().generate(messages, **options)
            raise ModelError("can't stop")

    policy = ROUTING.replace("has(labels.topic)", "tier == 'small'")
    failing = Tier(name="small", model=Failing("yes"), scorer=FixedScorer(0.1), prompt_scorer=FixedScorer(0.5))
    made = guard(failing, tier("large", 0.1), policy=policy).decide(QUESTION, labels={"topic": "legal"})
    assert (made.action, made.rules) == (Action.ESCALATE, ("for-people",))
    (attempt,) = made.attempts
    assert (attempt.stage, attempt.uncertainty, problem(attempt)) == ("prompt", 0.5, "ModelError: can't stop")
    assert "tier 'small' failed: ModelError: can't stop" in why(made)


def test_a_model_that_cant_stop_gives_no_answer() -> None:
    class Plain:
        fingerprint = None

        def generate(self, messages: Sequence[Message]) -> Generation:
            return FakeModel("yes").generate(messages)

    plain = Tier(name="plain", model=Plain(), scorer=FixedScorer(0.0), prompt_scorer=FixedScorer(0.9))
    made = guard(plain).decide(QUESTION)
    assert made.action is Action.ABSTAIN
    assert "can't stop at the prompt" in problem(made.attempts[0])


def test_repeated_proceed_repeats_the_ruling() -> None:
    class Insistent(FakeModel):
        def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
            super().generate(messages, **options)
            return super().generate(messages, **options)

    insistent = Tier(
        name="only", model=Insistent("yes"), scorer=FixedScorer(0.1), prompt_scorer=FixedScorer([0.97, 0.1])
    )
    made = guard(insistent).decide(QUESTION)
    assert (made.action, made.text, made.rules, made.uncertainty) == (Action.ABSTAIN, "No.", ("hopeless",), 0.97)


def test_repeated_call_evaluates_the_prompt_again() -> None:
    model = FakeModel([TransientModelError("busy"), "yes"])
    prompts = FixedScorer([0.5, 0.6])
    tiers = [Tier(name="small", model=model, scorer=FixedScorer(0.1), prompt_scorer=prompts)]
    made = fake_guard_of(tiers).decide(QUESTION)
    assert (made.text, made.attempts[0].prompt_score) == ("yes", Score(uncertainty=0.6, typicality=1.0))


def fake_guard_of(tiers: list[Tier]) -> Guard:
    import tenacity

    return Guard(tiers=tiers, policy=Policy.parse(ROUTING), review=InMemoryQueue(), backoff=tenacity.wait_none())


def test_tokens_and_seconds_count_earlier_attempts() -> None:
    policy = ROUTING.replace("uncertainty > 0.8", "uncertainty > 0.8 || tokens >= 3 && attempt == 2")
    tiers = [tier("small", 0.1, answer=0.9), tier("middle", 0.1), tier("large", 0.1)]
    tiers[2] = replace(tiers[2], prompt_scorer=None)
    made = guard(*tiers, policy=policy).decide(QUESTION)
    assert made.rules == ("larger", "too-hard", "sure")
    assert [attempt.stage for attempt in made.attempts] == ["answer", "prompt", "answer"]


def test_policy_that_reads_unscored_prompts_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"<string>:5:41: rule 'too-hard' looks at a score at stage `prompt`"):
        guard(tier("small", None))
    with pytest.raises(ConfigError, match="no tier has a `prompt_bundle`"):
        fake_guard("cost-first", {"small": 0.1})


def test_an_attempt_stopped_at_the_prompt_is_json() -> None:
    made = guard(tier("only", Score(uncertainty=0.97, typicality=float("nan")))).decide(QUESTION)
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))["attempts"][0]
    score: dict[str, Any] = {
        "uncertainty": 0.97,
        "typicality": None,
        "rank": None,
        "calibrated": True,
        "departures": [],
    }
    assert (told["stage"], told["prompt_score"]) == ("prompt", score)
    assert Attempt(tier="t").to_dict()["prompt_score"] is None


def test_a_fake_guard_takes_scores_of_prompts() -> None:
    made = fake_guard("cost-first", {"small": 0.1, "large": 0.1}, prompts={"small": 0.95}).decide(QUESTION)
    assert made.rules == ("too-hard-for-this-tier", "sure-enough")
