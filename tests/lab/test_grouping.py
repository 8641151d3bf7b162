"""Which questions count as one: on both sides of the line, in several languages, and how often the line is wrong."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from benchmarks.world_facts import world_facts
from ilis_guard.lab.grouping import (
    QuestionText,
    answer_groups,
    close_rows,
    is_typo,
    join_rows,
    question_groups,
    text_digest,
    tokens_of,
)
from ilis_guard.lab.questions import Question
from tests.lab.synthetic import synthetic_answers


def text(question: str, answers: str = "", context: str = "", owner: str | None = None) -> QuestionText:
    known = frozenset(filter(None, answers.split("|")))
    return QuestionText(question=question, answers=known, context=context, owner=owner)


# Some hundred other questions, so that the words of all questions are told from those of one.
CROWD = [text(question.question, "|".join(question.answers)) for question in world_facts(0)[::9]]


def are_same(one: QuestionText, other: QuestionText) -> bool:
    groups = question_groups([*CROWD, one, other])
    return bool(groups[-1] == groups[-2])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of Norway?", "what is the capital of norway"),
        ("What is the capital of Norway?", "  WHAT  is the\tcapital of Norway ?!\n"),
        ("What is the capital of Norway?", "What is the captial of Norway?"),
        ("What is the capital of Norway?", "What is the capital of Norwy?"),
        ("What is the capital of Norway?", "What is the capital of “Norway”?"),
        ("What is the capital of Norway?", "What is the capital of Nor\u200bway?"),
        ("What is the capital of Norway?", "\N{FULLWIDTH LATIN CAPITAL LETTER W}hat is the capital of Norway?"),
        ("What is 5 + 3?", "what is 5+3"),
        ("Wie heißt die Hauptstadt von Österreich?", "wie heisst die hauptstadt von österreich"),
        ("ノルウェーの首都はどこですか。", "ノルウェーの首都はどこですか\N{FULLWIDTH QUESTION MARK}"),
        (
            "Quelle est la capitale de la Norvège ?",
            "Quelle est la capitale de la Norve\u0300ge?",
        ),
        (
            "Who wrote the opera in which a barber of Seville helps a count to marry Rosina?",
            "Who wrote that opera in which a barber of Seville helps a count to marry Rosina?",
        ),
    ],
)
def test_spellings_of_one_question_are_the_same(one: str, other: str) -> None:
    assert are_same(text(one, "Oslo"), text(other, "Oslo"))


@pytest.mark.parametrize(
    "around",
    [
        "Ticket #{n}: {}",
        "[2026-11-{n} 1{n}:07] {}",
        "{n}. {}",
        "{} (session {n}f3a-99e{n}-77b)",
        "{} https://x.example/?id={n}",
    ],
)
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which river flows through the old town of Ljubljana?", "Ljubljanica"),
        ("What is the capital of Norway?", "Oslo"),
    ],
)
def test_numbers_and_times_around_a_question_make_no_other_question(around: str, question: str, answer: str) -> None:
    one, other = (text(around.replace("{n}", str(number)).format(question), answer) for number in (12, 27))
    assert are_same(one, other)


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        ("What is 17 + 25?", "What is 18 + 24?", "42"),
        ("How many minutes are in 3 hours?", "How many minutes are 10800 seconds?", "180"),
    ],
)
def test_different_sums_with_one_result_are_different(one: str, other: str, answer: str) -> None:
    others = [text("What is 3 + 4?", "7"), text("How many minutes are in 2 hours?", "120")]
    groups = question_groups([*CROWD, *others, text(one, answer), text(other, answer)])
    assert groups[-1] != groups[-2]


@pytest.mark.parametrize("around", ["{} Thanks!", "Please: {}", "{} Answer briefly.", "Hello, {}"])
def test_courtesies_around_a_question_make_no_other_question(around: str) -> None:
    question = "Which river flows through the old town of Ljubljana?"
    assert are_same(text(question, "Ljubljanica"), text(around.format(question), "Ljubljanica"))


@pytest.mark.parametrize(
    ("one", "its", "other", "others"),
    [
        ("What is the capital of Norway?", "Oslo", "What is the capital of Sweden?", "Stockholm"),
        ("What is the capital of Iran?", "Tehran", "What is the capital of Iraq?", "Baghdad"),
        ("What is the capital of Iceland?", "Reykjavik", "What is the capital of Ireland?", "Dublin"),
        ("On which continent is Norway?", "Europe", "On which continent is Sweden?", "Europe"),
        ("On which continent is Iran?", "Asia", "On which continent is Iraq?", "Asia"),
        ("What is 17 + 25?", "42", "What is 17 + 26?", "43"),
        ("What is 5 + 3?", "8", "What is 5 - 3?", "2"),
        ("What is 3.5 times 2?", "7", "What is 35 times 2?", "70"),
        ("What does x[1:] return?", "a", "What does x[:1] return?", "b"),
        (
            "Which US state has the abbreviation AL?",
            "Alabama",
            "Which US state has the abbreviation AK?",
            "",
        ),
        ("日本の首都はどこですか。", "東京", "中国の首都はどこですか。", "北京"),
        ("한국의 수도는?", "서울", "중국의 수도는?", "베이징"),
        ("Is it safe to take it with milk?", "yes", "Is it not safe to take it with milk at all?", "no"),
        ("???", "", "!!!", ""),
    ],
)
def test_questions_that_differ_in_a_word_a_number_or_a_sign_are_different(
    one: str, its: str, other: str, others: str
) -> None:
    assert not are_same(text(one, its), text(other, others))


def test_the_same_words_about_another_passage_are_another_question() -> None:
    first, second = "The Rhine flows from the Alps to the sea.", "The Nile flows through ten countries in Africa."
    assert not are_same(text("How long is it?", context=first), text("How long is it?", context=second))
    assert are_same(text("How long is it?", context=first), text("how long is it", context=f" {first.upper()}"))


def test_rows_of_one_owner_are_a_group_and_groups_are_joined() -> None:
    questions = [
        text("What is the capital of Norway?", owner="a"),
        text("Who painted the Scream?", owner="b"),
        text("Which sea is the saltiest?", owner="a"),
        text("who painted the scream", owner="a"),
        text("What is the capital of Norway?"),
        text("How many moons has Mars?"),
    ]
    assert question_groups(questions).tolist() == [0, 0, 0, 0, 0, 5]


def test_different_questions_of_templates_are_seldom_joined_and_repeats_always_found() -> None:
    """The figures of docs/fitting.md, on templates: the hardest there are."""
    asked = world_facts(0)
    groups = question_groups([_of(question) for question in asked])
    sizes = Counter(groups.tolist())
    assert len(asked) - len(sizes) <= 0.005 * len(asked)
    assert max(sizes.values()) <= 3
    drawn = random.Random(0)
    sample = drawn.sample(asked, 300)
    repeated = [_of(one, _misspelt(one.question.lower().rstrip("?"), drawn)) for one in sample]
    found = question_groups([*map(_of, asked), *repeated])
    place = {question.id: row for row, question in enumerate(asked)}
    missed = sum(found[place[one.id]] != found[len(asked) + row] for row, one in enumerate(sample))
    assert missed <= 3


def _of(question: Question, asked: str = "") -> QuestionText:
    return QuestionText(question=asked or question.question, answers=frozenset(question.answers))


def _misspelt(question: str, drawn: random.Random) -> str:
    words = list(re.finditer(r"[^\W\d_]{5,}", question))
    if not words:
        return question
    word = drawn.choice(words)
    at = word.start() + drawn.randrange(len(word.group()) - 1)
    swapped = question[:at] + question[at + 1] + question[at] + question[at + 2 :]
    return drawn.choice([swapped, question[:at] + question[at + 1 :], question[:at] + "x" + question[at:]])


@pytest.mark.parametrize(
    ("one", "other", "is_one"),
    [
        ("capital", "captial", True),
        ("capital", "capitl", True),
        ("capital", "cappital", True),
        ("capital", "capitol", True),
        ("capital", "apitalc", False),
        ("austria", "australia", False),
        ("iran", "iraq", False),
        ("norway", "sweden", False),
    ],
)
def test_a_typo_is_one_slip_of_the_keyboard(one: str, other: str, *, is_one: bool) -> None:
    assert is_typo(one, other) is is_typo(other, one) is is_one


def test_a_digest_is_that_of_all_spellings_and_of_no_other_question() -> None:
    assert text_digest(text("What is  NORWAY's capital?")) == text_digest(text("what is norways capital"))
    assert text_digest(text("What is x?")) != text_digest(text("What is x?", context="y"))
    assert text_digest(text("?!")) == ""


def test_punctuation_counts_in_formulas_alone() -> None:
    assert tokens_of("Wait, what's 3,500 — or 'more'?") == ("wait", "whats", "3,500", "or", "more")
    assert tokens_of("f(x) = -2.") == ("f", "(", "x", ")", "=", "-", "2")


def test_equal_maps_are_one_row_whatever_their_ids_say() -> None:
    rows = synthetic_answers({"a": 50})
    again = rows.take(np.tile(np.arange(50), 3))
    assert answer_groups(rows).tolist() == list(range(50))
    assert answer_groups(again).tolist() == list(range(50)) * 3
    # Computed in another batch, with other rounding errors.
    noise = 1 + 1e-4 * np.random.default_rng(0).random((150, 1, 1)).astype(np.float32)
    shaken = {name: maps * noise for name, maps in again.signatures.items()}
    assert answer_groups(replace(again, signatures=shaken)).tolist() == list(range(50)) * 3
    # Sampled answers to one prompt are of one question.
    sampled = {name: maps * (1 if name == "prompt" else 50 * noise - 49) for name, maps in again.signatures.items()}
    assert answer_groups(replace(again, signatures=sampled)).tolist() == list(range(50)) * 3


@pytest.mark.parametrize("columns", [1, 3, 20])
def test_close_rows_are_those_that_comparing_all_pairs_finds(columns: int) -> None:
    values = np.random.default_rng(0).random((200, columns)) / 20
    pairs = {(min(pair), max(pair)) for pair in close_rows(values, 0.01)}
    away = np.abs(values[:, None] - values[None]).max(axis=2)
    assert pairs == {(one, other) for one, other in zip(*np.nonzero(away <= 0.01), strict=True) if one < other}


def test_joined_rows_have_the_number_of_their_first_row() -> None:
    assert join_rows(6, [(4, 5), (1, 3)], iter([(5, 3)])).tolist() == [0, 1, 2, 1, 1, 1]
    assert join_rows(3).tolist() == [0, 1, 2]
    assert join_rows(0, chain()).tolist() == []


def test_thousands_of_questions_of_one_template_are_told_apart_by_their_answers() -> None:
    """Pair by pair, this would take minutes."""
    asked = [
        QuestionText(question=f"Who is number {place}?", context="", answers=frozenset({f"Somebody {place // 2}"}))
        for place in range(6000)
    ]
    groups = question_groups(asked)
    assert len(set(groups.tolist())) == 6000
    elsewhere = [QuestionText(question=f"Ticket {place}: who came?", answers=frozenset({"Ada"})) for place in range(50)]
    assert len(set(question_groups(elsewhere).tolist())) == 1
