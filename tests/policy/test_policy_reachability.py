"""Unreachable rules are refused; reachable rules never are."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given, strategies as st

from ilis_guard.errors import PolicyError
from ilis_guard.policy import Facts, Policy
from ilis_guard.policy.conditions import Condition
from ilis_guard.policy.engine import ALWAYS, BoundRule, Engine
from ilis_guard.policy.reachability import ReachabilityAnalysis, UnreachableRule
from ilis_guard.policy.schema import Rule
from ilis_guard.types import Action, Statistics

SHIPPED = sorted(file.stem for file in (Path(__file__).parents[2] / "policies").glob("*.yaml"))


def bound(index: int, do: str, when: str = "", to: str | None = None) -> BoundRule:
    condition = Condition.of(when) if when else ALWAYS
    rule = Rule(id=f"r{index}", do=Action(do)) if to is None else Rule(id=f"r{index}", do=Action(do), to=to)
    return BoundRule(rule, condition)


def unreachable(rules: Sequence[BoundRule]) -> list[UnreachableRule]:
    return ReachabilityAnalysis(rules).unreachable()


def found(*rules: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {item.rule: item.shadowed_by for item in unreachable([bound(i, *rule) for i, rule in enumerate(rules)])}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([("abstain",), ("escalate", "labels.x == 1")], {"r1": ("r0",)}),
        ([("escalate",), ("retry",), ("abstain",)], {"r1": ("r0",), "r2": ("r0",)}),
        ([("abstain", "typicality < 0.5"), ("abstain", "typicality < 0.4")], {"r1": ("r0",)}),
        ([("abstain", "typicality < 0.5"), ("abstain", "0.4 > typicality && last_tier")], {"r1": ("r0",)}),
        (
            [("abstain", "typicality < 0.5"), ("escalate", "typicality >= 0.5"), ("retry", "typicality >= 0.0")],
            {"r2": ("r0", "r1")},
        ),
        ([("abstain", "attempt < 3"), ("abstain", "attempt > 2"), ("abstain",)], {"r2": ("r0", "r1")}),
        ([("abstain", "tier == 'a' || tier != 'a'"), ("abstain", "tier == 'b'")], {"r1": ("r0",)}),
        ([("answer", "uncertainty <= 1.0"), ("answer", "uncertainty < 0.1")], {"r1": ("r0",)}),
        ([("retry",), ("retry", "tokens > 5")], {"r1": ("r0",)}),
        # in range, and possible at all
        ([("abstain", "uncertainty > 1.0")], {"r0": ()}),
        ([("abstain", "uncertainty > 0.5 && uncertainty < 0.5")], {"r0": ()}),
        ([("abstain", "attempt == 0")], {"r0": ()}),
        ([("answer", "uncertainty < 0.5 && error != ''")], {"r0": ()}),
        ([("retry", "last_tier")], {"r0": ()}),
        ([("retry", "tier == 'x'", "x")], {"r0": ()}),
    ],
)
def test_refuses_rules_that_can_never_decide(
    rules: list[tuple[str, ...]], expected: dict[str, tuple[str, ...]]
) -> None:
    assert found(*rules) == expected


@pytest.mark.parametrize(
    "rules",
    [
        # an answer falls through without a score or after an error, a retry on the last tier
        [("answer", "uncertainty <= 1.0"), ("abstain", "error != ''"), ("escalate",)],
        [("retry",), ("escalate",)],
        [("retry", "", "large"), ("retry", "", "large")],
        # a missing number makes both false
        [("abstain", "typicality < 0.5"), ("abstain", "typicality >= 0.5"), ("escalate",)],
        [("abstain", "!(typicality < 0.5)"), ("abstain", "typicality < 0.5")],
        # just between two literals, and at one
        [("abstain", "typicality < 0.5 || typicality > 0.5"), ("escalate", "typicality == 0.5")],
        [("abstain", "typicality <= 0.1 || typicality >= 0.10000000000000003"), ("escalate", "typicality > 0.1")],
        [("abstain", "seconds <= 1e308"), ("escalate", "seconds < 1e400 && seconds > 1e308")],
        [("abstain", "tokens < 5 || tokens > 5"), ("escalate", "tokens >= 5")],
        [("abstain", "statistics.entropy_mean < -1e300"), ("abstain", "statistics.entropy_mean < 1.0")],
        # what can't be looked through is never in the way
        [("abstain", "typicality + 0.0 <= 1.0"), ("abstain", "typicality <= 1.0")],
        [("abstain", "labels.x == 1"), ("abstain", "labels.x == 1"), ("escalate", "has(labels.y)")],
        [("abstain", "tier < 'b'"), ("abstain", "tier == 'a'")],
        [("abstain", "tier.size() >= 0"), ("abstain",)],
        [("retry", "tier == ' ' || tier != ' '", "x"), ("escalate", "tier == 'x'")],
    ],
)
def test_takes_rules_that_can_decide(rules: list[tuple[str, ...]]) -> None:
    assert found(*rules) == {}


def test_beyond_the_cap_rules_are_taken_as_reachable() -> None:
    many = [(("abstain", f"typicality == 0.{i} && seconds == {i}.0 && tokens == {i * 3}")) for i in range(10, 40)]
    same = ("abstain", "typicality == 0.39 && seconds == 39.0 && tokens == 117")
    assert found(*many, same) == {}
    assert found(many[0], *many) == {"r1": ("r0",)}


def test_the_error_names_the_place_and_the_rules_before() -> None:
    text = """\
version: 1
name: p
rules:
  - id: all
    do: abstain
  - do: escalate
    id: late
"""
    with pytest.raises(PolicyError) as caught:
        Policy.parse(text, path="p.yaml")
    assert str(caught.value).startswith("p.yaml:7:9: rule 'late': can never be reached: wherever it holds, 'all'")
    with pytest.raises(PolicyError, match=r"^p.yaml:4:10: rule 'x': can never act: "):
        Policy.parse("version: 1\nname: p\nrules:\n  - {id: x, do: retry, when: last_tier}\n", path="p.yaml")


ATOMS = st.one_of(
    st.builds(
        "{} {} {}".format,
        st.sampled_from(["uncertainty", "typicality", "seconds", "statistics.margin_min"]),
        st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
        st.sampled_from(["0.0", "0.25", "0.5", "1.0"]),
    ),
    st.builds("attempt {} {}".format, st.sampled_from(["<", ">", "==", "!="]), st.integers(0, 3)),
    st.builds(
        "{} {} '{}'".format, st.sampled_from(["tier", "error"]), st.sampled_from(["==", "!="]), st.sampled_from("ab")
    ),
    st.sampled_from(["last_tier", "labels.x == 1", "tier.size() > 1", "uncertainty < typicality"]),
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        inner.map("!({})".format),
        st.builds("({} {} {})".format, inner, st.sampled_from(["&&", "||"]), inner),
    ),
    max_leaves=4,
)
SHARES = st.one_of(st.none(), st.just(math.nan), st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
FACTS = st.builds(
    Facts,
    uncertainty=SHARES,
    typicality=SHARES,
    tier=st.sampled_from(["", "a", "b", "cc"]),
    last_tier=st.booleans(),
    larger_tiers=st.one_of(st.none(), st.just(()), st.just(("a", "b"))),
    attempt=st.integers(1, 5),
    seconds=st.floats(0, 2),
    labels=st.sampled_from([{}, {"x": 1}, {"x": "y"}]),
    error=st.sampled_from(["", "", "a", "c"]),
    statistics=st.one_of(
        st.none(),
        st.builds(
            Statistics,
            logprob_sum=st.just(-1.0),
            logprob_mean=st.just(-1.0),
            entropy_mean=st.just(1.0),
            margin_min=st.floats(0, 1),
        ),
    ),
)
RULES = st.lists(
    st.tuples(
        st.sampled_from(["answer", "abstain", "retry", "escalate"]), st.one_of(st.just(""), CONDITIONS), st.booleans()
    ),
    min_size=1,
    max_size=5,
)


GUARANTEED = st.one_of(
    ATOMS,
    st.sampled_from(["certified", "!certified"]),
    st.builds(
        "threshold {} {}".format,
        st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
        st.sampled_from(["0.0", "0.25", "0.5"]),
    ),
)
GUARANTEED_RULES = st.lists(
    st.tuples(
        st.sampled_from(["answer", "answer", "abstain", "retry", "escalate"]),
        st.lists(GUARANTEED, min_size=1, max_size=3).map(" && ".join)
        | st.lists(GUARANTEED, min_size=1, max_size=3).map(" || ".join),
        st.sampled_from([None, None, None, 0.5]),
    ),
    min_size=2,
    max_size=5,
)
EDGES = st.sampled_from([0.0, 5e-324, 0.25, math.nextafter(0.25, 0), math.nextafter(0.25, 1), 0.5, 0.6, 1.0])


@given(
    rules=GUARANTEED_RULES,
    facts=st.lists(
        st.builds(
            replace, FACTS, uncertainty=EDGES | SHARES, threshold=EDGES | SHARES, sampling_key=st.text(max_size=2)
        ),
        min_size=10,
        max_size=30,
    ),
)
def test_certified_facts_reach_no_rule_called_unreachable(
    rules: list[tuple[str, str, float | None]], facts: list[Facts]
) -> None:
    bound_rules = [
        BoundRule(Rule(id=f"r{i}", do=Action(do), sample=sample), Condition.of(when), is_guaranteed=True)
        if sample
        else BoundRule(Rule(id=f"r{i}", do=Action(do)), Condition.of(when), is_guaranteed=True)
        for i, (do, when, sample) in enumerate(rules)
    ]
    refused = {item.rule for item in unreachable(bound_rules)}
    engine = Engine(bound_rules)
    rulings = [(known, engine.evaluate(known)) for known in facts]
    assert not refused & {ruling.rule for _, ruling in rulings}
    assert all(known.certified for known, ruling in rulings if ruling.action is Action.ANSWER)


def guaranteed(*rules: tuple[str, str]) -> dict[str, tuple[str, ...]]:
    each = [BoundRule(bound(i, *rule).rule, Condition.of(rule[1]), is_guaranteed=True) for i, rule in enumerate(rules)]
    return {item.rule: item.shadowed_by for item in unreachable(each)}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # certified is what it is made of
        ([("abstain", "certified && error != ''")], {"r0": ()}),
        ([("abstain", "certified && uncertainty > 0.5 && threshold < 0.5")], {"r0": ()}),
        ([("abstain", "certified && uncertainty > 0.5 && threshold <= 0.5")], {"r0": ()}),
        ([("abstain", "!certified && uncertainty <= 0.5 && threshold >= 0.5 && error == ''")], {"r0": ()}),
        ([("abstain", "certified || !certified"), ("escalate", "uncertainty < 0.5")], {"r1": ("r0",)}),
        ([("escalate", "!certified"), ("answer", "certified"), ("abstain", "error == ''")], {"r2": ("r0", "r1")}),
        # nothing else is answered
        ([("answer", "!certified")], {"r0": ()}),
        ([("answer", "uncertainty > 0.2 && threshold < 0.2")], {"r0": ()}),
        # at the very edge, and with something between
        ([("abstain", "certified && uncertainty >= 0.5 && threshold <= 0.5")], {}),
        ([("abstain", "certified && uncertainty > 0.4 && threshold < 0.5")], {}),
        ([("abstain", "!certified && uncertainty > 0.4 && threshold < 0.5")], {}),
        ([("abstain", "!certified && uncertainty == 0.0 && error == ''")], {}),
        ([("answer", "certified"), ("abstain", "uncertainty <= 1.0")], {}),
        ([("answer", "uncertainty < 0.5"), ("escalate", "uncertainty < 0.5")], {}),
        ([("abstain", "threshold < 0.5"), ("abstain", "threshold >= 0.5"), ("escalate", "!certified")], {}),
    ],
)
def test_certified_follows_from_the_uncertainty_and_the_threshold(
    rules: list[tuple[str, str]], expected: dict[str, tuple[str, ...]]
) -> None:
    assert guaranteed(*rules) == expected


def test_a_sample_is_in_the_way_of_nothing() -> None:
    text = "version: 1\nname: p\nrules:\n  - {id: some, sample: 0.9, do: abstain}\n  - {id: rest, do: escalate}\n"
    assert Policy.parse(text).evaluate(Facts(sampling_key="x")).rule in ("some", "rest")
    with pytest.raises(PolicyError, match="rule 'rest': can never be reached"):
        Policy.parse(text.replace(", sample: 0.9", ""))


@pytest.mark.parametrize(
    ("rules", "open_where"),
    [
        ("{id: a, when: certified, do: answer}", "uncertainty is 0, last_tier is true"),
        ("{id: a, when: certified, do: answer}, {id: b, do: abstain}", ""),
        ("{id: a, when: certified, do: answer}, {id: b, when: '!certified', do: abstain}", ""),
        (
            "{id: a, when: certified, do: answer}, {id: b, when: '!(uncertainty < 0.5)', do: abstain}",
            "uncertainty is 0",
        ),
        ("{id: a, when: uncertainty < 0.5, do: answer}, {id: b, when: uncertainty >= 0.5, do: abstain}", "uncertainty"),
        ("{id: a, when: certified, do: answer}, {id: up, do: retry}", "uncertainty is 0, last_tier is true"),
        ("{id: a, when: certified, do: answer}, {id: up, do: retry, to: big}", "uncertainty"),
        ("{id: a, when: certified, do: answer}, {id: up, do: retry}, {id: b, when: last_tier, do: escalate}", ""),
        ("{id: a, when: certified, do: answer}, {id: b, sample: 0.9, do: abstain}", "uncertainty"),
        ("{id: a, when: certified, do: answer}, {id: b, when: has(labels.x) || !has(labels.x), do: abstain}", "uncer"),
        ("{id: a, when: certified, do: answer}, {id: b, when: tier == 'small', do: abstain}", ""),
        ("{id: a, when: certified, do: answer}, {id: b, when: tier == 'large', do: abstain}", "uncertainty"),
        ("{id: a, when: certified, do: answer}, {id: b, when: error != '', do: abstain}", "uncertainty"),
        ("{id: a, when: certified, do: answer}, {id: b, stage: prompt, when: tokens < 5, do: abstain}", "uncertainty"),
    ],
)
def test_rules_undecided_without_certification_are_found(rules: str, open_where: str) -> None:
    policy = Policy.parse(f"version: 1\nname: p\nguarantee: {{max_error: 0.1}}\nrules: [{rules}]\n".replace("''", '""'))
    told = policy.unhandled_uncertified("small")
    if open_where:
        assert told.startswith(f"no rule surely decides where nothing is certified and {open_where}")
    else:
        assert told == ""


def policy_text(rules: list[tuple[str, str, bool]]) -> str:
    text = "version: 1\nname: p\nrules:\n"
    for index, (do, when, named) in enumerate(rules):
        condition = f"({when or 'true'}) && (uncertainty < 0.9 || !(uncertainty < 0.9))" if do == "answer" else when
        text += f"  - id: r{index}\n    do: {do}\n"
        text += f'    when: "{condition}"\n' if condition else ""
        text += "    to: a\n" if named and do in ("retry", "escalate") else ""
    return text


@given(rules=RULES, facts=st.lists(FACTS, min_size=10, max_size=30))
def test_a_rule_that_some_facts_reach_is_never_called_unreachable(
    rules: list[tuple[str, str, bool]], facts: list[Facts]
) -> None:
    bound_rules = [
        bound(i, do, when, "a" if named and do == "retry" else None) for i, (do, when, named) in enumerate(rules)
    ]
    refused = {item.rule for item in unreachable(bound_rules)}
    engine = Engine(bound_rules)
    deciding = {engine.evaluate(known).rule for known in facts}
    assert not refused & deciding


@given(rules=RULES, facts=st.lists(FACTS, min_size=1, max_size=20))
def test_any_policy_gives_exactly_one_action_and_never_answers_blindly(
    rules: list[tuple[str, str, bool]], facts: list[Facts]
) -> None:
    try:
        policy = Policy.parse(policy_text(rules))
    except PolicyError as error:
        assume("can never" not in str(error))
        raise
    for known in facts:
        check_ruling(policy, known)


ODD_FLOATS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
ANY_FACTS = st.builds(
    Facts,
    uncertainty=ODD_FLOATS,
    typicality=ODD_FLOATS,
    threshold=ODD_FLOATS,
    cost=st.floats(),
    prompt_length=st.integers(),
    text_length=st.integers(),
    finish_reason=st.text(st.characters()),
    sampling_key=st.text(st.characters()),
    tier=st.text(),
    last_tier=st.booleans(),
    larger_tiers=st.one_of(st.none(), st.lists(st.text()).map(tuple)),
    attempt=st.integers(),
    tokens=st.integers(),
    seconds=st.floats(),
    labels=st.dictionaries(
        st.one_of(st.sampled_from(["topic", "customer", "urgent"]), st.text()),
        st.one_of(st.booleans(), st.integers(), st.floats(), st.text(st.characters())),
    ),
    error=st.one_of(st.just(""), st.text(st.characters())),
)


ALL_KEYS = """\
version: 1
name: all
guarantee: {max_error: 0.1}
audit: {fraction: 0.5, queue: q}
rules:
  - {id: early, stage: prompt, sample: 0.5, when: prompt_length > 9 || labels.t == 'x' || typicality < .1, do: retry}
  - {id: part, sample: 0.5, when: "cost > 1.0 || finish_reason == 'length' || threshold < 0.2", do: escalate, due: 4h}
  - {id: sure, sample: 0.9, when: certified || uncertainty < 0.5, do: answer}
  - {id: long, when: text_length > prompt_length, do: abstain, say: Too long.}
"""


@cache
def full_policy() -> Policy:
    return Policy.parse(ALL_KEYS)


@given(facts=ANY_FACTS)
def test_a_policy_with_every_key_is_total(facts: Facts) -> None:
    policy = full_policy()
    check_ruling(policy, facts)
    ruling, early = policy.evaluate(facts), policy.evaluate_prompt(facts)
    assert facts.certified or ruling.action is not Action.ANSWER
    assert ruling.due == (14_400.0 if ruling.rule == "part" else None)
    assert early.ruling is None or early.ruling.action is Action.RETRY
    assert early == policy.evaluate_prompt(facts)
    assert policy.audits(facts.sampling_key) is policy.audits(facts.sampling_key)


@cache
def shipped(name: str) -> Policy:
    return Policy.load(name)


@given(facts=ANY_FACTS)
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_policies_are_total(name: str, facts: Facts) -> None:
    check_ruling(shipped(name), facts)


def check_ruling(policy: Policy, facts: Facts) -> None:
    ruling = policy.evaluate(facts)
    assert isinstance(ruling.action, Action)
    assert ruling == policy.evaluate(facts)
    assert ruling.rule is None or ruling.outcomes[-1].rule == ruling.rule
    assert ruling.rule in {None, *(rule.id for rule in policy.rules)}
    if ruling.rule is None:
        assert ruling.action is Action.ABSTAIN
    if facts.error or facts.uncertainty is None or not 0 <= facts.uncertainty <= 1:
        assert ruling.action is not Action.ANSWER
    if facts.last_tier:
        assert ruling.action is not Action.RETRY


EARLY = st.lists(
    st.tuples(
        st.sampled_from(["abstain", "retry", "escalate"]),
        st.sampled_from(
            [
                "",
                "last_tier",
                "!last_tier",
                "tier == 'a'",
                "tier != 'a'",
                "attempt < 3",
                "uncertainty < 0.5",
                "!(uncertainty < 0.5)",
                "seconds < 1.0",
                "typicality < 0.5",
                "labels.x == 1",
            ]
        ),
        st.sampled_from([None, None, 0.5]),
    ),
    max_size=3,
)
PAIRS = st.tuples(FACTS, SHARES, SHARES, st.text(max_size=2)).map(
    lambda each: (
        replace(
            each[0],
            error="",
            statistics=None,
            seconds=0.5,
            uncertainty=each[1],
            typicality=each[2],
            sampling_key=each[3],
        ),
        replace(each[0], sampling_key=each[3]),
    )
)


@given(early=EARLY, late=RULES, pairs=st.lists(PAIRS, min_size=10, max_size=30))
def test_a_rule_reached_through_both_stages_is_never_called_unreachable(
    early: list[tuple[str, str, float | None]],
    late: list[tuple[str, str, bool]],
    pairs: list[tuple[Facts, Facts]],
) -> None:
    rules = [
        BoundRule(
            Rule.model_validate(
                {"id": f"e{i}", "stage": "prompt", "do": Action(do)} | ({} if sample is None else {"sample": sample})
            ),
            Condition.of(when) if when else ALWAYS,
        )
        for i, (do, when, sample) in enumerate(early)
    ]
    rules += [bound(i, do, when, "a" if named and do == "retry" else None) for i, (do, when, named) in enumerate(late)]
    refused = {item.rule for item in unreachable(rules)}
    engine = Engine(rules)
    for prompt, answer in pairs:
        said = engine.evaluate_prompt(prompt)
        if said.ruling is not None and not answer.error:  # a model may fail before its rules are asked
            assert said.ruling.rule not in refused
        else:
            assert engine.evaluate(replace(answer, answer_blocked_by=said.answer_blocked_by)).rule not in refused
