"""A policy that only looks on: in force with `mode: shadow`, or beside the one that decides (guard.yaml's `shadow`)."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tenacity
from structlog.testing import capture_logs

from ilis_guard import events
from ilis_guard.cascade.tier import Tier
from ilis_guard.config.tiers import TierCost
from ilis_guard.errors import ConfigError, ScoringError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.policy.explain import explain_decision
from ilis_guard.policy.state import CascadeState
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action, ErrorInfo, Generation, Message, ShadowNote, ShadowRuling
from tests.explained import problem, why

QUESTION = "What is the boiling point of gallium?"
SURE = "{id: sure, when: uncertainty < 0.2, do: answer}"


def policy(*rules: str, head: str = "") -> Policy:
    listed = "".join(f"  - {rule}\n" for rule in rules)
    return Policy.parse(f"version: 1\nname: p\n{head}\nrules:\n{listed}")


def looking_on(*rules: str, head: str = "") -> Policy:
    return policy(*rules, head=f"mode: shadow\n{head}")


def tier(name: str, uncertainty: Any = 0.5, model: Any = None, prompt: Any = None) -> Tier:
    return Tier(
        name=name,
        model=model or FakeModel(f"answer of {name}"),
        scorer=None if uncertainty is None else FixedScorer(uncertainty),
        prompt_scorer=None if prompt is None else FixedScorer(prompt),
        cost=TierCost(per_request=1.0),
    )


def guard(*tiers: Tier, **parts: Any) -> Guard:
    return Guard(tiers=tiers, backoff=tenacity.wait_none(), **parts)


@pytest.mark.parametrize("do", ["retry", "escalate", "abstain"])
def test_shadow_mode_gives_the_answer_and_records_the_ruling(do: str) -> None:
    large = tier("large", 0.1)
    with (
        InMemoryQueue() as queue,
        guard(tier("small", 0.9), large, policy=looking_on(SURE, f"{{id: unsure, do: {do}}}"), review=queue) as watched,
    ):
        with capture_logs() as entries:
            made = watched.decide(QUESTION)
        assert queue.list() == []
    assert (made.action, made.text, made.uncertainty) == (Action.ANSWER, "answer of small", 0.9)
    assert (made.mode, made.rule, made.rules, made.ticket) == ("shadow", None, (), None)
    assert why(made) == ("the policy is in shadow mode: the answer was given",)
    assert isinstance(large.model, FakeModel)
    assert (len(made.attempts), large.model.calls) == (1, [])
    assert made.shadow is not None
    assert (made.shadow.policy, made.shadow.action, made.shadow.rule) == (made.policy, Action(do), "unsure")
    assert why(made.shadow)[0].startswith("rule 'sure' passed over: ")
    assert made.to_dict()["shadow"] == made.shadow.to_dict()
    assert (entries[-1]["mode"], entries[-1]["rule"], entries[-1]["shadow"]) == (
        "shadow",
        None,
        {"policy": made.policy, "action": do, "rule": "unsure"},
    )
    json.dumps(made.to_dict(), allow_nan=False)


def test_in_shadow_mode_an_audit_makes_no_ticket() -> None:
    head = "audit: {fraction: 1.0, queue: audits}"
    with InMemoryQueue() as queue, guard(tier("small", 0.1), policy=looking_on(SURE, head=head), review=queue) as made:
        assert made.decide(QUESTION).ticket is None
        assert queue.list() == []


def test_in_shadow_mode_a_policy_that_escalates_needs_no_queue_yet() -> None:
    made = guard(tier("small", 0.9), policy=looking_on("{id: person, do: escalate}")).decide(QUESTION)
    assert (made.action, made.shadow and made.shadow.action) == (Action.ANSWER, Action.ESCALATE)


@pytest.mark.parametrize(
    ("uncertainty", "error"),
    [
        (None, "ScoringError: the tier 'small' has no bundle, so its answers have no score"),
        (ScoringError("no map"), "ScoringError: no map"),
        (math.nan, "ScoringError: the uncertainty must lie between 0 and 1, got nan"),
    ],
)
def test_shadow_mode_gives_answers_without_a_score(uncertainty: Any, error: str) -> None:
    failed = "{id: failed, when: error != '', do: abstain}"
    made = guard(tier("small", uncertainty), policy=looking_on(SURE, failed)).decide(QUESTION)
    assert (made.action, made.text) == (Action.ANSWER, "answer of small")
    assert why(made)[0] == f"tier 'small' failed: {error}"
    assert made.shadow is not None
    assert (made.shadow.action, made.shadow.rule) == (Action.ABSTAIN, "failed")


@pytest.mark.parametrize("model", [FakeModel(RuntimeError("x")), FakeModel("  ")])
def test_in_shadow_mode_an_attempt_without_text_is_still_no_answer(model: FakeModel) -> None:
    made = guard(tier("small", 0.1, model), policy=looking_on(SURE)).decide(QUESTION)
    assert (made.action, made.text) == (Action.ABSTAIN, "")
    assert why(made)[-1] == "the policy is in shadow mode: there was no answer to give"


def test_in_shadow_mode_a_rule_of_stage_prompt_spares_no_answer() -> None:
    hard = "{id: hard, stage: prompt, when: uncertainty > 0.8, do: abstain}"
    made = guard(tier("small", 0.1, prompt=0.9), policy=looking_on(hard, SURE)).decide(QUESTION)
    assert (made.text, made.attempts[0].stage, made.attempts[0].uncertainty) == ("answer of small", "answer", 0.1)
    assert made.attempts[0].prompt_score is not None
    assert made.shadow is not None
    assert (made.shadow.action, made.shadow.rule) == (Action.ABSTAIN, "hard")


def test_in_shadow_mode_a_prompt_that_cant_be_scored_keeps_no_answer_back() -> None:
    hard = "{id: hard, stage: prompt, when: uncertainty > 0.8, do: abstain}"
    small = tier("small", 0.1, prompt=ScoringError("no map"))
    made = guard(small, policy=looking_on(hard, SURE)).decide(QUESTION)
    assert (made.action, made.text) == (Action.ANSWER, "answer of small")
    assert problem(made.attempts[0]) == "ScoringError: no map"
    assert made.shadow is not None
    assert (made.shadow.action, made.shadow.rule) == (Action.ABSTAIN, None)


def test_shadow_mode_keeps_no_deadline_but_rules_by_the_budget() -> None:
    now = [0.0]

    class Slow(FakeModel):
        def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
            now[0] += 50.0
            return super().generate(messages, **options)

    made = guard(
        tier("small", 0.1, Slow("yes")),
        policy=looking_on("{id: late, when: error != '', do: abstain}", SURE, head="budget: {max_seconds: 20}"),
        clock=lambda: now[0],
    ).decide(QUESTION)
    assert (made.action, made.text, problem(made.attempts[0])) == (Action.ANSWER, "yes", "")
    assert made.shadow is not None
    assert (made.shadow.action, made.shadow.rule) == (Action.ABSTAIN, "late")


ENFORCED = policy(SURE, "{id: larger, do: retry}", "{id: person, do: escalate}")


def beside(shadow: Policy, *tiers: Tier, enforced: Policy = ENFORCED) -> ShadowRuling:
    """What a policy says that looks on, where the enforced one alone decides the same without it."""
    with InMemoryQueue() as queue:
        alone = guard(*tiers, policy=enforced, review=queue).decide(QUESTION)
        made = guard(*tiers, policy=enforced, shadow=shadow, review=queue).decide(QUESTION)
    assert (made.action, made.text, made.rules, why(made)) == (alone.action, alone.text, alone.rules, why(alone))
    assert len(made.attempts) == len(alone.attempts)
    assert (made.policy, made.mode, alone.shadow) == (enforced.fingerprint, "enforce", None)
    assert made.shadow is not None
    assert made.shadow.policy == shadow.fingerprint
    return made.shadow


def test_shadow_policy_rules_on_the_same_attempts() -> None:
    stricter = policy("{id: very-sure, when: uncertainty < 0.05, do: answer}", "{id: no, do: abstain}")
    said = beside(stricter, tier("small", 0.1))
    assert (said.action, said.rule, said.error) == (Action.ABSTAIN, "no", None)
    assert why(said)[-1] == "rule 'no' decided: abstain, because it has no condition"


def test_shadow_policy_follows_tiers_as_far_as_attempts_go() -> None:
    other = policy("{id: on, when: tier == 'small', do: retry}", "{id: sure, when: uncertainty < 0.3, do: answer}")
    both = (tier("small", 0.9), tier("large", 0.1))
    said = beside(other, *both)
    assert (said.action, said.rule) == (Action.ANSWER, "sure")
    # Where the enforced policy stopped at the first tier, what comes of a retry isn't known, and isn't made up.
    said = beside(other, tier("small", 0.1), tier("large", 0.1))
    assert (said.action, said.rule) == (Action.RETRY, "on")
    assert said.notes == (ShadowNote(kind="tier_not_tried", tier="large"),)


def test_ruling_on_a_spared_answer_is_unknown() -> None:
    enforced = policy("{id: hard, stage: prompt, when: uncertainty > 0.8, do: abstain}", SURE)
    said = beside(policy(SURE), tier("small", 0.1, prompt=0.9), enforced=enforced)
    assert (said.action, said.rule, said.error) == (None, None, None)
    assert said.notes == (ShadowNote(kind="answer_spared", tier="small"),)
    # One that would have spared it too has decided.
    same = policy("{id: hard-for-me-too, stage: prompt, when: uncertainty > 0.7, do: abstain}", SURE)
    said = beside(same, tier("small", 0.1, prompt=0.9), enforced=enforced)
    assert (said.action, said.rule) == (Action.ABSTAIN, "hard-for-me-too")


def test_unscored_prompt_is_noted_in_the_shadow_ruling() -> None:
    hard = policy("{id: hard, stage: prompt, when: uncertainty > 0.8, do: abstain}", SURE)
    said = beside(hard, tier("small", 0.1, prompt=0.9))
    assert said.notes == (ShadowNote(kind="prompt_not_scored", tier="small"),)
    assert said.rule != "hard"


def test_shadow_policy_reads_the_cost_at_the_prompt() -> None:
    dear = TierCost(per_million_prompt_tokens=1e6, per_million_tokens=1e6)
    small = replace(tier("small", 0.5, prompt=0.7), cost=dear)
    rules = ("{id: hard, stage: prompt, when: uncertainty > 0.9, do: abstain}", SURE, "{id: larger, do: retry}")
    other = policy(
        "{id: told, stage: prompt, when: cost == 7.0 && tier == 'small', do: retry}",
        "{id: both, when: cost == 8.0 && uncertainty < 0.2, do: answer}",
        "{id: neither, do: abstain}",
    )
    said = beside(other, small, tier("large", 0.1, prompt=0.1), enforced=policy(*rules))
    assert (said.action, said.rule) == (Action.ANSWER, "both")


def test_shadow_policy_keeps_the_budget_in_the_policy() -> None:
    tight = policy("{id: on, do: retry}", "{id: no, do: abstain}", head="budget: {max_cost: 0.5}")
    assert beside(tight, tier("small", 0.9), tier("large", 0.1)).rule == "no"


def test_shadow_policy_needs_no_queue_and_makes_no_ticket() -> None:
    made = guard(
        tier("small", 0.1), policy=policy(SURE), shadow=policy("{id: person, do: escalate, to: nobody}")
    ).decide(QUESTION)
    assert (made.action, made.ticket, made.shadow and made.shadow.action) == (Action.ANSWER, None, Action.ESCALATE)


def test_error_in_a_shadow_policy_is_recorded_and_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    shadow, right = policy("{id: no, do: abstain}"), CascadeState.evaluate_answer

    def broken(self: CascadeState, *args: Any, **options: Any) -> Any:
        if self.policy is shadow:
            raise ZeroDivisionError("a defect")
        return right(self, *args, **options)

    monkeypatch.setattr(CascadeState, "evaluate_answer", broken)
    with capture_logs() as entries:
        made = guard(tier("small", 0.1), policy=policy(SURE), shadow=shadow).decide(QUESTION)
    assert (made.action, made.text, made.rule) == (Action.ANSWER, "answer of small", "sure")
    assert made.shadow == ShadowRuling(
        policy=shadow.fingerprint,
        action=None,
        rule=None,
        error=ErrorInfo.of(ZeroDivisionError("a defect")),
    )
    (failed,) = [entry for entry in entries if entry["event"] == events.SHADOW_FAILED]
    assert failed == {
        "event": "ilis_guard.shadow.failed",
        "log_level": "error",
        "decision": made.id,
        "error": "ZeroDivisionError",
    }


def test_two_policies_in_shadow_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"<string>:3:7: .*nothing would be decided"):
        guard(tier("small", 0.1), policy=looking_on(SURE), shadow=policy(SURE))


def test_a_second_policy_must_go_with_the_tiers_as_the_first() -> None:
    with pytest.raises(ConfigError, match="retries on the tier 'huge', which doesn't exist"):
        guard(tier("small", 0.1), policy=policy(SURE), shadow=policy("{id: on, do: retry, to: huge}"))


def test_shadow_mode_is_explained() -> None:
    def told(small: Tier, *rules: str) -> str:
        return explain_decision(guard(small, policy=looking_on(*rules)).decide(QUESTION))

    assert told(tier("small", 0.9), SURE, "{id: unsure, do: escalate}") == (
        "The tier 'small' answered with an uncertainty of 0.9. The answer is given, as it would be without a policy. "
        "The policy is in shadow mode: by rule 'unsure' it would have escalated, because it has no condition. Passed "
        "over before it: rule 'sure', as `uncertainty < 0.2` is false (uncertainty is 0.9)."
    )
    assert told(tier("small", 0.1), SURE).endswith(
        "The policy is in shadow mode: by rule 'sure' it would have answered, because `uncertainty < 0.2` is true "
        "(uncertainty is 0.1)."
    )
    hard = "{id: hard, stage: prompt, when: uncertainty > 0.8, do: abstain}"
    assert told(tier("small", 0.1, prompt=0.9), hard, SURE).endswith(
        "The policy is in shadow mode: by rule 'hard' it would have abstained, before a token is generated, because "
        "`uncertainty > 0.8` is true (uncertainty is 0.9)."
    )
    assert told(tier("small", 0.1, FakeModel(RuntimeError(QUESTION))), SURE) == (
        "The tier 'small' failed (UnexpectedError). No answer. The policy is in shadow mode: no rule held, "
        "so it would have abstained. Passed over before it: rule 'sure', as `uncertainty < 0.2` is false (uncertainty "
        "is missing)."
    )


def test_shadow_policy_is_explained_after_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(shadow: Policy, *tiers: Tier, enforced: Policy | None = None) -> str:
        return explain_decision(guard(*tiers, policy=enforced or policy(SURE), shadow=shadow).decide(QUESTION))

    answered = (
        "The tier 'small' answered with an uncertainty of 0.1. By rule 'sure' the answer is given, because "
        "`uncertainty < 0.2` is true (uncertainty is 0.1). Another policy is in shadow"
    )
    small, large = tier("small", 0.1), tier("large", 0.1)
    assert told(policy("{id: on, do: retry}"), small, large) == (
        f"{answered}: by rule 'on' it would have asked a larger tier (retry), because it has no condition."
    )
    early = policy("{id: hard, stage: prompt, when: uncertainty > 0.8, do: abstain}", SURE)
    assert told(policy(SURE), tier("small", 0.1, prompt=0.9), enforced=early).endswith(
        "Another policy is in shadow: what it would have done depends on an answer that was never made."
    )
    shadow = policy("{id: no, do: abstain}")
    right = CascadeState.evaluate_answer

    def broken(self: CascadeState, *args: Any, **options: Any) -> Any:
        if self.policy is shadow:
            raise ZeroDivisionError(QUESTION)
        return right(self, *args, **options)

    monkeypatch.setattr(CascadeState, "evaluate_answer", broken)
    assert told(shadow, small) == f"{answered}, and couldn't be evaluated (UnexpectedError)."
