"""Missing numbers never lead to an answer."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from ilis_guard.errors import PolicyError
from ilis_guard.policy import Facts, Policy
from ilis_guard.types import Action, Statistics
from tests.explained import blocked, why

SURE = Facts(uncertainty=0.1, typicality=0.5, last_tier=False)
BLIND = replace(SURE, typicality=None)


def policy(*rules: str, keys: str = "") -> Policy:
    return Policy.parse(f"version: 1\nname: p\n{keys}\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules))


ANSWER = "id: sure, when: uncertainty < 0.5, do: answer"
LAST = "id: last, do: abstain"


@pytest.mark.parametrize("do", ["abstain", "escalate", "retry"])
@pytest.mark.parametrize("typicality", [None, math.nan])
def test_undetermined_rule_blocks_later_answers(do: str, typicality: float | None) -> None:
    rules = policy(f"id: strange, when: typicality < 0.05, do: {do}", ANSWER, LAST)
    ruling = rules.evaluate(replace(SURE, typicality=typicality))
    assert (ruling.action, ruling.rule) == (Action.ABSTAIN, "last")
    assert why(ruling)[:2] == (
        "rule 'strange' passed over: `typicality < 0.05` is false (typicality is missing)",
        "rule 'sure' passed over: rule 'strange' might have held: it looks at typicality, which is missing, so nothing "
        "is "
        "answered",
    )
    assert rules.evaluate(SURE).rule == "sure"
    assert rules.evaluate(replace(SURE, typicality=0.01)).rule == "strange"


@pytest.mark.parametrize(
    ("condition", "rule"),
    [
        # whatever the typicality is, these don't hold
        ("typicality < 0.05 && tokens > 5", "sure"),
        ("tokens > 5 && typicality < 0.05", "sure"),
        ("has(labels.topic) && labels.topic == 'legal' && typicality < 0.05", "sure"),
        ("tokens > 5 && typicality * 2.0 < uncertainty", "sure"),
        ("last_tier ? typicality < 0.05 : false", "sure"),
        # they might, for all that is known
        ("typicality < 0.05 || tokens > 5", "last"),
        ("uncertainty > typicality", "last"),
        ("typicality * 2.0 < uncertainty", "last"),
        ("[0.1, 0.2].exists(x, x > typicality)", "last"),
        ("labels.topic == 'legal' && typicality < 0.05", "last"),
        ("typicality < 0.05 && statistics.margin_min < 0.1", "last"),
        ("statistics.margin_min < 0.1", "last"),
        # they hold, because a missing number makes the comparison false
        ("!(typicality >= 0.05)", "strange"),
        ("typicality < 0.05 || tokens == 0", "strange"),
        # they look at nothing that is missing
        ("tokens > 5", "sure"),
        ("uncertainty > 0.3", "sure"),
    ],
)
def test_only_a_rule_that_might_have_held_holds_answers_back(condition: str, rule: str) -> None:
    assert policy(f'id: strange, when: "{condition}", do: escalate', ANSWER, LAST).evaluate(BLIND).rule == rule


def test_a_rule_that_could_not_have_acted_holds_nothing_back() -> None:
    rules = policy("id: strange, when: typicality < 0.05, do: retry", ANSWER, LAST)
    assert rules.evaluate(replace(BLIND, last_tier=True)).rule == "sure"
    named = policy("id: strange, when: typicality < 0.05, do: retry, to: large", ANSWER, LAST)
    assert named.evaluate(replace(BLIND, larger_tiers=("middle",))).rule == "sure"
    assert named.evaluate(replace(BLIND, larger_tiers=("middle", "large"))).rule == "last"


def test_answers_before_an_undetermined_rule_and_other_actions_are_free() -> None:
    early = policy(
        "id: sure, when: uncertainty < 0.5, do: answer", "id: strange, when: typicality < 0.05, do: escalate"
    )
    assert early.evaluate(BLIND).rule == "sure"
    late = policy("id: strange, when: typicality < 0.05, do: escalate", ANSWER, "id: up, do: retry")
    assert late.evaluate(BLIND).rule == "up"


def test_an_answer_rule_that_might_have_held_holds_no_other_back() -> None:
    rules = policy("id: known, when: uncertainty < 0.05 && typicality >= 0.05, do: answer", ANSWER, LAST)
    assert rules.evaluate(BLIND).rule == "sure"


def test_a_missing_threshold_speaks_for_no_answer() -> None:
    keys = "guarantee: {max_error: 0.1}"
    rules = policy("id: over, when: uncertainty > threshold, do: escalate", ANSWER, LAST, keys=keys)
    assert rules.evaluate(replace(SURE, threshold=0.3)).rule == "sure"
    assert rules.evaluate(replace(SURE, threshold=0.05)).rule == "over"
    assert rules.evaluate(SURE).rule == "last"


def test_a_number_missing_at_a_scored_prompt_blocks_the_answer() -> None:
    rules = policy("id: strange, stage: prompt, when: typicality < 0.05, do: escalate", ANSWER, LAST)
    early = rules.evaluate_prompt(Facts(uncertainty=0.1))
    assert early.ruling is None
    assert blocked(early.answer_blocked_by).startswith(
        "rule 'strange' might have held: it looks at typicality, which is missing"
    )
    assert rules.evaluate(replace(SURE, answer_blocked_by=early.answer_blocked_by)).rule == "last"


def test_a_prompt_that_nothing_scores_is_no_doubt_about_its_answer() -> None:
    rules = policy("id: hard, stage: prompt, when: uncertainty > 0.9 || typicality < 0.05, do: escalate", ANSWER, LAST)
    assert blocked(rules.evaluate_prompt(Facts()).answer_blocked_by) == ""


@pytest.mark.parametrize(
    ("rules", "never"),
    [
        # known or not, no typicality leaves anything to answer
        (
            ["id: a, when: typicality < 0.5, do: abstain", "id: b, when: typicality >= 0.5, do: escalate", ANSWER],
            "sure",
        ),
        (["id: a, when: 'typicality < 0.5 || typicality >= 0.5', do: escalate", ANSWER], "sure"),
    ],
)
def test_an_answer_rule_that_is_always_held_back_is_refused(rules: list[str], never: str) -> None:
    with pytest.raises(PolicyError, match=f"rule '{never}': can never be reached: wherever it holds, 'a'.*answering"):
        policy(*rules)


def test_rules_after_a_blocked_answer_can_decide() -> None:
    after = "id: after, when: \"uncertainty <= 1.0 && error == ''\", do: escalate"
    everything = "id: all, when: uncertainty <= 1.0, do: answer"
    with pytest.raises(PolicyError, match="rule 'after': can never be reached"):
        policy(everything, after)
    for before in ("when: typicality < 0.05", "when: labels.x == 1", "when: typicality < 0.05, sample: 0.5"):
        for stage in ("prompt", "answer"):
            first = f"id: first, stage: {stage}, {before}, do: abstain"
            policy(first, everything, after)


@pytest.mark.parametrize(
    "condition",
    [
        "!(statistics . margin_min < 0.1)",
        "!(statistics\n.margin_min < 0.1)",
        "!(.typicality < 0.1)",
        "[0.5].all(x, !(typicality < x))",
        "'''a' || \"''' != tier && !(typicality < 0.1)",
    ],
)
def test_a_missing_number_is_seen_however_its_name_is_written(condition: str) -> None:
    text = "version: 1\nname: p\nrules:\n  - id: a\n    do: answer\n    when: |-\n      uncertainty < 0.5 &&\n"
    rules = Policy.parse(text + "".join(f"      {line}\n" for line in condition.splitlines()))
    assert rules.evaluate(BLIND).rule is None
    assert rules.evaluate(replace(SURE, statistics=Statistics(**KNOWN))).rule == "a"


@pytest.mark.parametrize(
    "condition",
    [
        "tier != 'uncertainty < 1.0'",
        "tier != '''a' || typicality < 0.1 || 'b'''",
        "!has(labels.uncertainty)",
    ],
)
def test_a_score_that_is_only_mentioned_is_not_looked_at(condition: str) -> None:
    with pytest.raises(PolicyError, match="an answer rule must look at the score"):
        policy(f'id: a, when: "{condition}", do: answer')


KNOWN = {"logprob_sum": -1.0, "logprob_mean": -1.0, "entropy_mean": 0.5, "margin_min": 0.5}
NUMBERS = ["typicality", "statistics.margin_min", "statistics.entropy_mean"]
MARGINS = st.one_of(st.just(math.nan), st.floats(0, 1))
CONDITIONS = st.recursive(
    st.builds("{} {} {}".format, st.sampled_from(NUMBERS), st.sampled_from(["<", ">=", "=="]), st.just("0.5"))
    | st.sampled_from(["tokens > 5", "last_tier", "labels.x == 1"]),
    lambda inner: st.one_of(
        inner.map("!({})".format), st.builds("({} {} {})".format, inner, st.sampled_from(["&&", "||"]), inner)
    ),
    max_leaves=5,
)
FACTS = st.builds(
    Facts,
    uncertainty=st.just(0.1),
    typicality=st.one_of(st.none(), st.floats(0, 1)),
    last_tier=st.booleans(),
    tokens=st.sampled_from([0, 9]),
    labels=st.sampled_from([{"x": 1}, {"x": 2}]),
    statistics=st.builds(
        Statistics, logprob_sum=st.just(-1.0), logprob_mean=st.just(-1.0), entropy_mean=MARGINS, margin_min=MARGINS
    ),
)


@given(condition=CONDITIONS, do=st.sampled_from(["abstain", "escalate", "retry"]), facts=FACTS, known=st.floats(0, 1))
def test_an_answer_without_a_number_is_given_whatever_the_number(
    condition: str, do: str, facts: Facts, known: float
) -> None:
    try:
        rules = policy(f'id: first, when: "{condition}", do: {do}', ANSWER)
    except PolicyError as error:
        assert "can never" in str(error)  # noqa: PT017 - what is refused is nothing to try
        return
    if rules.evaluate(facts).action is not Action.ANSWER:
        return
    assert facts.statistics is not None
    numbers = {name: value for name, value in facts.statistics.to_dict().items() if not math.isnan(value)}
    filled = Statistics(**{**dict.fromkeys(facts.statistics.to_dict(), known), **numbers})
    there = replace(facts, typicality=known if facts.typicality is None else facts.typicality, statistics=filled)
    assert rules.evaluate(there).action is Action.ANSWER
