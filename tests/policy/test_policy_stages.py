"""Stages: the actions, facts and decisions open to a rule of stage `prompt`."""

import pytest

from ilis_guard.errors import PolicyError
from ilis_guard.policy import Facts, Policy
from ilis_guard.types import Action
from tests.explained import blocked, why


def policy(*rules: str) -> Policy:
    return Policy.parse("version: 1\nname: p\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules))


def refused(*rules: str) -> str:
    with pytest.raises(PolicyError) as caught:
        policy(*rules)
    return str(caught.value)


def test_each_stage_has_its_own_rules_in_their_order() -> None:
    both = policy(
        "id: late, when: uncertainty < 0.5, do: answer",
        "id: early, stage: prompt, when: uncertainty > 0.5, do: abstain, say: No.",
        "id: later, stage: answer, do: escalate",
    )
    doubtful = Facts(uncertainty=0.9, typicality=0.5)
    early = both.evaluate_prompt(doubtful).ruling
    assert early is not None
    assert (early.action, early.rule, early.say) == (Action.ABSTAIN, "early", "No.")
    assert both.evaluate(doubtful).rule == "later"
    assert [rule.id for rule in both.prompt_rules] == ["early"]


def test_where_no_prompt_rule_holds_the_model_goes_on() -> None:
    passed = policy("id: early, stage: prompt, when: uncertainty > 0.5, do: abstain").evaluate_prompt(Facts())
    assert passed.ruling is None
    assert why(passed) == ("rule 'early' passed over: `uncertainty > 0.5` is false (uncertainty is missing)",)
    assert blocked(passed.answer_blocked_by) == ""


def test_without_prompt_rules_there_is_nothing_to_say() -> None:
    said = policy("id: a, do: abstain").evaluate_prompt(Facts(uncertainty=1.0))
    assert (said.ruling, why(said), blocked(said.answer_blocked_by)) == (None, (), "")


def test_an_obstacle_at_the_prompt_blocks_the_answer() -> None:
    both = policy(
        "id: mine, stage: prompt, when: labels.topic == 'legal', do: escalate",
        "id: sure, when: uncertainty < 0.5, do: answer",
    )
    early = both.evaluate_prompt(Facts(uncertainty=0.1))
    assert early.ruling is None
    assert blocked(early.answer_blocked_by).startswith(
        "rule 'mine' couldn't be evaluated, so nothing is answered after it"
    )
    sure = Facts(uncertainty=0.1, typicality=0.5)
    assert both.evaluate(sure).action is Action.ANSWER
    held = Facts(uncertainty=0.1, typicality=0.5, answer_blocked_by=early.answer_blocked_by)
    ruling = both.evaluate(held)
    assert (ruling.action, ruling.rule) == (Action.ABSTAIN, None)
    assert blocked(early.answer_blocked_by) in why(ruling)[0]


def test_a_retry_at_the_prompt_needs_a_larger_tier() -> None:
    rules = policy("id: up, stage: prompt, do: retry", "id: end, stage: prompt, do: escalate, to: q")
    last, first = (rules.evaluate_prompt(Facts(last_tier=last)).ruling for last in (True, False))
    assert last is not None
    assert (last.action, last.to) == (Action.ESCALATE, "q")
    assert first is not None
    assert first.action is Action.RETRY


def test_nothing_can_be_answered_at_the_prompt() -> None:
    message = refused("id: a, stage: prompt, when: uncertainty < 0.1, do: answer")
    assert message.startswith("<string>:4:")
    assert "rule 'a': there is no answer yet at stage `prompt`" in message


@pytest.mark.parametrize("name", ["statistics.entropy_mean", "error"])
def test_facts_unknown_at_the_prompt_are_refused(name: str) -> None:
    condition = "error != ''" if name == "error" else f"{name} > 0.5"
    message = refused(f'id: a, stage: prompt, when: "{condition}", do: abstain')
    assert f"rule 'a': `{name}` isn't known at stage `prompt`" in message
    assert message.startswith("<string>:4:34:")


def test_an_unknown_stage_is_refused_with_its_place() -> None:
    message = refused("id: a, stage: answers, do: abstain")
    assert message.startswith("<string>:4:20:")
    assert "'prompt' or 'answer'" in message


def test_rules_of_one_stage_shadow_one_another() -> None:
    policy("id: most, stage: prompt, when: tokens < 9, do: abstain", "id: sure, when: uncertainty < 0.5, do: answer")
    message = refused("id: all, stage: prompt, do: abstain", "id: never, stage: prompt, when: tokens > 3, do: abstain")
    assert "rule 'never': can never be reached: wherever it holds, 'all' decided before" in message


@pytest.mark.parametrize(
    ("early", "before"),
    [
        (["id: all, stage: prompt, do: abstain"], "'all'"),
        (["id: up, stage: prompt, do: retry", "id: all, stage: prompt, do: escalate"], "'up', 'all'"),
        (["id: b, stage: prompt, when: tokens > 3, do: retry, to: x", "id: all, stage: prompt, do: abstain"], "'all'"),
    ],
)
def test_where_no_prompt_is_answered_no_rule_on_answers_is_reached(early: list[str], before: str) -> None:
    message = refused(*early, "id: sure, when: uncertainty < 0.5, do: answer")
    assert f"rule 'sure': can never be reached: wherever it holds, {before} decided before" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "rules",
    [
        # a model may fail before its prompt rules are asked
        ["id: all, stage: prompt, do: abstain", "id: failed, when: \"error != ''\", do: escalate"],
        ["id: all, stage: prompt, do: abstain", "id: last, do: escalate"],
        # something gets past the prompt
        ["id: up, stage: prompt, do: retry", "id: sure, when: uncertainty < 0.5, do: answer"],
        ["id: up, stage: prompt, do: retry, to: big", "id: sure, when: uncertainty < 0.5 && !last_tier, do: answer"],
        ["id: a, stage: prompt, when: uncertainty <= 1.0, do: abstain", "id: b, when: uncertainty < 0.5, do: answer"],
        ["id: a, stage: prompt, when: labels.x == 1, do: abstain", "id: b, when: uncertainty < 0.5, do: answer"],
        ["id: a, stage: prompt, sample: 0.5, do: abstain", "id: b, when: uncertainty < 0.5, do: answer"],
        ["id: a, stage: prompt, when: tier == 's', do: abstain", "id: b, when: uncertainty < 0.5, do: answer"],
        ["id: a, stage: prompt, when: seconds > 1.0, do: abstain", "id: b, when: seconds < 0.5, do: abstain"],
        ["id: a, stage: prompt, when: seconds <= 1.0, do: abstain", "id: b, when: seconds < 1.0, do: abstain"],
    ],
)
def test_a_rule_past_the_prompt_is_never_called_unreachable(rules: list[str]) -> None:
    policy(*rules)


def test_facts_of_both_stages_make_later_rules_unreachable() -> None:
    early = "id: small, stage: prompt, when: tier == 's' && attempt < 3, do: escalate"
    policy(early, "id: sure, when: uncertainty < 0.5 && tier == 's', do: answer")
    message = refused(early, "id: sure, when: uncertainty < 0.5 && tier == 's' && attempt == 2, do: answer")
    assert "rule 'sure': can never be reached: wherever it holds, 'small' decided before" in message
    asked_of_long = "id: long, stage: prompt, when: prompt_length > 900, do: abstain"
    message = refused(asked_of_long, "id: sure, when: uncertainty < 0.5 && prompt_length >= 1000, do: answer")
    assert "wherever it holds, 'long' decided before" in message
    policy(asked_of_long, "id: sure, when: uncertainty < 0.5 && prompt_length >= 900, do: answer")


def test_a_stage_left_out_keeps_the_fingerprints_of_older_files() -> None:
    plain = policy("id: a, do: abstain")
    assert plain.fingerprint == policy("do: abstain, id: a").fingerprint
    assert plain.fingerprint != policy("id: a, stage: prompt, do: abstain").fingerprint
