"""The laboratory's questions for a model for code: reproducible, right by Python's own account, not in their pilots."""

import builtins
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from benchmarks.laboratory.drafts import chance
from benchmarks.laboratory.programs import EXCEPTIONS, TYPES
from benchmarks.laboratory.sets import CODE, GENERAL, PILOT, family_of, pilot_sets, question_sets
from ilis_guard.errors import QuestionError
from ilis_guard.lab.evaluation.sets import best_constant
from ilis_guard.lab.grading import is_correct
from ilis_guard.lab.questions import Question, write_questions

Sets = Mapping[str, list[Question]]

DIGESTS = {
    "integer-arithmetic": "b8da5e4fa0d60333e33571dc57dbd0a862fcafc68648693961aff7435d68a2c4",
    "list-operation": "48e26da13b94fce6728c6dcffde62672a5f84c349f5d912be4796fc6d74d7400",
    "string-method": "78b4dc4ae0f098ef2f104a828a2ceea96fcd8319a09b6b0d478d4856198aa518",
    "aggregate": "331f20d8a4cbfe0fff0c072acf5aa5c6ab4402b68b092e8939283c8522b8098e",
    "format": "3456e3350a1e09b8470ed9091f58159957245a0ab362ac39ef4b943ba38db51c",
    "comparison": "90fae23d3884ea087132823a53e008e0cae407aaf8bae30cdd441f160dcde9a1",
    "assignment": "fb99265058366924ebd5be3d43c85f701489fc0df9e450186d8355abd315fecf",
    "type-name": "99dc5380bc543dbb90238f1e051f38687d5c207c47c83e857e109354aa3b27f9",
    "exception": "82ba941dbe178af96b2df1fdcb0e2a9bd760b3473f5418ffa8a4f9a6b6468ac9",
    "language": "1d207326ae9279452cb3dec5114ae93ea8ec5a98265eac793baf2533717478e6",
}
"""SHA-256 of each set's JSONL. Harvests of other questions are useless."""
MOST_CONSTANT = 0.17
"""How often one answer may be right."""
TRUTHS = {"comparison"}
"""Sets whose answers are as often yes as no before a sample is drawn."""
TELLING = {"integer-arithmetic": 2, "list-operation": 4, "aggregate": 29, "assignment": 129, "type-name": 16}
"""Questions whose own words would be graded as right, as "a = 12, what is a?" is; the other sets have none."""


@pytest.fixture(scope="module")
def sets() -> Sets:
    return question_sets(CODE, None)


def test_each_set_is_reproducible(sets: Sets, tmp_path: Path) -> None:
    for name, questions in sets.items():
        write_questions(tmp_path / name, questions)
    assert {name: sha256((tmp_path / name).read_bytes()).hexdigest() for name in sets} == DIGESTS


def test_they_are_ten_of_one_size_and_no_question_is_asked_twice(sets: Sets) -> None:
    asked = [question for questions in sets.values() for question in questions]
    assert len(sets) == 10
    assert {len(questions) for questions in sets.values()} == {CODE.rows} == {500}
    assert len({question.prompt() for question in asked}) == len(asked)
    assert len({question.id for question in asked}) == len(asked)


def test_no_piloted_question_is_among_them(sets: Sets) -> None:
    pilots = pilot_sets(None)
    assert pilots.keys() == sets.keys()
    assert {len(questions) for questions in pilots.values()} == {PILOT}
    asked = {question.prompt() for questions in sets.values() for question in questions}
    assert asked.isdisjoint(question.prompt() for questions in pilots.values() for question in questions)


def test_saying_the_same_is_seldom_right(sets: Sets) -> None:
    for name in sets.keys() - TRUTHS:
        assert best_constant(sets[name]) < MOST_CONSTANT, name


@pytest.mark.parametrize("name", sorted(TRUTHS))
def test_yes_and_no_are_right_equally_often(name: str, sets: Sets) -> None:
    drawn = Counter(question.answers[0] for question in sets[name])
    assert min(drawn.values()) > 0.48 * CODE.rows


def test_the_gold_answer_is_graded_as_right_as_python_writes_it(sets: Sets) -> None:
    for questions in sets.values():
        for question in questions:
            assert is_correct(question, question.answers[0]), question
            assert not is_correct(question, "I don't know."), question


def test_few_questions_are_answered_by_their_own_words(sets: Sets) -> None:
    found = {
        name: sum(is_correct(question, question.question) for question in questions) for name, questions in sets.items()
    }
    assert {name: count for name, count in found.items() if count} == TELLING


def test_wordings_are_each_sets_own(sets: Sets) -> None:
    beginnings = Counter(questions[0].question[:20] for questions in sets.values())
    assert max(beginnings.values()) == 1


@pytest.mark.parametrize("name", TYPES)
def test_the_type_is_pythons(name: str) -> None:
    dice = chance("test")
    for form in TYPES[name]:
        for _ in range(20):
            assert type(eval(form(dice))).__name__ == name


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_the_exception_is_pythons(name: str) -> None:
    dice = chance("test")
    for form in EXCEPTIONS[name]:
        for _ in range(20):
            line = form(dice)
            with pytest.raises(getattr(builtins, name)) as raised:
                exec(line, {})
            assert raised.type.__name__ == name, line


def passages(count: int, **given: Any) -> list[Question]:
    return [
        Question(id=f"{number}", context="x" * (1 + (number * 37) % count), question=f"What is {number}?", **given)
        for number in range(count)
    ]


def test_the_shortest_passages_of_a_folder_are_asked_as_often_true_as_false(tmp_path: Path) -> None:
    count = 1009  # a prime, so that all lengths differ
    written = passages(count, answers=("it",))
    write_questions(tmp_path / "squad_xquad.jsonl", written)
    truths = [
        question.model_copy(
            update={"kind": "boolean", "answers": ("no", "false") if number % 3 == 0 else ("yes", "true")}
        )
        for number, question in enumerate(written)
    ]
    write_questions(tmp_path / "boolq.jsonl", truths)
    sets, pilots = question_sets(CODE, tmp_path), pilot_sets(tmp_path)
    assert list(sets)[-2:] == list(CODE.from_folder) == ["short-squad", "short-boolq"]
    for name in CODE.from_folder:
        assert (len(sets[name]), len(pilots[name])) == (CODE.rows, PILOT)
        assert {question.question for question in sets[name]}.isdisjoint(question.question for question in pilots[name])
        assert {question.dataset for question in sets[name]} == {name}
    both = [*sets["short-squad"], *pilots["short-squad"]]
    assert sorted(len(str(question.context)) for question in both) == list(range(1, CODE.rows + PILOT + 1))
    answers = Counter(question.answers[0] for question in [*sets["short-boolq"], *pilots["short-boolq"]])
    assert answers == {"yes": 270, "no": 270}


def test_a_folder_without_a_file_is_an_error(tmp_path: Path) -> None:
    write_questions(tmp_path / "squad_xquad.jsonl", passages(600, answers=("it",)))
    with pytest.raises(QuestionError, match=r"boolq\.jsonl.* can't be read"):
        question_sets(CODE, tmp_path)


def test_a_tiers_name_says_which_sets_it_is_asked() -> None:
    assert family_of("qwen2-5-coder-0-5b-instruct-nf4") is CODE
    assert family_of("smollm2-135m-instruct-full") is GENERAL
