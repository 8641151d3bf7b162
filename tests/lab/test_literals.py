"""Answers that are values of Python or JSON: what a careful reader would take for the right one."""

from pathlib import Path

import pytest

from ilis_guard.errors import QuestionError
from ilis_guard.lab.grading import is_correct
from ilis_guard.lab.literals import literal
from ilis_guard.lab.questions import Question, question_json, read_questions

ASKED = "What does this Python expression return? {}"


def graded(gold: str, text: str, expression: str = "f(x)") -> bool:
    return is_correct(Question(id="q", kind="literal", question=ASKED.format(expression), answers=(gold,)), text)


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("[1, 2]", "[1,2]"),
        ("[1, 2]", " [ 1, 2 ]\n"),
        ("[1, 2]", "`[1, 2]`"),
        ("[1, 2]", "```python\n[1, 2]\n```"),
        ("[1, 2]", "The result is [1, 2]."),
        ("[1, 2]", "The expression returns **[1, 2]**."),
        ("[1, 2]", "* [1, 2]"),
        ("[1, 2]", "sorted([2, 1]) -> [1, 2]"),
        ("[1, 2]", "[1, 2.0]"),
        ("['a', 'b']", '["a", "b"]'),
        ("[True, None]", "[true, null]"),
        ("{'a': [1, 2]}", '{"a": [1, 2]}'),
        ("{1, 2, 3}", "{3, 2, 1}"),
        ("(1, 2)", "1, 2"),
        ("'abc'", "abc"),
        ("'abc'", '"abc"'),
        ("'abc'", "`abc`"),
        ("'abc'", "'abc'."),
        ("'abc'", "abc."),
        ("'abc'", "The string is turned round, resulting in 'abc'."),
        ("'Hello, World'", "Hello, World"),
        ("'a\\nb'", '"a\\nb"'),
        ("'12'", "'12'"),
        ("'12'", "12"),
        ('"it\'s"', 'It is "it\'s".'),
    ],
)
def test_a_value_is_right_however_it_is_written(gold: str, text: str) -> None:
    assert graded(gold, text)


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("[1, 2]", ""),
        ("[1, 2]", "[2, 1]"),
        ("[1, 2]", "1, 2"),
        ("[1, 2]", "(1, 2)"),
        ("[1, 2]", "{1, 2}"),
        ("[1, 2]", "[1, 2, 3]"),
        ("[1, 2]", "[[1, 2]]"),
        ("[1, 2]", "[1, 2"),
        ("[1, 2]", "['1', '2']"),
        ("[1, 2]", "[True, 2]"),
        ("[1, 2]", "[1] + [1, 2]"),
        ("[1, 2]", "[1, 2] + [3]"),
        ("[1, 2]", "[1, 2][0]"),
        ("[1, 2]", "reversed([1, 2])"),
        ("[1, 2]", "It isn't [1, 2] but [2, 1]."),
        ("{'a': 1}", "{'a': 2}"),
        ("{'a': 1}", "{'a': True}"),
        ("{'a': 1}", "{'b': 1}"),
        ("'abc'", "Abc"),
        ("'abc'", "'ABC'"),
        ("'abc'", "'a bc'"),
        ("'abc'", "abcd"),
        ("'abc'", "'abc'.upper()"),
        ("'abc'", "The string 'abc' becomes 'cba'."),
        ("'abc'", "['abc']"),
        ("'12'", "[12]"),
    ],
)
def test_another_value_is_wrong(gold: str, text: str) -> None:
    assert not graded(gold, text)


def test_a_value_may_be_followed_by_what_was_asked_about() -> None:
    assert graded("[1, 2]", "It gives [1, 2], from [2, 1] in order.", "sorted([2, 1])")
    assert not graded("[1, 2]", "It gives [1, 2], from [2, 1] in order.", "sorted([3, 4])")


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "[1, " * 20_000, "[]" * 20_000, "('" * 20_000, "{[1]: 2}", "'\\d'", "9" * 9_000]
)
def test_hostile_texts_are_wrong_without_an_error(text: str) -> None:
    assert not graded("[1, 2]", text)


@pytest.mark.parametrize("text", ["__import__('os')", "[x for x in y]", "open('f')", "1 +", "'\\q'", "", "[" * 500])
def test_what_is_no_literal_is_never_run(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # its message is the caller's
        literal(text)


@pytest.mark.parametrize("answer", ["abc", "12", "True", "None", "[1, 2", "print('a')", "{[1]: 2}"])
def test_a_gold_answer_that_is_no_such_value_is_refused_with_its_line(answer: str, tmp_path: Path) -> None:
    line = question_json(Question(id="q", question="What?", answers=(answer,))).replace('"open"', '"literal"')
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(QuestionError, match=r"q\.jsonl:1: .* isn't a string, list, tuple, set or dictionary"):
        read_questions(tmp_path / "q.jsonl")


def test_a_question_of_a_value_is_read_back_as_it_was(tmp_path: Path) -> None:
    asked = Question(id="q", kind="literal", question="What?", answers=("[1, 2]", "'a'"))
    (tmp_path / "q.jsonl").write_text(question_json(asked))
    assert read_questions(tmp_path / "q.jsonl") == [asked]
    assert is_correct(asked, "a")
    assert not is_correct(asked, "b")
