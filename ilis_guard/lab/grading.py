"""Grade answers: by the question's own gold answers and plain rules of text, or by a callable of the user's own.

The rules are lenient where a person would be (accents, case, articles, a sentence around the answer) and strict
where leniency would pass a wrong answer (word boundaries, several choices named at once).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from string import ascii_lowercase
from typing import Final

from ilis_guard.config.imports import import_string
from ilis_guard.errors import QuestionError
from ilis_guard.lab.assertions import is_alternative, is_asserted, is_denied
from ilis_guard.lab.choices import chosen
from ilis_guard.lab.literals import gives_literal
from ilis_guard.lab.mentions import mentions_of, words_of
from ilis_guard.lab.numerals import Numeral, digits_of, numerals_in, spelt_elsewhere
from ilis_guard.lab.questions import Question, numbers_in
from ilis_guard.lab.truths import truth_of

Judge = Callable[[Question, str], bool]
"""Called with a question and an answer's text; returns whether the answer is right."""
RULES: Final = "rules"
"""What a manifest calls `is_correct`."""

_REFERENCE: Final = re.compile(
    r"[(\[]\s*(?:see|source|cf|ref|page|p\.|step|table|fig|note)\b[^)\]]*[)\]]"
    r"|\b(?:step|table|figure|page|chapter|section|note)\s+\d+(?:\s*:)?",
    re.IGNORECASE,
)
"""Numbers of places, not of what is asked for."""
_OUT_OF: Final = re.compile(r"(\d+) out of \d+(?![\d.,]*\d)", re.IGNORECASE)
_BOUND: Final = re.compile(
    r"(?:\b(?:less|more|fewer|greater|higher|lower) than|\b(?:mehr|weniger) als"
    r"|\b(?:plus|moins|más|menos|più|meno) (?:de|di|do) "
    r"|\b(?:under|below|above)|[<>\N{LESS-THAN OR EQUAL TO}\N{GREATER-THAN OR EQUAL TO}])\s*[$€£]?$",
    re.IGNORECASE,
)
_RANGE: Final = re.compile(r"\s*(?:to|[-\N{EN DASH}\N{EM DASH}]|bis|until|through|à)\s*", re.IGNORECASE)
_NAME_OF_A_NUMBER: Final = "zqnumber"
"""Stands for a number where the words around it are looked at."""


def is_correct(question: Question, text: str) -> bool:
    """Return whether a text answers the question; an empty text doesn't.

    - ``open``: a gold answer stands in the text as whole words, both without accents, case, punctuation and articles,
      and the text says so: it isn't negated, nor one of several that the text offers.
    - ``numeric``: a gold answer equals (within 1e-9, relative) the last number in the text, or the last one that
      doesn't repeat a number of the question: "3 hours are 180 minutes" and "180 minutes in 3 hours" are equal.
      Negated numbers and alternatives don't count.
    - ``boolean``: the text's first truth ("yes", "false", "of course", in many languages) is right, or its opposite is
      negated. A text that says both, or that it doesn't know, says neither.
    - ``choice``: the text is a choice's own; or it announces one letter ("Answer: B") or starts with one ("B", "B)",
      "(b)", "B. bank"); or exactly one choice, or else one letter, stands in it and isn't denied.
    - ``literal``: the text is an equal value (string, list, tuple, set, dictionary) in Python's or JSON's notation, a
      string also without quotes; or the last value in it is, or the last one that doesn't repeat the question.
    """
    match question.kind:
        case "open":
            return _names(question.answers, text)
        case "numeric":
            return _has_number(question, text)
        case "boolean":
            return truth_of(text) is (question.answers[0] in ("yes", "true"))
        case "choice":
            return chosen(question.choices or (), text) == question.right_choice
        case "literal":
            return gives_literal(question.answers, question.question, text)


def load_judge(path: str | None) -> tuple[str, Judge]:
    """Return a judge and its name.

    Args:
        path: ``package.module:function``; None for the rules.

    Raises:
        QuestionError: the path leads to nothing that can be called.
    """
    if path is None:
        return RULES, is_correct
    found = import_string(path, what="judge", kind="function", error=QuestionError)
    if not callable(found):
        raise QuestionError(f"the judge {path!r} is a {type(found).__name__}, which can't be called")
    return path, found


def grade(judge: Judge, question: Question, text: str) -> bool:
    """Return whether a judge finds an answer right.

    Raises:
        QuestionError: the judge failed, or returned neither True nor False; the message names the question, not the
            answer.
    """
    try:
        right = judge(question, text)
    except Exception as error:
        # The judge's own message may quote the answer; it stands in the traceback only.
        raise QuestionError(f"the judge failed at the question {question.id!r}: {type(error).__name__}") from error
    if not isinstance(right, bool):
        raise QuestionError(
            f"the judge must return True or False, got a {type(right).__name__} for the question {question.id!r}"
        )
    return right


def _names(golds: Sequence[str], text: str) -> bool:
    """Whether a text gives one of the gold answers as its own."""
    phrases = {words_of(gold) for gold in golds}
    given = words_of(text)
    if given in phrases or any(
        "".join(given) == "".join(phrase) for phrase in phrases if "".join(phrase)[:1].isalpha()
    ):
        return True
    return any(is_asserted(mention, phrases.__contains__) for gold in golds for mention in mentions_of(gold, text))


def _has_number(question: Question, text: str) -> bool:
    given = _asserted_numerals(text)
    repeated = set(numbers_in(question.question))
    values = [float(numeral.value) for numeral in given]
    candidates = values[-1:] + [value for value in values if value not in repeated][-1:]
    candidates += [float(numeral.value / 100) for numeral in given[-1:] if numeral.is_percent]
    golds = [
        float(number)
        for answer in question.answers
        for numeral in numerals_in(digits_of(answer))
        for number in ([numeral.value, numeral.value / 100] if numeral.is_percent else [numeral.value])
    ]
    return any(math.isclose(number, gold, rel_tol=1e-9) for number in candidates for gold in golds)


def _asserted_numerals(text: str) -> list[Numeral]:
    """The numbers of a text but for those that it denies or offers beside others."""
    digits = _OUT_OF.sub(r"\1", _REFERENCE.sub(" ", digits_of(text)))
    numerals = list(numerals_in(digits))
    if not numerals:
        digits = spelt_elsewhere(digits)
        numerals = list(numerals_in(digits))
    bounds = set(_bounds(digits, numerals))
    pieces, end = [], 0
    for place, numeral in enumerate(numerals):
        pieces += [digits[end : numeral.start], f" {_NAME_OF_A_NUMBER}{_letters(place)} "]
        end = numeral.end
    named = "".join([*pieces, digits[end:]])
    if not any(character.isalpha() for character in digits):
        return [numeral for place, numeral in enumerate(numerals) if place not in bounds]
    return [
        numeral
        for place, numeral in enumerate(numerals)
        if place not in bounds
        and not all(
            is_denied(mention) or is_alternative(mention, lambda _: False)
            for mention in mentions_of(f"{_NAME_OF_A_NUMBER}{_letters(place)}", named)
        )
    ]


def _bounds(digits: str, numerals: Sequence[Numeral]) -> Iterator[int]:
    """Places of the numbers that only limit what is asked for: of a range, or after "more than"."""
    for place, numeral in enumerate(numerals):
        if _BOUND.search(digits[: numeral.start]):
            yield place
        if place + 1 == len(numerals):
            break
        other = numerals[place + 1]
        is_sum = digits[other.end :].lstrip().startswith("=")
        if _RANGE.fullmatch(digits[numeral.end : other.start]) and numeral.value < other.value and not is_sum:
            yield from (place, place + 1)


def _letters(number: int) -> str:
    return "".join(ascii_lowercase[int(digit)] for digit in str(number))
