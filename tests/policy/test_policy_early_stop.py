"""Whether a policy may still answer, evaluated during generation."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ilis_guard.policy import Facts, Policy
from ilis_guard.types import Action, Statistics

RUNNING = Facts(uncertainty=0.97, typicality=0.5, tier="small", last_tier=False, larger_tiers=("large",))


def policy(*rules: str, head: str = "") -> Policy:
    listed = "".join(f"  - {rule}\n" for rule in rules)
    return Policy.parse(f"version: 1\nname: p\n{head}\nrules:\n{listed}")


SURE = "{id: sure, when: uncertainty < 0.2, do: answer}"
LENIENT = "{id: lenient, when: uncertainty < 0.99, do: answer}"


@pytest.mark.parametrize(
    ("rules", "facts", "may"),
    [
        ([SURE], {}, False),
        ([SURE], {"uncertainty": 0.1}, True),
        ([SURE, LENIENT], {}, True),
        (["{id: sure, when: calibrated && uncertainty < 0.99, do: answer}"], {"calibrated": False}, False),
        (["{id: surest, when: '!calibrated && rank < 0.6', do: answer}"], {"calibrated": False, "rank": 0.5}, True),
        (["{id: surest, when: '!calibrated && rank < 0.6', do: answer}"], {"calibrated": False, "rank": 0.9}, False),
        (["{id: surest, when: '!calibrated && rank < 0.6', do: answer}"], {"calibrated": False}, False),
        # A rule that surely comes first.
        (["{id: no, when: uncertainty > 0.9, do: abstain}", LENIENT], {}, False),
        (["{id: no, when: uncertainty > 0.9, do: escalate}", LENIENT], {}, False),
        (["{id: up, when: uncertainty > 0.9, do: retry}", LENIENT], {}, False),
        # There is no larger tier to go to.
        (["{id: up, when: uncertainty > 0.9, do: retry}", LENIENT], {"last_tier": True, "larger_tiers": ()}, True),
        # Facts of the end: they may come to this or that, wherever they stand.
        (["{id: cut-off, when: finish_reason != 'stop', do: abstain}", LENIENT], {}, True),
        (["{id: short, when: text_length < 5, do: abstain}", LENIENT], {"text_length": 1}, True),
        (["{id: far, when: typicality < 0.01, do: abstain}", LENIENT], {"typicality": 0.001}, True),
        (["{id: slow, when: seconds > 5.0, do: abstain}", LENIENT], {"seconds": 9.0}, True),
        (["{id: no, when: seconds > 5.0 || uncertainty > 0.9, do: abstain}", LENIENT], {}, False),
        ([SURE.replace("0.2", "0.2 && finish_reason == 'stop'")], {}, False),
        # Who holds a request back, or asks of labels that can't be looked at, gives no answer at its end either.
        ([LENIENT], {"answer_blocked_by": "a rule at the prompt couldn't be told to hold"}, False),
        ([LENIENT], {"labels": {"topic": "x" * 1_000_000}}, False),
        ([LENIENT], {"error": "ModelError: broken"}, False),
        ([LENIENT], {"uncertainty": None}, False),
        (["{id: vip, when: labels.vip == true && uncertainty < 0.99, do: answer}"], {"labels": {"vip": False}}, False),
        (["{id: vip, when: labels.vip == true && uncertainty < 0.99, do: answer}"], {"labels": {"vip": True}}, True),
    ],
)
def test_an_answer_under_way_may_be_given_or_not(rules: list[str], facts: dict[str, Any], may: bool) -> None:
    assert policy(*rules).may_answer(replace(RUNNING, **facts)) is may


def test_statistics_that_only_fall_count_as_they_stand() -> None:
    rules = policy("{id: guessed, when: statistics.margin_min < 0.01, do: abstain}", LENIENT)
    low = Statistics(logprob_sum=-3.0, logprob_mean=-1.0, entropy_mean=1.0, margin_min=0.001)
    assert not rules.may_answer(replace(RUNNING, statistics=low))
    assert rules.may_answer(replace(RUNNING, statistics=replace(low, margin_min=0.5)))


def test_a_retry_that_the_budget_may_forbid_at_the_end_rules_nothing_out() -> None:
    rules = (SURE, "{id: larger, do: retry}", LENIENT)
    assert not policy(*rules).may_answer(RUNNING)
    assert policy(*rules, head="budget: {max_cost: 5.0}").may_answer(RUNNING)


def test_an_answer_beyond_the_guarantee_is_ruled_out() -> None:
    guaranteed = policy(
        "{id: covered, when: certified, do: answer}", "{id: rest, do: abstain}", head="guarantee: {max_error: 0.1}"
    )
    assert not guaranteed.may_answer(replace(RUNNING, threshold=0.2))
    assert guaranteed.may_answer(replace(RUNNING, threshold=0.98))


CONDITIONS = st.sampled_from(
    [
        "uncertainty < 0.3",
        "uncertainty > 0.6",
        "typicality < 0.2",
        "finish_reason == 'stop'",
        "finish_reason == 'length'",
        "text_length > 10",
        "tokens * 2 > 9",
        "seconds > 2.0",
        "cost > 1.0",
        "statistics.logprob_mean < -1.0",
        "last_tier",
        "labels.vip == true",
    ]
)
ACTIONS = st.sampled_from(["answer", "abstain", "retry", "escalate"])
NUMBERS = st.floats(0, 5)


@st.composite
def policies(draw: Any) -> Policy | None:
    rules = []
    for number in range(draw(st.integers(1, 4))):
        when = draw(st.sampled_from([" && ", " || "])).join(draw(st.lists(CONDITIONS, min_size=1, max_size=3)))
        do = draw(ACTIONS)
        rules.append(
            f'{{id: r{number}, when: "{"uncertainty < 0.9 && " if do == "answer" else ""}({when})", do: {do}}}'
        )
    from ilis_guard.errors import PolicyError

    try:
        return policy(*rules)
    except PolicyError:  # a rule that nothing reaches
        return None


@given(
    rules=policies(),
    uncertainty=st.sampled_from([0.1, 0.5, 0.95]),
    labels=st.sampled_from([{}, {"vip": True}, {"vip": False}, {"vip": "yes"}]),
    running=st.tuples(NUMBERS, NUMBERS, st.integers(0, 20), st.integers(0, 20)),
    end=st.tuples(st.floats(0, 1), NUMBERS, NUMBERS, st.integers(0, 20), st.integers(0, 20), st.floats(-5, 0)),
    finish_reason=st.sampled_from(["stop", "length", ""]),
)
def test_an_answer_given_at_its_end_was_never_ruled_out_before(
    rules: Policy | None, uncertainty: float, labels: Any, running: Any, end: Any, finish_reason: Any
) -> None:
    """With the same uncertainty, whatever else the end brings."""
    if rules is None:
        return
    on_its_way = replace(
        RUNNING,
        uncertainty=uncertainty,
        labels=labels,
        seconds=running[0],
        cost=running[1],
        tokens=running[2],
        text_length=running[3],
        statistics=Statistics(logprob_sum=-1.0, logprob_mean=-0.5, entropy_mean=0.5, margin_min=0.1),
    )
    at_end = replace(
        on_its_way,
        typicality=end[0],
        seconds=end[1],
        cost=end[2],
        tokens=end[3],
        text_length=end[4],
        finish_reason=finish_reason,
        statistics=Statistics(logprob_sum=-1.0, logprob_mean=end[5], entropy_mean=0.5, margin_min=0.1),
    )
    if rules.evaluate(at_end).action is Action.ANSWER:
        assert rules.may_answer(on_its_way)
