"""The syntax tree of a condition: the facts that it reads, and the literals that it compares them with."""

import pytest
from hypothesis import given

from ilis_guard.policy.conditions import Condition
from ilis_guard.policy.syntax import Kind, is_plain, literals, tested_labels as labels_tested_in
from tests.policy.strategies import CONDITIONS, is_condition


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("uncertainty < 0.5", {"uncertainty": {0.5}}),
        ("-1.5e3 <= typicality && !(attempt == 2)", {"typicality": {-1500.0}, "attempt": {2}}),
        ("tier == 'a' || \"b\" != tier || true", {"tier": {"a", "b"}}),
        ("(uncertainty) < 0.5", {"uncertainty": {0.5}}),
        ("tier == '\\x61' || tier == r'\\x' || tier == '''a's'''", {"tier": {"a", "\\x", "a's"}}),
        ("attempt < 0x10 && attempt > - 1 && attempt != -0x2", {"attempt": {16, -1, -2}}),
        ("last_tier == false && finish_reason != 'stop'", {"last_tier": {False}, "finish_reason": {"stop"}}),
        ("seconds < 1e400", {"seconds": {float("inf")}}),
        ("tokens > 9223372036854775807 || tokens < -9223372036854775808", {"tokens": {2**63 - 1, -(2**63)}}),
        # Also inside what isn't plain.
        ("(uncertainty < 0.5) == true ? typicality > 0.1 : has(labels.x)", {"uncertainty": {0.5}, "typicality": {0.1}}),
        ("[1, 2].exists(x, x == size(tier) || attempt == 7)", {"tier": None, "attempt": {7}}),
        # Read in any other way, every difference may count.
        ("uncertainty < typicality", {"uncertainty": None, "typicality": None}),
        ("uncertainty - 0.1 < 0.2 || uncertainty > 0.9", {"uncertainty": None}),
        ("(attempt) -1 < 3", {"attempt": None}),
        ("tier < 'b'", {"tier": None}),
        ("last_tier", {"last_tier": None}),
        ("attempt in [1, 2]", {"attempt": None}),
        ("labels.x == 1", {"labels": None}),
        ("error.startsWith('a') && 'uncertainty < 0.5' != error", {"error": None}),
        ("has(labels.typicality)", {"labels": None}),
    ],
)
def test_the_literals_of_each_fact_are_known_exactly(condition: str, expected: dict[str, object]) -> None:
    found = dict(literals(Condition.of(condition).tree))
    if "has(labels.x)" in condition:
        assert found.pop("labels") is None
    assert found == expected


@pytest.mark.parametrize(
    ("condition", "plain"),
    [
        ("true", True),
        ("uncertainty < 0.5 && (last_tier || !(tier == 'a'))", True),
        ("last_tier == false || 3 >= attempt", True),
        ("tier == r'a' || tier == '''a'''", True),
        ("(uncertainty < 0.5) == true", False),
        ("uncertainty < typicality", False),
        ("uncertainty -0.1 < typicality", False),
        ("2 -1 < attempt", False),
        ("tier < 'b'", False),
        ("last_tier < true", False),
        ("labels.x == 1", False),
        ("has(labels.x)", False),
        ("last_tier ? true : false", False),
        ("attempt in [1, 2]", False),
        ("[1].all(x, x == attempt)", False),
    ],
)
def test_a_plain_condition_is_made_of_comparisons_with_literals(condition: str, plain: bool) -> None:
    assert is_plain(Condition.of(condition).tree) is plain


def test_has_tests_the_presence_of_a_label() -> None:
    condition = "has( labels.x ) && 'has(labels.y)' != tier && labels.z == labels['w']"
    assert labels_tested_in(Condition.of(condition).tree) == {"labels.x"}


def test_operands_are_flat_and_keep_their_order() -> None:
    node = Condition.of("attempt == 1 || (attempt == 2 || attempt == 3) || !(attempt == 4 && last_tier)").tree
    assert node.operator == "||"
    assert [operand.kind for operand in node.operands] == [Kind.CALL] * 4
    assert [operand.operator for operand in node.operands] == [None, None, None, "!"]
    assert [leaf.parts[1].value for leaf in node.leaves() if leaf.parts] == [1, 2, 3, 4]


@given(CONDITIONS.filter(is_condition))
def test_trees_of_equal_conditions_are_equal_wherever_they_stand(text: str) -> None:
    assert Condition.of(text).tree == Condition.of(f" (\n{text} )").tree
