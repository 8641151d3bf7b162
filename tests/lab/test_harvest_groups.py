"""Groups in harvested tables: equal questions, and the column of documents or users."""

import json
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.errors import FitError, QuestionError
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.harvest import group_names, harvest
from ilis_guard.lab.questions import read_questions
from tests.lab.test_harvest import FakeTapped


def lines(path: Path, *questions: dict[str, Any]) -> Path:
    known = {"answers": ["yes"]}
    rows = (known | {"id": f"q{number}"} | question for number, question in enumerate(questions))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def groups(path: Path) -> list[str]:
    found: list[str] = read_attempts(path).table["group"].to_pylist()
    return found


def test_equal_questions_have_one_group_in_the_table(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "q.jsonl",
        {"question": "Is it raining in Bergen?"},
        {"question": "Is the moon made of cheese?"},
        {"question": "is it  raining in Bergen"},
    )
    harvest(FakeTapped(), read_questions(path), tmp_path / "rows.parquet", name="fake")
    first, second, third = groups(tmp_path / "rows.parquet")
    assert first == third != second
    # So that two harvests of the same question agree.
    assert first == group_names(read_questions(lines(path, {"question": "IS IT RAINING IN BERGEN?!"})))["q0"]


def test_a_column_of_the_questions_groups_rows_and_stands_in_the_manifest(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "q.jsonl",
        {"question": "Is it raining in Bergen?", "document": "norway"},
        {"question": "Is the moon made of cheese?", "document": 7},
        {"question": "Is Oslo on a fjord?", "document": "norway"},
    )
    questions = read_questions(path, group_by="document")
    assert [question.owner for question in questions] == ["norway", "7", "norway"]
    harvest(FakeTapped(), questions, tmp_path / "rows.parquet", name="fake", group_by="document")
    first, second, third = groups(tmp_path / "rows.parquet")
    assert first == third != second
    table = read_attempts(tmp_path / "rows.parquet")
    assert table.harvest.group_by == "document"
    assert table.answers().group_by == table.answers("document").group_by == "document"
    with pytest.raises(FitError, match="no column 'user' of texts to group by"):
        table.answers("user")


def test_passages_group_questions_where_that_is_wanted(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "q.jsonl",
        {"question": "Is it long?", "context": "The Rhine."},
        {"question": "Is it deep?", "context": "The Rhine."},
    )
    (first, second) = group_names(read_questions(path)).values()
    assert first != second
    (first, second) = group_names(read_questions(path, group_by="context")).values()
    assert first == second


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({}, r"q\.jsonl:2: there is no key 'document' to group by; give one that every line has"),
        (
            {"document": " "},
            r"q\.jsonl:2: the key to group by, 'document', must be a text or a whole number",
        ),
        ({"document": None}, r"q\.jsonl:2: .* got None; fill it in, or leave --group-by out"),
        ({"document": True}, r"q\.jsonl:2: .* got True"),
        ({"document": ["a"]}, r"q\.jsonl:2: .* got \['a'\]"),
    ],
)
def test_questions_without_an_owner_are_refused_with_their_place(
    question: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = lines(tmp_path / "q.jsonl", {"question": "Is it?", "document": "a"}, {"question": "Was it?"} | question)
    with pytest.raises(QuestionError, match=message):
        read_questions(path, group_by="document")


def test_a_column_that_nobody_named_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "q.jsonl", {"question": "Is it?", "document": "a"})
    with pytest.raises(QuestionError, match=r"the key 'document' is unknown; .* and that of --group-by"):
        read_questions(path)
