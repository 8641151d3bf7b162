"""The subset of CEL that conditions may use."""

import pytest

from ilis_guard.errors import PolicyError
from ilis_guard.policy import Policy
from ilis_guard.policy.conditions import Condition
from ilis_guard.policy.diagnostics import ConditionError


def refusal(condition: str) -> list[tuple[int, int, str]]:
    with pytest.raises(ConditionError) as caught:
        Condition.of(condition)
    return [(problem.line, problem.offset, problem.what) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("condition", "offset", "words"),
    [
        # Each would double a text, and 2000 characters hold 30 of them.
        ("['x']" + ".map(t, t + t)" * 2 + " == []", 23, "`map` and `filter` aren't part of the policy language"),
        ("[1].filter(t, true) == []", 10, "`map` and `filter` aren't part"),
        ("[1].all(a, [2].all(b, a < b))", 18, "`exists_one` can't stand inside another"),
        ("[[1].all(a, true)].exists(b, b)", 8, "can't stand inside another"),
        ("labels.all(a, labels.x + a != 'b')", 23, "only facts and numbers are added"),
        ("labels.x.matches('(a|b|ab){1,300}c')", 9, "`matches` isn't part of the policy language; it has size, "),
        ("matches(labels.x, labels.x)", 0, "`matches` isn't part of the policy language"),
        ("timestamp(labels.x) < timestamp(labels.y)", 0, "`timestamp` isn't part"),
        ("sizes(labels) == 1", 0, "unknown name 'sizes'"),
        ("google.protobuf.Duration{} != google.protobuf.Duration{}", 0, "`google.protobuf.Duration` isn't part"),
        # What is looked at would not be what it seems.
        ("uncertainty < 0.2 // && typicality > 0.1", 18, "a comment hides all that follows"),
        ("labels.url == 'http://x' && true // no", 33, "a comment hides all that follows"),
        ("r'\\d' == labels.x // '", 18, "a comment hides all that follows"),
        ("[0.1].all(uncertainty, uncertainty < 0.2)", 9, "'uncertainty' is a fact, and can't be a name"),
        ("[0.1].all(statistics, statistics < 0.2)", 9, "'statistics' is a fact"),
        ("[0.1].all(labels, labels < 0.2)", 9, "'labels' is a fact"),
        ("has(labels.x) && labels.x != null", 29, "no fact and no label is ever null; ask has(labels.NAME)"),
        ("un\u0441ertainty < 0.2", 2, "got '\u0441' (CYRILLIC SMALL LETTER ES), which may look like another letter"),
        ("uncertainty \uff1c 0.2", 12, "FULLWIDTH LESS-THAN SIGN"),
        ("uncertainty\u200b < 0.2", 11, "ZERO WIDTH SPACE"),
        ("uncertainty < \u0660.2", 14, "ARABIC-INDIC DIGIT ZERO"),
    ],
)
def test_cel_beyond_the_language_is_refused_at_its_place(condition: str, offset: int, words: str) -> None:
    (line, at, what), *_ = refusal(condition)
    assert (line, at) == (1, offset)
    assert words in what


def test_a_place_in_a_text_of_several_lines_counts_from_its_own_line() -> None:
    assert refusal("last_tier &&\n  labels.x.matches('y')")[0][:2] == (2, 11)
    assert refusal("'\u2028\x85' == tier &&\n  nope < 1")[0][:2] == (2, 2)


def test_a_name_that_is_wrong_often_is_complained_of_once() -> None:
    assert [offset for _, offset, _ in refusal(" || ".join(["nope", "nope", "never"] * 50))] == [0, 16]


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("has(labels.x) && labels['y'] == 'uncertainty' && labels.x", ("labels.x", "labels.y")),
        ("'typicality'.size() > attempt", ("attempt",)),
        ("'''it's typicality''' == tier", ("tier",)),
        ('r"\\s" == error || b\'typicality\' == b""', ("error",)),
        ("['a'].exists(shifted, shifted == tier)", ("tier",)),
        ("statistics.margin_min < 0.1 || .uncertainty < 0.1", ("statistics.margin_min", "uncertainty")),
        ("labels[tier] == 1", ("tier",)),
        ("{'typicality': attempt}['typicality'] == 1", ("attempt",)),
    ],
)
def test_the_facts_a_condition_looks_at_are_known_exactly(condition: str, names: tuple[str, ...]) -> None:
    assert Condition.of(condition).names == names


def test_an_answer_rule_cant_look_at_the_score_in_a_string_only() -> None:
    for condition in ('"""typicality""" != tier', "{'uncertainty': 1}.size() == 1"):
        with pytest.raises(PolicyError, match="an answer rule must look at the score"):
            _policy(condition, "answer")


def _policy(condition: str, do: str) -> Policy:
    return Policy.parse(f"version: 1\nname: p\nrules:\n  - id: r\n    when: |-\n      {condition}\n    do: {do}\n")
