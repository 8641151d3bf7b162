import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from ilis_guard.errors import QuestionError
from ilis_guard.lab.questions import Question, numbers_in, read_questions, write_questions

OPEN: dict[str, Any] = {"id": "q1", "question": "Where is Oslo?", "answers": ["Norway"]}
CHOICE: dict[str, Any] = {
    "id": "q2",
    "kind": "choice",
    "question": "Which is a fruit?",
    "choices": ["chair", "apple"],
    "answers": ["B", "apple"],
}


def line(**changes: Any) -> bytes:
    return json.dumps({**OPEN, **changes}).encode() + b"\n"


def complaint(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(QuestionError) as caught:
        read_questions(path)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "questions.jsonl"


# The shape of a question.


def test_a_question_needs_id_text_and_answers_only() -> None:
    question = Question(**OPEN)
    assert (question.kind, question.dataset, question.context, question.choices) == ("open", "", None, None)


def test_a_question_is_frozen_and_hashable() -> None:
    question = Question(**OPEN)
    with pytest.raises(ValidationError, match="frozen"):
        question.id = "other"  # type: ignore[misc]  # that it can't be set is the point
    assert len({question, Question(**OPEN)}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": []}, "at least 1"),
        ({"answers": [" "]}, "something in it to read"),
        ({"question": "\n"}, "something in it to read"),
        ({"id": ""}, "something in it to read"),
        ({"kind": "essay"}, "'open', 'choice', 'numeric', 'boolean' or 'literal'"),
        ({"colour": "red"}, "Extra inputs"),
        ({"choices": ["Norway", "Sweden"]}, "give both or none"),
        ({"kind": "choice"}, "give both or none"),
        ({"kind": "boolean"}, "'no' and 'false'"),
        ({"kind": "boolean", "answers": ["yes", "no"]}, "'no' and 'false'"),
        ({"kind": "boolean", "answers": ["Yes"]}, "'no' and 'false'"),
        ({"kind": "numeric", "answers": ["12", "a few"]}, "'a few' isn't a number"),
        ({"kind": "numeric", "answers": ["1/0"]}, "isn't a number"),
        ({"kind": "numeric", "answers": ["NaN"]}, "isn't a number"),
        ({"kind": "numeric", "answers": ["12 13"]}, "isn't a number"),
        ({"kind": "numeric", "answers": ["9" * 400]}, "isn't a number"),
        ({"kind": "choice", "choices": ["Norway"]}, "got 1 choices"),
        ({"kind": "choice", "choices": [f"place {i}" for i in range(27)]}, "got 27 choices"),
        ({"kind": "choice", "choices": ["Norway", "Norway"]}, "are the same"),
        ({"kind": "choice", "choices": ["Norway", "Sweden"], "answers": ["C"]}, r"A to B"),
        ({"kind": "choice", "choices": ["Norway", "Sweden"], "answers": ["norway"]}, "exact text"),
        ({"kind": "choice", "choices": ["Norway", "Sweden"], "answers": ["A", "Sweden"]}, "don't name one choice"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Question(**{**OPEN, **changes})


@pytest.mark.parametrize(
    ("choices", "answers", "index"),
    [
        (["chair", "apple"], ["B", "apple"], 1),
        (["chair", "apple"], ["apple"], 1),
        (["chair", "apple"], ["A"], 0),
        (["B", "A"], ["A", "B"], 0),  # the letter A, the text B
        (["B", "A"], ["A"], 0),  # alone, it is the letter
        (["P", "B"], ["B", "B"], 1),
    ],
)
def test_the_right_choice(choices: list[str], answers: list[str], index: int) -> None:
    assert Question(**{**CHOICE, "choices": choices, "answers": answers}).right_choice == index


def test_without_choices_there_is_no_right_choice() -> None:
    assert Question(**OPEN).right_choice is None


def test_the_prompt_is_the_question() -> None:
    assert Question(**OPEN).prompt() == "Where is Oslo?"


def test_the_prompt_letters_the_choices() -> None:
    assert Question(**CHOICE).prompt() == "Which is a fruit?\nA) chair\nB) apple"


def test_the_prompt_starts_with_the_context() -> None:
    assert Question(**OPEN, context="Oslo is in Norway.").prompt() == "Oslo is in Norway.\n\nWhere is Oslo?"


# Numbers.


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", []),
        ("no number", []),
        ("12", [12]),
        ("-3", [-3]),
        ("\N{MINUS SIGN}3", [-3]),
        ("+3", [3]),
        ("$1,234.50.", [1234.5]),
        ("-$5", [-5]),
        ("$-5", [-5]),
        ("(-5)", [-5]),
        ("x=-5", [-5]),
        (".5", [0.5]),
        ("3.", [3]),
        ("50%", [50]),
        ("1,000,000", [1_000_000]),
        ("1,23", [1.23]),
        ("1,2345", [1.2345]),
        ("1,2,3", [1, 2, 3]),
        ("1.234,5", [1234.5]),
        ("1 500", [1500]),
        ("1.5 million", [1_500_000]),
        ("6 x 10^6 or 1e6", [6_000_000, 1_000_000]),
        ("twenty-one and 3 1/2", [21, 3.5]),
        ("1e999", []),
        ("1, 2 and 3", [1, 2, 3]),
        ("1/2", [0.5]),
        ("-1/4", [-0.25]),
        ("3 1/2", [3.5]),
        ("1/0", []),
        ("1/0 or 2", [2]),
        ("47-21", [47, 21]),
        ("47 - 21 = 26", [47, 21, 26]),
        ("H2O", []),
        ("B52s", []),
        ("18kg", [18]),
        ("the 3rd", [3]),
        ("10:30", [10, 30]),
        ("9" * 400, []),
    ],
)
def test_numbers_in_a_text(text: str, numbers: list[float]) -> None:
    assert numbers_in(text) == numbers


@given(st.text(alphabet="0123456789,./+-$ xA"))
def test_any_text_has_numbers_or_none(text: str) -> None:
    assert all(isinstance(number, float) for number in numbers_in(text))


@given(st.integers(min_value=-(10**12), max_value=10**12))
def test_a_number_written_with_separators_is_read_back(number: int) -> None:
    assert numbers_in(f"The answer is {number:,}.") == [number]


# Reading.


def test_reads_in_order_and_passes_over_blank_lines(path: Path) -> None:
    path.write_bytes(b"\n" + line(id="b") + b"  \r\n" + line(id="a").replace(b"\n", b"\r\n") + b"\n")
    assert [question.id for question in read_questions(path)] == ["b", "a"]


def test_the_last_line_may_lack_its_end(path: Path) -> None:
    path.write_bytes(line().rstrip())
    assert len(read_questions(str(path))) == 1


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b"", ":1:", "no questions"),
        (b"\n \n", ":1:", "no questions"),
        (b"\xef\xbb\xbf" + line(), ":1:", "byte order mark"),
        (b"\n" + b'{"id": "\xff"}\n', ":2:", r"byte 9 isn't UTF-8, got b'\xff'"),
        (line().decode().encode("utf-16"), ":1:", "isn't UTF-8"),
        (line() + b'{"id": "x", }\n', ":2:13:", "broken JSON"),
        (b'{"id": "q1"\n', ":1:", "broken JSON"),
        (b"[1, 2]\n", ":1:", "got [1, 2]; a question is a JSON object"),
        (b'"text"\n', ":1:", "got 'text'; a question is a JSON object"),
        (b"null\n", ":1:", "got None"),
        (b"[" * 100_000 + b"\n", ":1:", "flat JSON object"),
        (b"1" * 5_000 + b"\n", ":1:", "flat JSON object"),
        (line(context=float("nan")), ":1:", "NaN"),
        (line(context=float("-inf")), ":1:", "-Infinity"),
        (b'{"id": "a", "id": "b"}\n', ":1:", "the key 'id' is given twice"),
        (line() + line(id="q2") + line(), ":3:", "the id 'q1' stands on line 1 too"),
        (b'{"id": "q1", "question": "Why?"}\n', ":1:", "the key 'answers' is missing"),
        (line(colour="red"), ":1:", "the key 'colour' is unknown; the keys are 'id', 'dataset'"),
        (line(id=7), ":1:", "'id' is wrong, got 7"),
        (line(answers="Norway"), ":1:", "'answers' is wrong, got 'Norway'"),
        (line(answers=["Norway", ""]), ":1:", "'answers.1' is blank, got ''"),
        (line(kind="essay"), ":1:", "'kind' is wrong, got 'essay'"),
        (line(kind="numeric"), ":1:", "'Norway' isn't a number"),
        (line(id="\ud800"), ":1:", "'id' is blank"),
    ],
)
def test_complaints_name_file_and_line(path: Path, content: bytes, where: str, what: str) -> None:
    message = complaint(path, content)
    assert message.startswith(f"{path}{where}")
    assert what in message


def test_messages_shorten_the_value(path: Path) -> None:
    message = complaint(path, line(kind="x" * 10_000))
    assert len(message) < len(str(path)) + 200


def test_a_line_may_not_be_endless(path: Path) -> None:
    message = complaint(path, line() + b"x" * 1_000_001)
    assert message.startswith(f"{path}:2: the line is longer than 1,000,000 bytes")


def test_a_missing_file_is_a_question_error(path: Path) -> None:
    with pytest.raises(QuestionError, match="can't be read: No such file"):
        read_questions(path)


# Writing.


def test_written_questions_are_read_back(path: Path) -> None:
    questions = [Question(**OPEN, context="Zürich\u2028\N{SNOWMAN}\n"), Question(**CHOICE)]
    write_questions(path, questions)
    assert read_questions(path) == questions


def test_writing_replaces_the_file_without_remnants(path: Path) -> None:
    path.write_text("old")
    write_questions(path, [Question(**OPEN)])
    assert len(read_questions(path)) == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "questions",
    [
        [],
        [Question(**OPEN), Question(**OPEN)],
        [Question(**OPEN, context="x" * 1_000_000)],
    ],
)
def test_unreadable_questions_are_not_written(path: Path, questions: list[Question]) -> None:
    path.write_text("old")
    with pytest.raises(QuestionError):
        write_questions(path, questions)
    assert path.read_text() == "old"


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_questions(path, [Question(**OPEN)])
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
