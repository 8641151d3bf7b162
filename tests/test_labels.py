"""What callers may say in labels, and what a policy does where they said something else all the same."""

import unicodedata
from typing import Any

import pytest

from ilis_guard.errors import RequestError
from ilis_guard.policy import Facts, Policy
from ilis_guard.types import Action, Request
from ilis_guard.types.requests import label_problem
from tests.explained import blocked

BAD: list[tuple[dict[Any, Any], str]] = [
    ({7: "x"}, "the label name 7 isn't an identifier"),
    ({"a b": "x"}, "the label name 'a b' isn't an identifier"),
    ({"a\n": "x"}, r"the label name 'a\\n' isn't an identifier"),
    ({"x" * 101: 1}, "has 101 characters; it may have 100"),
    ({"-" * 100_000: 1}, r"the label name '-{56}\.\.\. isn't an identifier"),
    ({"a": "x" * 2_001}, "the label 'a' has 2001 characters; it may have 2000"),
    ({"a": "\ud800"}, "the label 'a' has half a character"),
    ({"a": 2**63}, "the label 'a' is a number of more than 64 bits"),
    ({"a": -(2**63)}, "the label 'a' is a number of more than 64 bits"),
    ({"a": float("nan")}, "the label 'a' is a float; a label is a string, a boolean or a finite number"),
    ({"a": float("-inf")}, "the label 'a' is a float"),
    ({"a": None}, "the label 'a' is a NoneType"),
    ({"a": ["x"]}, "the label 'a' is a list"),
    ({"a": {"b": 1}}, "the label 'a' is a dict"),
    ({"a": b"x"}, "the label 'a' is a bytes"),
    ({f"x{number}": 1 for number in range(101)}, "there are 101 labels; a request has at most 100"),
]


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_a_request_with_anything_else_is_refused(bad: dict[Any, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Request.of("Hello", bad)


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"a": "x" * 2_000, "b" * 100: 2**63 - 1, "c": -(2**63 - 1), "d": 1e308, "e": True, "naïve": "naïve \U0001f600"},
        {f"x{number}": "" for number in range(100)},
    ],
)
def test_short_words_and_numbers_are_labels(good: dict[str, Any]) -> None:
    assert Request.of("Hello", good).labels == good
    assert label_problem(good) == ""


@pytest.mark.parametrize("bad", [bad for bad, _ in BAD])
def test_no_policy_answers_where_labels_are_no_labels(bad: dict[Any, Any]) -> None:
    """Requests can't have them; facts from elsewhere might."""
    policy = Policy.parse(
        "version: 1\nname: p\nrules:\n  - {id: early, stage: prompt, when: tokens > 3, do: abstain}\n"
        "  - {id: urgent, when: has(labels.a) && labels.a != false, do: escalate}\n"
        "  - {id: sure, when: uncertainty < 0.5, do: answer}\n"
    )
    facts = Facts(uncertainty=0.1, typicality=0.5, labels=bad)
    assert policy.evaluate(facts).action in (Action.ABSTAIN, Action.ESCALATE)
    assert blocked(policy.evaluate_prompt(facts).answer_blocked_by).endswith("so nothing is answered")
    fine = Facts(uncertainty=0.1, typicality=0.5, labels={"a": False})
    assert policy.evaluate(fine).rule == "sure"
    assert blocked(policy.evaluate_prompt(fine).answer_blocked_by) == ""


NAIVE, DECOMPOSED = "naïve", unicodedata.normalize("NFD", "naïve")


def test_labels_are_normalised_where_the_request_enters() -> None:
    assert Request.of("Hello", {DECOMPOSED: DECOMPOSED, "n": 1}).labels == {NAIVE: NAIVE, "n": 1}


def test_two_names_that_look_alike_are_refused() -> None:
    with pytest.raises(RequestError, match=r"the label names .* are the same letters"):
        Request.of("Hello", {NAIVE: 1, DECOMPOSED: 2})
    policy = Policy.parse("version: 1\nname: p\nrules:\n  - {id: sure, when: uncertainty < 0.5, do: answer}\n")
    assert policy.evaluate(Facts(uncertainty=0.1, labels={NAIVE: 1, DECOMPOSED: 2})).action is Action.ABSTAIN


def test_a_label_that_grows_too_long_in_nfc_is_refused() -> None:
    grows = "\ufb2c" * 1_000
    assert len(unicodedata.normalize("NFC", grows)) == 3_000
    with pytest.raises(RequestError, match="has 1000 characters; it may have 2000, also in Unicode's form NFC"):
        Request.of("Hello", {"a": grows})
