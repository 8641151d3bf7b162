"""Conditions are split into parts as CEL does, and the parts combine to the value of the whole."""

from collections.abc import Collection, Iterator
from typing import Any

import pytest
from hypothesis import assume, example, given, strategies as st

from ilis_guard.policy import Facts
from ilis_guard.policy.conditions import Condition, Situation
from ilis_guard.policy.diagnostics import ConditionError
from ilis_guard.policy.explain import outcome_text
from ilis_guard.policy.parts import MAX_OPERATORS, Finding, Part
from ilis_guard.types import RuleOutcome

FACTS = Facts(
    uncertainty=0.43, typicality=0.5, tier="small", last_tier=False, labels={"topic": "legal", "vip": True, "n": 3}
)


def cut(text: str) -> Any:
    """A part's text, or its operator and its parts."""

    def shown(part: Part) -> Any:
        return (part.operator, *map(shown, part.parts)) if part.parts else part.condition.text

    return shown(Part.of(Condition.of(text)))


def found(text: str, facts: Facts = FACTS) -> Finding:
    return Part.of(Condition.of(text)).check(Situation(facts))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("uncertainty < 0.2", "uncertainty < 0.2"),
        ("last_tier && uncertainty < 0.2", ("&&", "last_tier", "uncertainty < 0.2")),
        ("last_tier || last_tier && attempt > 1", ("||", "last_tier", ("&&", "last_tier", "attempt > 1"))),
        ("(last_tier || attempt > 1) && true", ("&&", ("||", "last_tier", "attempt > 1"), "true")),
        ("((last_tier)) && ((attempt > 1))", ("&&", "last_tier", "attempt > 1")),
        ("(last_tier) && (attempt > 1)", ("&&", "last_tier", "attempt > 1")),
        ("!last_tier", ("!", "last_tier")),
        ("! ( last_tier || !has(labels.x) )", ("!", ("||", "last_tier", ("!", "has(labels.x)")))),
        # what binds more tightly than it looks
        ("!last_tier == true", "!last_tier == true"),
        ("!!last_tier", "!!last_tier"),
        ("attempt != 1 && tier != '!'", ("&&", "attempt != 1", "tier != '!'")),
        # ternaries bind less tightly than anything
        ("last_tier ? true : last_tier || attempt > 1", "last_tier ? true : last_tier || attempt > 1"),
        ("last_tier && attempt > 1 ? last_tier : true", "last_tier && attempt > 1 ? last_tier : true"),
        (
            "(last_tier ? true : attempt > 1 ? true : false) && true",
            ("&&", "last_tier ? true : attempt > 1 ? true : false", "true"),
        ),
        (
            "last_tier ? (last_tier ? true : false) || true : last_tier && true",
            "last_tier ? (last_tier ? true : false) || true : last_tier && true",
        ),
        # what stands in brackets, strings and comments isn't cut
        (
            "[1, 2].exists(x, x == attempt || x > 5) || last_tier",
            ("||", "[1, 2].exists(x, x == attempt || x > 5)", "last_tier"),
        ),
        ("tier in ['a && b', \"c || 'd'\"] && last_tier", ("&&", "tier in ['a && b', \"c || 'd'\"]", "last_tier")),
        ("tier == 'it\\'s && (' && last_tier", ("&&", "tier == 'it\\'s && ('", "last_tier")),
        ("tier == r'\\( || ' || last_tier", ("||", "tier == r'\\( || '", "last_tier")),
        ("tier == '''a\n' && b''' && last_tier", ("&&", "tier == '''a\n' && b'''", "last_tier")),
        ('tier == r"""\\ && "" """ && last_tier', ("&&", 'tier == r"""\\ && "" """', "last_tier")),
        ("b'\\x00 && ' == b'' || last_tier", ("||", "b'\\x00 && ' == b''", "last_tier")),
        ("tier == '//' && last_tier", ("&&", "tier == '//'", "last_tier")),
        ("labels['a'] == {'a && b': 1}['a && b'] && true", ("&&", "labels['a'] == {'a && b': 1}['a && b']", "true")),
        ("labels.vip && true", ("&&", "labels.vip", "true")),
        ("tier == 'é😀' && last_tier", ("&&", "tier == 'é😀'", "last_tier")),
    ],
)
def test_cuts_where_cel_does(text: str, parts: Any) -> None:
    assert cut(text) == parts


def test_a_condition_nobody_would_read_stays_in_one_part() -> None:
    at_most, too_many = (" && ".join(["last_tier"] * count) for count in (MAX_OPERATORS + 1, MAX_OPERATORS + 2))
    assert len(cut(at_most)) == MAX_OPERATORS + 2
    assert cut(too_many) == too_many


def test_each_part_tells_its_value_and_its_facts() -> None:
    whole = found("uncertainty < 0.25 && !(typicality < 0.01) && labels.absent == 1")
    assert whole.to_dict() == {
        "text": "uncertainty < 0.25 && !(typicality < 0.01) && labels.absent == 1",
        "value": False,
        "failed": None,
        "facts": {"uncertainty": 0.43, "typicality": 0.5, "labels.absent": None},
        "operator": "&&",
        "parts": [
            {
                "text": "uncertainty < 0.25",
                "value": False,
                "failed": None,
                "facts": {"uncertainty": 0.43},
                "operator": None,
                "parts": [],
            },
            {
                "text": "!(typicality < 0.01)",
                "value": True,
                "failed": None,
                "facts": {"typicality": 0.5},
                "operator": "!",
                "parts": [
                    {
                        "text": "typicality < 0.01",
                        "value": False,
                        "failed": None,
                        "facts": {"typicality": 0.5},
                        "operator": None,
                        "parts": [],
                    }
                ],
            },
            {
                "text": "labels.absent == 1",
                "value": None,
                "failed": "the label 'absent' is absent; ask has(labels.absent) first",
                "facts": {"labels.absent": None},
                "operator": None,
                "parts": [],
            },
        ],
    }


def sentence_of(condition: Condition, facts: Facts, *, value: bool) -> str:
    parts = Part.of(condition).outcomes(Situation(facts), value=value)
    return outcome_text(RuleOutcome(rule="r", stage="answer", outcome="not_held", parts=parts))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("uncertainty < 0.25", "`uncertainty < 0.25` is false (uncertainty is 0.43)"),
        # only what made it so
        ("uncertainty < 0.25 && typicality > 0.1", "`uncertainty < 0.25` is false (uncertainty is 0.43)"),
        ("uncertainty < 0.25 || tier == 'small'", "`tier == 'small'` is true (tier is 'small')"),
        (
            "uncertainty < 0.5 && !(typicality < 0.01)",
            "`uncertainty < 0.5` is true (uncertainty is 0.43) and `typicality < 0.01` is false (typicality is 0.5)",
        ),
        ("labels.absent == 1 && last_tier", "`last_tier` is false (last_tier is false)"),
        ("true", "`true` is true"),
        (
            " && ".join(["typicality > 0.1"] * 6),
            f"`{' && '.join(['typicality > 0.1'] * 6)}` is true (typicality is 0.5)",
        ),
    ],
)
def test_outcomes_are_the_parts_that_decided_the_value(text: str, sentence: str) -> None:
    value = found(text).value
    assert isinstance(value, bool)
    assert sentence_of(Condition.of(text), FACTS, value=value) == sentence


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("labels.absent == 1", "the label 'absent' is absent; ask has(labels.absent) first"),
        ("labels.topic && true", "it is a string, not true or false"),
        ("!labels.n || last_tier", "it is a int, not true or false"),
    ],
)
def test_a_part_that_cannot_be_evaluated_says_why(text: str, why: str) -> None:
    assert why in [part.value for part in all_of(found(text))]


def test_of_an_error_only_its_kind_is_told() -> None:
    failed = Facts(error="ModelError")
    assert (
        sentence_of(Condition.of("error != ''"), failed, value=True) == "`error != ''` is true (error is 'ModelError')"
    )


LEAVES = (
    "uncertainty < 0.5",
    "typicality >= 0.5",
    "last_tier",
    "attempt == 1",
    "labels.absent == 1",
    "labels.vip",
    "labels.topic",
    "has(labels.absent)",
    "tier == 'a && (b'",
    "tier in ['small', '||']",
    "[1].all(x, x == attempt || false)",
    "(last_tier ? true : attempt > 1)",
    "tokens / 0 == 1",
    "true",
)
CONDITIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.builds("({})".format, inner),
        st.builds("!{}".format, inner),
        st.builds("!({})".format, inner),
        st.builds("{} && {}".format, inner, inner),
        st.builds("{} || {}".format, inner, inner),
        st.builds("{} // || ('\n && {}".format, inner, inner),
        st.builds("({} ? {} : {})".format, inner, inner, inner),
        st.builds("{} ? {} : {}".format, inner, inner, inner),
        st.builds("({}) == ({})".format, inner, inner),
    ),
    max_leaves=8,
)
SOME_FACTS = st.builds(
    Facts,
    uncertainty=st.sampled_from([None, 0.1, 0.5, 0.9]),
    typicality=st.sampled_from([None, 0.1, 0.9]),
    tier=st.sampled_from(["small", "||", "other"]),
    last_tier=st.booleans(),
    attempt=st.integers(1, 2),
    labels=st.sampled_from([{}, {"vip": True}, {"vip": False, "topic": "legal"}, {"vip": "yes", "absent": 1}]),
)


def recombined(finding: Finding, known: Collection[str] | None = None) -> bool | None:
    """What the leaves make up by the rules of CEL; None for what can't be evaluated.

    `known` are the texts of the leaves that may be looked at; the others count as what can't be evaluated.
    """
    if not finding.parts:
        is_hidden = known is not None and finding.text not in known
        return None if is_hidden or isinstance(finding.value, str) else finding.value
    values = [recombined(part, known) for part in finding.parts]
    if finding.operator == "!":
        return None if values[0] is None else not values[0]
    decisive = finding.operator == "||"
    if decisive in values:
        return decisive
    return None if None in values else not decisive


def split_parts(part: Part) -> Iterator[Part]:
    if part.parts:
        yield part
    for one in part.parts:
        yield from split_parts(one)


def all_of(finding: Finding) -> Iterator[Finding]:
    yield finding
    for part in finding.parts:
        yield from all_of(part)


@given(CONDITIONS, SOME_FACTS)
@example("!last_tier == true", Facts())
@example("last_tier ? true : false || true", Facts())
@example("true || (uncertainty < 0.5) == labels.vip", Facts(labels={"vip": "yes"}))
def test_the_parts_never_contradict_the_whole(text: str, facts: Facts) -> None:
    try:
        condition = Condition.of(text)
    except ConditionError:
        assume(False)
    situation = Situation(facts)
    parts = Part.of(condition)
    whole = parts.check(situation)
    assert whole.value == condition.check(situation)
    for split in split_parts(parts):
        # Their texts are what CEL reads there.
        assert tuple(part.condition.tree for part in split.parts) == split.condition.tree.operands
    for part in all_of(whole):
        assert recombined(part) == (None if isinstance(part.value, str) else part.value)
    if isinstance(whole.value, bool):
        # What a sentence tells is true, and enough to make the whole so.
        told = {one.text: value for one, value in parts.decisive(situation, whole.value)}
        assert all(Condition.part(one).check(situation) is value for one, value in told.items())
        assert recombined(whole, told) is whole.value
