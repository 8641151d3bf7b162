from typing import Literal

import pytest
from hypothesis import given, strategies as st

from ilis_guard.lab.grading import is_correct
from ilis_guard.lab.questions import Question
from ilis_guard.text import is_blank


def asked(
    *answers: str,
    kind: Literal["open", "choice", "numeric", "boolean"] = "open",
    question: str = "What is it?",
    choices: tuple[str, ...] | None = None,
) -> Question:
    return Question(id="q", kind=kind, question=question, answers=answers, choices=choices)


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("Paris", "The capital is Paris.", True),
        ("Paris", "PARIS!", True),
        ("Paris", "It's Paris's old centre", True),
        ("Paris", "Parisian", False),
        ("Paris", "", False),
        ("Paris", " \n", False),
        ("Bogota", "Bogotá", True),
        ("São Tomé", "Sao Tome", True),
        ("N'Djamena", "N\N{RIGHT SINGLE QUOTATION MARK}Djamena", True),
        ("N'Djamena", "Ndjamena", True),
        ("Port-au-Prince", "port au prince", True),
        ("the Tyne and Wear Metro", "Tyne and Wear Metro", True),
        ("Lord of the Rings", "the lord of rings", True),
        ("United States", "the United  States\nof America", True),
        ("U.S.", "It is the US.", True),
        ("US", "the U.S. government", True),
        ("St. George's", "St George\N{RIGHT SINGLE QUOTATION MARK}s", True),
        ("New York", "York", False),
        ("Niger", "Nigeria", False),
        ("Fe", "The symbol is Fe", True),
        ("Fe", "iron", False),
        ("1972", "December 1972", True),
        ("2.5", "25", False),
        ("5", "2.5", False),
        ("3", "-3", False),
        ("1000", "about 1,000 people", True),
        ("10", "10-20", True),
        ("vitamin A", "vitamin C", False),
        ("vitamin A", "Vitamin A is good", True),
        ("A", "The letter is A.", True),
        ("A", "A", True),
        ("A", "a house", False),
        ("The The", "It was The The", True),
        ("The Who", "who", True),
        ("?", "?", True),
        ("?", "!", False),
        ("+", "plus", False),
        ("東京", "東京", True),
        ("Straße", "STRASSE", True),
        ("\ufb01sh", "fish", True),  # a ligature
        ("s", "France's last letter", False),
    ],
)
def test_open(gold: str, text: str, right: bool) -> None:
    assert is_correct(asked(gold), text) is right


def test_open_accepts_every_gold_answer() -> None:
    question = asked("Kyiv", "Kiev")
    assert is_correct(question, "Kiev")
    assert is_correct(question, "Kyiv")


@pytest.mark.parametrize(
    ("question", "gold", "text", "right"),
    [
        ("What is 12 + 7?", "19", "19", True),
        ("What is 12 + 7?", "19", "12 + 7 = 19.", True),
        ("What is 12 + 7?", "19", "19 is 12 + 7", True),
        ("What is 12 + 7?", "19", "12 + 7 = 20", False),
        ("What is 12 + 7?", "19", "I don't know", False),
        ("What is 12 + 7?", "19", "", False),
        ("What is 12 + 7?", "19", "First 19, then 20", False),
        ("How many minutes are in 3 hours?", "180", "There are 180 minutes in 3 hours.", True),
        ("How many hours are 180 minutes?", "3", "180 minutes are 3 hours", True),
        ("She has 3 and finds 15, how many fit in 18?", "18", "3 + 15 = 18", True),
        ("What is 3 minus 5?", "-2", "3 - 5 = -2", True),
        ("What is 3 minus 5?", "-2", "\N{MINUS SIGN}2", True),
        ("What is 3 minus 5?", "-2", "2", False),
        ("What is 47 minus 21?", "26", "47-21=26", True),
        ("How much?", "1200", "$1,200.00", True),
        ("How much?", "1,200", "1200", True),
        ("How much?", "0.5", "1/2", True),
        ("How much?", "3.5", "3 1/2 cups", True),
        ("How much?", "0.3333333333", "1/3", True),
        ("How much?", "0.333", "1/3", False),
        ("How much?", "0", "0.0", True),
        ("How much?", "5", "5.", True),
        ("How much?", "5", "5%", True),
        ("How much?", "2", "H2O", False),
    ],
)
def test_numeric(question: str, gold: str, text: str, right: bool) -> None:
    assert is_correct(asked(gold, kind="numeric", question=question), text) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Yes", True),
        ("yes, it is", True),
        ("It's true.", True),
        ("TRUE", True),
        ("No", False),
        ("No, that isn't true", False),
        ("false", False),
        ("Norway", False),
        ("yesterday", False),
        ("maybe", False),
        ("", False),
    ],
)
def test_boolean(text: str, right: bool) -> None:
    assert is_correct(asked("yes", "true", kind="boolean"), text) is right


def test_boolean_no() -> None:
    assert is_correct(asked("false", kind="boolean"), "No.")
    assert not is_correct(asked("no", kind="boolean"), "Yes, no doubt")


PLACES = ("bank", "library", "department store", "mall")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("b)", "B"),
        ("(b)", "B"),
        ("(B) library", "B"),
        ("B) library", "B"),
        ("B)library", "B"),
        ("B. library", "B"),
        ("B: library", "B"),
        ("B - library", "B"),
        ("B, because one reads there", "B"),
        ("B library", "B"),
        ("[B]", "B"),
        ("**B**", "B"),
        ("**B) library**", "B"),
        ("'B'", "B"),
        ("B\nbecause", "B"),
        ("Answer: B", "B"),
        ("answer: b", "B"),
        ("Answer:\n\nB", "B"),
        ("The answer is B", "B"),
        ("The correct answer is (B).", "B"),
        ("The answer is **B**.", "B"),
        ("The answer is A because of money", "A"),
        ("The answer is option B", "B"),
        ("I would choose option B.", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("A) bank", "A"),
        ("A library", "B"),  # an article
        ("a library", "B"),
        ("Answer: A library", "B"),
        ("A mall is a place to buy", "D"),
        ("The answer is a mall", "D"),
        ("the library.", "B"),
        ("Department Store", "C"),
        ("It is the library, I think", "B"),
        ("bank or mall", None),
        ("A) bank B) library C) department store D) mall", None),
        ("A, B and C", None),
        ("A and B", None),
        ("B or C", None),
        ("Either (A) or (B)", None),
        ("answer A or answer B", None),
        ("The answer is A or B", None),
        ("Answer: B, C", None),
        ("Answer: (A) and (B)", None),
        ("The answer is not B", None),
        ("B) bank", None),  # the letter of one, the text of another
        ("The answer is not A, it is B.", "B"),
        ("B is wrong", None),
        ("B is incorrect. A is correct.", "A"),
        ("A is wrong, B is right", "B"),
        ("Option A is wrong; option B is right.", "B"),
        ("Not A, B", "B"),
        ("Everything but B", None),
        ("neither A nor B", None),
        ("Answer: B (or maybe C)", None),
        ("Answer is A? No, B.", "B"),
        ("\\boxed{B}", "B"),
        ("I choose B", "B"),
        ("I'd go with B.", "B"),
        ("The answer is definitely B.", "B"),
        ("Die Antwort ist B.", "B"),
        ("Respuesta: B", "B"),
        ("答案是B。", "B"),
        ("정답은 B입니다", "B"),
        ("Bです", "B"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER B}", "B"),
        ("E) airport", None),
        ("I think so", None),
        ("Because", None),
        ("libraries", None),
        ("", None),
        ("?", None),
    ],
)
def test_choice(text: str, letter: str | None) -> None:
    named = {gold for gold in "ABCD" if is_correct(asked(gold, kind="choice", choices=PLACES), text)}
    assert named == ({letter} if letter else set())


@pytest.mark.parametrize(
    ("choices", "text", "letter"),
    [
        (("York", "New York"), "It's New York", "B"),
        (("York", "New York"), "York", "A"),
        (("2", "24", "-2"), "24", "B"),
        (("2", "24", "-2"), "-2", "C"),
        (("2", "24", "\N{MINUS SIGN}2"), "It's -2.", "C"),
        (("2.5", "2", "5"), "2.5", "A"),
        (("i", "-i"), "i", "A"),
        (("i", "-i"), "-i", "B"),
        (("B", "A"), "B", "B"),  # a lone letter is the letter
        (("yeast", "mould", "algae", "moss", "E. coli"), "E. coli", "E"),
        (("E. coli", "mould", "algae", "moss", "yeast"), "E. coli.", "A"),
        (("a bank", "the mall"), "Mall", "B"),
    ],
)
def test_choices_that_look_alike(choices: tuple[str, ...], text: str, letter: str) -> None:
    golds = "ABCDE"[: len(choices)]
    assert [gold for gold in golds if is_correct(asked(gold, kind="choice", choices=choices), text)] == [letter]


@given(st.text())
def test_any_text_names_at_most_one_choice(text: str) -> None:
    assert sum(is_correct(asked(gold, kind="choice", choices=PLACES), text) for gold in "ABCD") <= 1


@given(st.text().filter(lambda text: not is_blank(text)))
def test_an_open_gold_answer_is_right_in_its_own_words(text: str) -> None:
    assert is_correct(asked(text), text)
