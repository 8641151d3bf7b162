"""The laboratory's questions for a model for code: reproducible, right by Python's own account, and never piloted."""

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
    "integer-arithmetic": "b80a494fd4d22dce16aa436550c1115e31eae0f3ade28f7bcc1ad6d2e72d6b9b",
    "list-operation": "48e26da13b94fce6728c6dcffde62672a5f84c349f5d912be4796fc6d74d7400",
    "string-method": "78b4dc4ae0f098ef2f104a828a2ceea96fcd8319a09b6b0d478d4856198aa518",
    "slice": "1e216b491cdaaea06c67534c706cbcd41b432426e05b2e1a7b9b9cb522335787",
    "aggregate": "331f20d8a4cbfe0fff0c072acf5aa5c6ab4402b68b092e8939283c8522b8098e",
    "set-operation": "bd9982dab6bf41779681ea82c2c611abc78b91fdc6d498aac61b8b3d8656f05e",
    "string-search": "5a99f06e1fc31cad538d789b15b5f8a8f3476c2ccd4d821e9dcac7740cc89963",
    "format": "3456e3350a1e09b8470ed9091f58159957245a0ab362ac39ef4b943ba38db51c",
    "comparison": "90fae23d3884ea087132823a53e008e0cae407aaf8bae30cdd441f160dcde9a1",
    "dict-value": "6bf7366ca93cc21443ce7b7ae763de79ca88c2b577964ed34fe6417cd5139612",
    "assignment": "fb99265058366924ebd5be3d43c85f701489fc0df9e450186d8355abd315fecf",
    "loop": "97c26093d381f3e2256ac382e4a0b48910b535fe16e6dab0a993571c8e81e8f9",
    "type-name": "99dc5380bc543dbb90238f1e051f38687d5c207c47c83e857e109354aa3b27f9",
    "exception": "82ba941dbe178af96b2df1fdcb0e2a9bd760b3473f5418ffa8a4f9a6b6468ac9",
    "language": "1d207326ae9279452cb3dec5114ae93ea8ec5a98265eac793baf2533717478e6",
}
"""SHA-256 of each set's JSONL."""
MOST_CONSTANT = 0.26
"""How often one answer may be right; of yes and no each is right half of the time."""
HALVES = {"comparison"}
TELLING: dict[str, int] = {}
"""Questions whose own words would be graded as right."""


@pytest.fixture(scope="module")
def sets() -> Sets:
    return question_sets(CODE, None)


def test_each_set_is_reproducible(sets: Sets, tmp_path: Path) -> None:
    for name, questions in sets.items():
        write_questions(tmp_path / name, questions)
    assert {name: sha256((tmp_path / name).read_bytes()).hexdigest() for name in sets} == DIGESTS


def test_they_are_eight_or_more_of_one_size_and_no_question_is_asked_twice(sets: Sets) -> None:
    asked = [question for questions in sets.values() for question in questions]
    assert len(sets) + len(CODE.from_folder) >= 8
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
    for name, questions in sets.items():
        constant = best_constant(questions)
        assert constant == 0.5 if name in HALVES else constant < MOST_CONSTANT, (name, constant)


def test_the_gold_answer_is_graded_as_right_as_python_writes_it(sets: Sets) -> None:
    for questions in sets.values():
        for question in questions:
            assert is_correct(question, question.answers[0]), question
            assert not is_correct(question, "I don't know."), question


def test_no_question_is_answered_by_its_own_words(sets: Sets) -> None:
    for name in sets.keys() - HALVES:
        telling = [question for question in sets[name] if is_correct(question, question.question)]
        assert len(telling) <= TELLING.get(name, 0), (name, telling[:3])


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
            raised = ""
            try:
                exec(line, {})
            except Exception as error:  # noqa: BLE001 - its kind is what is asked for
                raised = type(error).__name__
            assert raised == name, line


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
