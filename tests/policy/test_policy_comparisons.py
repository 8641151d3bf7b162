"""Comparisons in conditions: of unlike types, which CEL calls not equal, and of texts that are written in two ways."""

import unicodedata

import pytest

from ilis_guard.policy import Facts, Policy
from ilis_guard.policy.conditions import Condition, Conditions, Situation
from ilis_guard.types import Action, Label, Labels
from tests.explained import why

LITERALS: dict[str, Label] = {"true": True, "1": 1, "1.5": 1.5, "'true'": "true"}
OPERATORS = ("==", "!=", "<", "<=", ">", ">=")


def value(condition: str, labels: Labels) -> bool | str:
    """What a condition comes to, alone and among others."""
    compiled, situation = Condition.of(condition), Situation(Facts(labels=labels))
    alone = compiled.check(situation)
    assert list(Conditions([compiled, compiled]).check(situation)) == [alone, alone]
    assert Condition.part(condition).check(situation) == alone
    return alone


def are_alike(one: Label, other: Label) -> bool:
    """Numbers are alike; true and false are no numbers."""
    return isinstance(one, bool) is isinstance(other, bool) and isinstance(one, str) is isinstance(other, str)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("literal", LITERALS)
@pytest.mark.parametrize("label", [True, False, 0, 1, 1.5, "true", "1", ""])
def test_a_label_is_compared_with_its_like_and_with_nothing_else(operator: str, literal: str, label: Label) -> None:
    written = LITERALS[literal]
    for condition in (f"labels.x {operator} {literal}", f"labels['x'] {operator} {literal}"):
        got = value(condition, {"x": label})
        if are_alike(label, written):
            assert got is eval(f"{label!r} {operator} {written!r}")  # Python agrees here
        else:
            assert isinstance(got, str)
            assert got.startswith("the label 'x' is a ")
    flipped = value(f"{literal} {operator} labels.x", {"x": label})
    assert isinstance(flipped, str) is not are_alike(label, written)


@pytest.mark.parametrize(
    ("condition", "labels", "complaint"),
    [
        ("labels.vip == true", {"vip": "true"}, "the label 'vip' is a string, and is compared with a bool"),
        ("labels.vip != true", {"vip": "true"}, "the label 'vip' is a string, and is compared with a bool"),
        ("!(labels.vip == true)", {"vip": "true"}, "the label 'vip' is a string, and is compared with a bool"),
        ("!(labels.vip in [true])", {"vip": "true"}, "the label 'vip' is a string, and is compared with a bool"),
        ("true == labels.vip", {"vip": 1}, "the label 'vip' is a number, and is compared with a bool"),
        ("labels.count < 3", {"count": "2"}, "the label 'count' is a string, and is compared with a number"),
        ("labels['tier'] == tier", {"tier": False}, "the label 'tier' is a bool, and is compared with a string"),
        ("labels.topic in ['legal', 'tax']", {"topic": 1}, "the label 'topic' is a number, and is compared with a str"),
        ("labels.x in [1, 'a']", {"x": True}, "the label 'x' is a bool, and is compared with a number and a string"),
        ("labels.x in [1, 'a']", {"x": "b"}, "the label 'x' is a string, and is compared with a number"),
        ("!(labels.x in [true, 'no'])", {"x": "true"}, "the label 'x' is a string, and is compared with a bool"),
        ("['a', 1].exists(v, v == labels.x)", {"x": "b"}, "the label 'x' is a string, and is compared with a number"),
        ("labels.x in {'a': 1, true: 1}", {"x": "true"}, "the label 'x' is a string, and is compared with a bool"),
        ("labels.x == 'a' || labels.x == 1", {"x": True}, "the label 'x' is a bool, and is compared with a string"),
        ("labels.x != 'a' && labels.x != 1", {"x": "1"}, "the label 'x' is a string, and is compared with a number"),
        ("labels.x == labels.y", {"x": "1", "y": 1}, "the label 'x' is a string, and is compared with a number"),
        ("labels.x != size(labels.y)", {"x": "1", "y": "a"}, "the label 'x' is a string, and is compared with a num"),
        ("labels.x == true ? false : true", {"x": "true"}, "the label 'x' is a string, and is compared with a bool"),
        # in macros, where the variable stands for anything
        ("['a'].exists(t, t == labels.topic)", {"topic": 1}, "the label 'topic' is a number, and is compared with a s"),
        ("[true].all(v, v != labels.x)", {"x": "true"}, "the label 'x' is a string, and is compared with a bool"),
        ("[true, false].exists(v, v != labels.x)", {"x": "no"}, "the label 'x' is a string, and is compared with a bo"),
        ("[true, 'a'].all(v, v != labels.x)", {"x": "true"}, "the label 'x' is a string, and is compared with a bool"),
        ("[1, true].exists_one(v, v == labels.x)", {"x": True}, "the label 'x' is a bool, and is compared with a numb"),
        ("labels.all(name, labels[name] != true)", {"x": "true"}, "`!=` compares a string with a bool: unlike types"),
        ("labels.exists(name, labels[name] == true)", {"x": "true"}, "`==` compares a string with a bool: unlike t"),
        # in values that hold others
        ("[labels.x] != [true]", {"x": "true"}, "`==` compares a string with a bool"),
        ("labels != {'x': true}", {"x": "true"}, "`==` compares a string with a bool"),
        ("{labels.x: 1} != {true: 1}", {"x": "true"}, "`==` compares a string with a bool"),
        ("{labels.x: 1} == {1: 1}", {"x": True}, "`==` compares a bool with a number"),
        ("!('a' in labels.x)", {"x": "abc"}, "`in` needs a list on its right"),
        ("{'a': 1, 'b': true}['b'] == 1", {}, "`==` compares a bool with a number"),
        ("[labels.x] in [[true]]", {"x": "true"}, "`==` compares a string with a bool"),
        ("labels.x in {'a': 1}", {"x": 1}, "the label 'x' is a number, and is compared with a string"),
        ("labels.x in labels", {"x": 1}, "the label 'x' is a number, and is compared with a string"),
        # in what is no comparison
        ("labels.x && true", {"x": "true"}, "`&&` needs true and false"),
        ("labels.x || labels.x", {"x": 1}, "`||` needs true and false"),
        ("!labels.x", {"x": "true"}, "`!` needs true and false"),
        ("labels.x ? true : false", {"x": "true"}, "`? :` needs true and false"),
        ("labels.x.startsWith('a')", {"x": 1}, "`startsWith` can't be applied to a number and a string"),
        ("size(labels.x) > 1", {"x": 1}, "`size` can't be applied to a number"),
        ("labels.x + 1 == 2", {"x": "1"}, "`+` can't be applied to a string and a number"),
    ],
)
def test_unlike_types_fail_a_condition(condition: str, labels: Labels, complaint: str) -> None:
    """CEL calls them not equal: who writes "true" for true would switch the rule off that asks for it."""
    got = value(condition, labels)
    assert isinstance(got, str)
    assert complaint in got


@pytest.mark.parametrize(
    ("condition", "labels", "outcome"),
    [
        ("labels.count == 3", {"count": 3.0}, True),
        ("labels.count != 3", {"count": 3.5}, True),
        ("labels.count in [1, 2, 3]", {"count": 3.0}, True),
        ("labels.count in [1.5, 2]", {"count": 1}, False),
        ("labels.count == 3u", {"count": 3}, True),
        ("has(labels.vip) && labels.vip == true", {}, False),
        ("!has(labels.vip) || labels.vip != true", {}, True),
        ("labels.x == 'a' || labels.x == 1", {"x": 1}, True),
        ("labels.x in [1, 'a']", {"x": "a"}, True),
        ("labels.x in []", {"x": "b"}, False),
        ("'x' in labels", {"x": True}, True),
        ("labels.x in labels", {"x": "x"}, True),
        ("type(labels.x) == bool && labels.x == true", {"x": "true"}, False),
        ("type(labels.x) == bool ? labels.x == true : labels.x == 'true'", {"x": "true"}, True),
        ("string(labels.x) == 'true'", {"x": True}, True),
        ("string(labels.x) == 'true'", {"x": "true"}, True),
        ("[labels.x, 1] == ['a', 1]", {"x": "a"}, True),
        ("labels == {'x': 1, 'y': 'b'}", {"x": 1, "y": "b"}, True),
        ("labels == {'x': 1, 'y': 'b'}", {"x": 1}, False),
        ("[true].exists(v, v == labels.x)", {"x": True}, True),
        ("[1, true].exists(v, v == labels.x)", {"x": True}, True),
        # CEL's own rule for errors: another operand may decide whatever this one would be
        ("attempt == 1 || labels.x == true", {"x": "true"}, True),
        ("labels.x == true || attempt == 1", {"x": "true"}, True),
        ("labels.x != true && attempt == 2", {"x": "true"}, False),
    ],
)
def test_like_types_are_compared_and_errors_count_only_where_they_matter(
    condition: str, labels: Labels, outcome: bool
) -> None:
    assert value(condition, labels) is outcome


CLOSED = (
    "version: 1\nname: p\nrules:\n"
    "  - {id: minor, when: 'has(labels.minor) && (CONDITION)', do: escalate}\n"
    "  - {id: sure, when: uncertainty < 0.2, do: answer}\n"
)
OPEN = "version: 1\nname: p\nrules:\n  - {id: sure, when: 'uncertainty < 0.2 && (CONDITION)', do: answer}\n"


@pytest.mark.parametrize("condition", ["labels.minor == true", "labels.minor != false", "!(labels.minor == false)"])
def test_a_mistaken_label_holds_answers_back(condition: str) -> None:
    policy = Policy.parse(CLOSED.replace("CONDITION", condition))
    assert policy.evaluate(Facts(uncertainty=0.1, labels={"minor": True})).rule == "minor"
    assert policy.evaluate(Facts(uncertainty=0.1, labels={"minor": False})).rule == "sure"
    ruling = policy.evaluate(Facts(uncertainty=0.1, labels={"minor": "true"}))
    assert (ruling.action, ruling.rule) == (Action.ABSTAIN, None)
    assert "rule 'minor' couldn't be evaluated, so nothing is answered after it: the label 'minor'" in why(ruling)[1]
    assert not policy.may_answer(Facts(uncertainty=0.1, labels={"minor": True}))


@pytest.mark.parametrize(
    "condition",
    [
        "labels.minor != true",
        "!(labels.minor == true)",
        "!(labels.minor in [true])",
        "labels.minor == true ? false : true",
    ],
)
def test_a_mistaken_label_answers_nothing(condition: str) -> None:
    policy = Policy.parse(OPEN.replace("CONDITION", condition))
    assert policy.evaluate(Facts(uncertainty=0.1, labels={"minor": False})).rule == "sure"
    assert policy.evaluate(Facts(uncertainty=0.1, labels={"minor": True})).rule is None
    facts = Facts(uncertainty=0.1, labels={"minor": "true"})
    ruling = policy.evaluate(facts)
    (outcome,) = ruling.outcomes
    assert (ruling.action, outcome.outcome) == (Action.ABSTAIN, "failed")
    assert outcome.detail == "the label 'minor' is a string, and is compared with a bool"


def test_a_mistaken_label_at_the_prompt_blocks_the_answer_that_follows() -> None:
    policy = Policy.parse(
        CLOSED.replace("{id: minor,", "{id: minor, stage: prompt,").replace("CONDITION", "labels.minor != false")
    )
    early = policy.evaluate_prompt(Facts(uncertainty=0.1, labels={"minor": "no"}))
    assert early.ruling is None
    assert early.answer_blocked_by is not None
    assert early.answer_blocked_by.kind == "rule_failed"
    facts = Facts(uncertainty=0.1, labels={"minor": "no"}, answer_blocked_by=early.answer_blocked_by)
    assert policy.evaluate(facts).action is Action.ABSTAIN


def test_the_explanation_says_which_part_was_of_unlike_types() -> None:
    policy = Policy.parse(CLOSED.replace("CONDITION", "labels.minor != false"))
    explained = policy.explain(Facts(uncertainty=0.1, labels={"minor": "no"})).to_dict()
    failed = explained["rules"][0]
    assert failed["outcome"] == "failed"
    assert [part["failed"] for part in failed["condition"]["parts"]] == [
        None,
        "the label 'minor' is a string, and is compared with a bool",
    ]


COMPOSED, DECOMPOSED = "Zürich", unicodedata.normalize("NFD", "Zürich")


@pytest.mark.parametrize("written", [COMPOSED, DECOMPOSED, "Zu\\u0308rich"])
@pytest.mark.parametrize("sent", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize(
    "condition", ["labels.city == 'X'", "labels.city in ['X']", "labels['X'] == 1", "['X'].exists(x, x == labels.city)"]
)
def test_texts_that_look_alike_are_alike(written: str, sent: str, condition: str) -> None:
    assert COMPOSED != DECOMPOSED
    assert value(condition.replace("X", written), {"city": sent, sent: 1}) is True


def test_the_names_of_tiers_and_queues_are_compared_as_they_look() -> None:
    facts = Facts(uncertainty=0.1, tier=DECOMPOSED)
    assert Condition.of(f"tier == '{COMPOSED}'").check(Situation(facts)) is True
    rules = f"rules:\n  - {{id: last, do: escalate, to: {DECOMPOSED}}}\n"
    assert Policy.parse(f"version: 1\nname: p\n{rules}").queues == {COMPOSED}
