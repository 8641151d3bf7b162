import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest

from ilis_guard.policy import Facts, Policy, Ruling
from ilis_guard.types import Action, Statistics
from tests.explained import why

SURE = Facts(uncertainty=0.1, typicality=0.5)


def policy(*rules: str) -> Policy:
    return Policy.parse("version: 1\nname: p\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules))


def ruling_on(condition: str, facts: Facts) -> Ruling:
    return Policy.parse(
        f"version: 1\nname: p\nrules:\n  - id: r\n    when: |-\n      {condition}\n    do: escalate\n"
    ).evaluate(facts)


def test_the_first_rule_that_holds_decides() -> None:
    rules = policy(
        "id: a, when: uncertainty < 0.05, do: answer",
        "id: b, when: uncertainty < 0.2, do: answer",
        "id: c, do: abstain",
    )
    assert rules.evaluate(SURE).rule == "b"
    assert why(rules.evaluate(SURE)) == (
        "rule 'a' passed over: `uncertainty < 0.05` is false (uncertainty is 0.1)",
        "rule 'b' decided: answer, because `uncertainty < 0.2` is true (uncertainty is 0.1)",
    )
    assert why(rules.evaluate(Facts(uncertainty=0.5)))[-1] == ("rule 'c' decided: abstain, because it has no condition")


def test_a_policy_abstains_where_no_rule_holds() -> None:
    ruling = policy("id: a, when: uncertainty < 0.05, do: answer").evaluate(SURE)
    assert (ruling.action, ruling.rule, ruling.to, ruling.say) == (Action.ABSTAIN, None, None, "")
    assert why(ruling)[-1] == "no rule held: abstained"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(uncertainty=0.1, error="time-out"), "it would answer, but the attempt failed"),
        (Facts(uncertainty=None), "it would answer, but the attempt has no uncertainty and no rank from 0 to 1"),
        (Facts(uncertainty=math.nan), "it would answer, but the attempt has no uncertainty and no rank from 0 to 1"),
        (Facts(uncertainty=-0.1), "it would answer, but the attempt has no uncertainty and no rank from 0 to 1"),
        (Facts(uncertainty=1.1), "it would answer, but the attempt has no uncertainty and no rank from 0 to 1"),
        (Facts(uncertainty=math.inf), "it would answer, but the attempt has no uncertainty and no rank from 0 to 1"),
    ],
)
def test_never_answers_without_a_score_or_after_an_error(facts: Facts, reason: str) -> None:
    eager = policy("id: a, when: uncertainty == uncertainty || uncertainty != uncertainty, do: answer")
    ruling = eager.evaluate(facts)
    assert ruling.action is Action.ABSTAIN
    assert why(ruling)[0] == f"rule 'a' passed over: {reason}"


def test_an_unknown_typicality_is_nan_and_forbids_nothing_by_itself() -> None:
    assert policy("id: a, when: uncertainty < 0.2, do: answer").evaluate(Facts(uncertainty=0.1)).action == "answer"
    assert policy("id: a, when: uncertainty < 0.2 && typicality >= 0.0, do: answer").evaluate(
        Facts(uncertainty=0.1)
    ).action == ("abstain")


@pytest.mark.parametrize(
    ("to", "facts", "held"),
    [
        ("", Facts(last_tier=True), False),
        ("", Facts(last_tier=False), True),
        (", to: large", Facts(last_tier=True, tier="small"), False),
        (", to: large", Facts(last_tier=False, tier="large"), False),
        (", to: large", Facts(last_tier=False, tier="small"), True),
        (", to: large", Facts(last_tier=False, tier="small", larger_tiers=("middle",)), False),
        (", to: large", Facts(last_tier=False, tier="small", larger_tiers=("middle", "large")), True),
        (", to: large", Facts(last_tier=False, tier="small", larger_tiers=()), False),
    ],
)
def test_retries_only_where_there_is_a_tier_to_go_to(to: str, facts: Facts, held: bool) -> None:
    ruling = policy(f"id: r, do: retry{to}").evaluate(facts)
    assert (ruling.action is Action.RETRY) is held
    if not held:
        assert why(ruling)[0].startswith("rule 'r' passed over: it would retry")


STATISTICS = Statistics(logprob_sum=-3.0, logprob_mean=-0.5, entropy_mean=0.25, margin_min=0.1)
LABELS: Mapping[str, Any] = {"yes": True, "count": 3, "share": 0.5, "topic": "legal"}
FULL = Facts(
    uncertainty=0.1,
    typicality=0.5,
    tier="small",
    last_tier=False,
    attempt=2,
    tokens=30,
    seconds=1.5,
    labels=LABELS,
    error="broken",
    statistics=STATISTICS,
)


@pytest.mark.parametrize(
    "condition",
    [
        "uncertainty == 0.1 && typicality == 0.5",
        "tier == 'small' && !last_tier && attempt == 2 && tokens == 30 && seconds == 1.5 && error == 'broken'",
        "statistics.logprob_sum == -3.0 && statistics.logprob_mean == -0.5",
        "statistics.entropy_mean == 0.25 && statistics.margin_min == 0.1",
        "labels.yes == true",
        "labels.yes && true",
        "labels.count == 3 && labels.count > 2",
        "labels.share == 0.5 && labels.share < 1",
        "labels.topic == 'legal' && labels.topic.startsWith('leg')",
        "has(labels.topic) && !has(labels.absent)",
        "labels['topic'] in ['legal', 'tax']",
        "labels.absent == 1 || true",
    ],
)
def test_conditions_see_the_facts(condition: str) -> None:
    assert ruling_on(condition, FULL).rule == "r"


@pytest.mark.parametrize("name", ["uncertainty", "typicality", "statistics.logprob_mean", "statistics.margin_min"])
@pytest.mark.parametrize("facts", [Facts(), Facts(uncertainty=math.nan, typicality=math.nan)])
def test_a_missing_number_makes_every_comparison_false(name: str, facts: Facts) -> None:
    for operator in ("<", "<=", ">", ">=", "=="):
        ruling = ruling_on(f"{name} {operator} 0.5", facts)
        assert ruling.rule is None
        assert f"is false ({name} is missing)" in why(ruling)[0]


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("labels.vip == true", "failed: the label 'vip' is absent; ask has(labels.vip) first"),
        ("labels.topic > 1", "failed: the label 'topic' is a string, and is compared with a number"),
        ("tokens / 0 == 1", "failed: INVALID_ARGUMENT: divide by zero"),
    ],
)
def test_a_condition_that_fails_does_not_hold_and_says_why(condition: str, reason: str) -> None:
    rules = Policy.parse(
        f"version: 1\nname: p\nrules:\n  - id: r\n    when: {condition}\n    do: escalate\n"
        "  - id: last\n    do: abstain\n"
    )
    ruling = rules.evaluate(FULL)
    assert ruling.rule == "last"
    assert reason in why(ruling)[0]


@pytest.mark.parametrize("do", ["abstain", "escalate", "retry"])
def test_nothing_is_answered_after_a_rule_that_could_not_be_evaluated(do: str) -> None:
    rules = policy(
        f"id: legal, when: labels.topic == 'legal', do: {do}",
        "id: sure, when: uncertainty < 0.2, do: answer",
        "id: last, do: abstain",
    )
    ruling = rules.evaluate(SURE)
    assert (ruling.action, ruling.rule) == (Action.ABSTAIN, "last")
    assert why(ruling)[:2] == (
        "rule 'legal' passed over: condition `labels.topic == 'legal'` failed: the label 'topic' is absent; ask "
        "has(labels.topic) first",
        "rule 'sure' passed over: rule 'legal' couldn't be evaluated, so nothing is answered after it: the label "
        "'topic' is absent; ask has(labels.topic) first",
    )
    assert rules.evaluate(dataclasses.replace(SURE, labels={"topic": "other"})).rule == "sure"


def test_failed_condition_blocks_only_later_answers() -> None:
    rules = policy(
        "id: sure, when: uncertainty < 0.2, do: answer",
        "id: legal, when: labels.topic == 'legal', do: escalate",
        "id: half-sure, when: uncertainty < 0.6, do: answer",
        "id: again, when: uncertainty < 0.8, do: retry",
        "id: last, do: abstain",
    )
    larger = Facts(uncertainty=0.5, typicality=0.5, last_tier=False)
    assert rules.evaluate(SURE).rule == "sure"
    assert rules.evaluate(larger).rule == "again"
    assert rules.evaluate(Facts(uncertainty=0.9)).rule == "last"


def test_an_answer_rule_that_fails_stops_no_other_answer() -> None:
    rules = policy(
        "id: vip, when: labels.vip == true && uncertainty < 0.5, do: answer",
        "id: sure, when: uncertainty < 0.2, do: answer",
    )
    assert rules.evaluate(SURE).rule == "sure"


def test_a_condition_whose_failing_part_does_not_matter_stops_nothing() -> None:
    rules = policy(
        "id: legal, when: labels.topic == 'legal' && typicality < 0.1, do: escalate",
        "id: sure, when: uncertainty < 0.2, do: answer",
    )
    assert rules.evaluate(SURE).rule == "sure"


def test_odd_values_do_not_stop_a_decision() -> None:
    odd = Facts(
        uncertainty=0.5,
        tier="\ud800",
        error="\udfff",
        attempt=2**80,
        tokens=-(2**80),
        labels={"huge": 2**200, "half": "\ud800", "é": "é"},
    )
    assert ruling_on("attempt > 5 && labels.huge > 5 && labels['é'] == 'é'", odd).rule == "r"
    assert ruling_on("error == ''", odd).rule is None


def test_reasons_show_values_briefly() -> None:
    reason = why(ruling_on("labels.topic == 'x' && last_tier && error == ''", FULL))[0]
    assert "(labels.topic is 'legal', last_tier is false, error is 'broken')" in reason
    long = Facts(labels={"topic": "y" * 900})
    assert len(why(ruling_on("labels.topic == '" + "x" * 900 + "'", long))[0]) < 300


def test_rulings_and_facts_are_frozen_and_pure() -> None:
    rules = policy("id: a, when: uncertainty < 0.2, do: answer")
    assert rules.evaluate(SURE) == rules.evaluate(SURE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SURE.uncertainty = 0.0  # type: ignore[misc]  # that it can't be set is the point
    with pytest.raises(dataclasses.FrozenInstanceError):
        rules.evaluate(SURE).say = "x"  # type: ignore[misc]  # as above


def test_conditions_too_deep_to_be_checked_together_are_checked_one_by_one() -> None:
    deep = "(" * 31 + "uncertainty < 0.2" + ")" * 31
    rules = policy(f'id: a, when: "{deep}", do: answer')
    assert rules._engine._conditions["answer"]._together._compiled is None
    assert rules.evaluate(SURE).rule == "a"


def test_an_answer_never_rests_on_a_number_that_is_missing() -> None:
    policy = Policy.parse(
        "version: 1\nname: n\nrules:\n"
        "  - {id: sure, when: 'uncertainty < 0.25 && !(typicality < 0.01)', do: answer}\n"
        "  - {id: decline, do: abstain}\n"
    )
    assert policy.evaluate(Facts(uncertainty=0.1, typicality=0.5)).rule == "sure"
    for typicality in (None, float("nan")):
        ruling = policy.evaluate(Facts(uncertainty=0.1, typicality=typicality))
        assert ruling.rule == "decline"
        assert "it looks at typicality, which is missing" in why(ruling)[0]
