from collections import Counter

import pytest

from benchmarks.world_facts import world_facts
from ilis_guard.lab.grading import is_correct
from ilis_guard.lab.questions import Question, read_questions, write_questions


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return world_facts()


@pytest.fixture(scope="module")
def answers(questions: list[Question]) -> dict[str, tuple[str, ...]]:
    return {question.question: question.answers for question in questions}


def test_there_are_thousands_and_no_task_dominates(questions: list[Question]) -> None:
    assert len(questions) >= 4_000
    assert max(Counter(question.dataset for question in questions).values()) <= 500


def test_ids_and_texts_are_unique(questions: list[Question]) -> None:
    assert len({question.id for question in questions}) == len(questions)
    assert len({question.question for question in questions}) == len(questions)


def test_an_id_is_the_task_and_a_number(questions: list[Question]) -> None:
    assert questions[0].id == "capital-0001"
    assert all(question.id.rpartition("-")[0] == question.dataset for question in questions)


def test_the_same_seed_gives_the_same_questions(questions: list[Question]) -> None:
    assert world_facts(seed=0) == questions


def test_another_seed_gives_another_sample(questions: list[Question]) -> None:
    others = world_facts(seed=1)
    assert len(others) == len(questions)
    assert {question.question for question in others} != {question.question for question in questions}


def test_every_gold_answer_is_right_and_no_question_answers_itself(questions: list[Question]) -> None:
    for question in questions:
        assert all(is_correct(question, answer) for answer in question.answers), question
        assert not is_correct(question, question.question), question


def test_every_question_is_one_plain_sentence(questions: list[Question]) -> None:
    for question in questions:
        assert question.question.endswith("?")
        assert "\n" not in question.question
        assert question.prompt() == question.question


def test_they_survive_a_file(questions: list[Question], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    write_questions(path, questions)
    assert read_questions(path) == questions


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of the Netherlands?", "Amsterdam"),
        ("What is the capital of Kazakhstan?", "Astana"),
        ("What is the capital of Ukraine?", "Kiev"),
        ("Nairobi is the capital of which country?", "Kenya"),
        ("London is the capital of which country?", "the UK"),
        ("Washington is the capital of which country?", "USA"),
        ("On which continent is Bolivia?", "South America"),
        ("Which currency do people use in Japan?", "Yen"),
        ("What is the postal abbreviation of Alaska?", "AK"),
        ("What is the chemical symbol of iron?", "Fe"),
        ("What is 12 times 12?", "144"),
        ("What is the square of 9?", "81"),
    ],
)
def test_spot_facts(answers: dict[str, tuple[str, ...]], question: str, answer: str) -> None:
    asked = Question(id="spot", question=question, answers=answers[question])
    assert is_correct(asked, answer)


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of Singapore?",  # the question says it
        "What is the capital of Israel?",  # disputed
        "On which continent is Turkey?",  # on two
        "What is the capital of Serbia and Montenegro?",  # dissolved
        "Khartoum is the capital of which country?",  # "South Sudan" would pass
        "In which US state is the city of Virginia Beach?",  # and so would "West Virginia"
        "What is the chemical symbol of indium?",  # "in" stands in any answer
    ],
)
def test_doubtful_facts_are_left_out(answers: dict[str, tuple[str, ...]], question: str) -> None:
    assert question not in answers
