"""Grade answers: by the question's own gold answers and plain rules of text, or by a callable of the user's own.

The rules are lenient where a person would be (accents, case, articles, a sentence around the answer) and strict
where leniency would pass a wrong answer (word boundaries, several choices named at once).
"""

import math
import re
import unicodedata
from collections.abc import Callable
from string import ascii_uppercase
from typing import Final

from ilis_guard.config.imports import import_string
from ilis_guard.errors import QuestionError
from ilis_guard.lab.questions import Question, numbers_in

Judge = Callable[[Question, str], bool]
"""Called with a question and an answer's text; returns whether the answer is right."""
RULES: Final = "rules"
"""What a manifest calls `is_correct`."""

_TRUTH = re.compile(r"\b(?:yes|true|no|false)\b", re.IGNORECASE)

_APOSTROPHE = "['\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}]"
_POSSESSIVE = re.compile(rf"(?<=\w){_APOSTROPHE}s\b")
_INNER_APOSTROPHE = re.compile(rf"(?<=\w){_APOSTROPHE}(?=\w)")
_POINT_OF_INITIALS = re.compile(r"(?<=\b[^\W\d_])\.(?=[^\W\d_]\b)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_ARTICLE = re.compile(r"(?:\b(?i:an|the)|\ba|(?:^|(?<=[.!?:]\s))A)(?=\s+\W*\w)")
"""A word that another word follows. Inside a sentence a capital "A" is a name: "vitamin A is"."""
_PUNCTUATION = re.compile(r"(?!(?<=\d)\.\d|(?<!\w)-\d)[\W_]")
"""All but what belongs to a number: the point of 2.5 and the sign of -3."""

_ANNOUNCED = re.compile(
    r"""
    \b(?i:answer|option|choice)\b
    (?:\s+(?i:is)\b\W*(?P<named>[A-Z])   # the answer is (B)
      |\W*(?P<given>[B-Z]|A(?!\s+(?!or\b|and\b)\w)))   # Answer: B; but in "Answer: A bank" it may be an article
    (?![\w'])
    (?![\s)*]*(?:,|/|,?\s*\b(?:or|and)\b)\s*\(?[A-Z]\b)   # not several: A or B
    |\b(?i:answer|option|choice)\b(?:\s+(?i:is)\b)?\W*(?P<small>[a-z])(?=[).:,]|\W*$)
    """,
    re.VERBOSE,
)
_LEADING = re.compile(
    r"""
    \W*
    (?:(?P<closed>[A-Za-z])[)\]:]              # B) bank, (b) bank, [B], b: bank
      |(?P<alone>[A-Za-z])[^\w\n]*(?:\n|$)     # nothing else on the line: b, B., **B**
      |(?P<stopped>[A-Z])(?:[.;]|,(?!\s+(?:(?:and|or)\s+)?[A-Z]\b)|\s*[-\N{EN DASH}])\s   # B. bank; not A, B and C
      |(?P<bare>[B-HJ-Z])\s+(?!and\b|or\b)\w   # B bank; "A bank" and "I think" are words
    )
    """,
    re.VERBOSE,
)
_LISTED = re.compile(r"(?<![^\W_])([A-Z])[).:](?!\w)|\(([A-Z])\)")


def is_correct(question: Question, text: str) -> bool:
    """Return whether a text answers the question; an empty text doesn't.

    - ``open``: a gold answer stands in the text as whole words, both without accents, case, punctuation and articles.
    - ``numeric``: a gold answer equals (within 1e-9, relative) the last number in the text, or the last one that
      doesn't repeat a number of the question: "3 hours are 180 minutes" and "180 minutes in 3 hours" are equal.
    - ``boolean``: the first "yes", "true", "no" or "false" in the text is right.
    - ``choice``: the text is a choice's own; or it announces one letter ("Answer: B") or starts with one ("B", "B)",
      "(b)", "B. bank"); or, without a letter, exactly one choice stands in it as whole words.
    """
    match question.kind:
        case "open":
            given = _normalised(text)
            return any(_contains(_normalised(answer), given) for answer in question.answers)
        case "numeric":
            return _has_number(question, text)
        case "boolean":
            truth = _TRUTH.search(text)
            return truth is not None and (truth.group().lower() in ("yes", "true")) == (
                question.answers[0] in ("yes", "true")
            )
        case "choice":
            return _choice(question.choices or (), text) == question.right_choice


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


def _has_number(question: Question, text: str) -> bool:
    given = numbers_in(text)
    repeated = set(numbers_in(question.question))
    candidates = given[-1:] + [number for number in given if number not in repeated][-1:]
    golds = [number for answer in question.answers for number in numbers_in(answer)]
    return any(math.isclose(number, gold, rel_tol=1e-9) for number in candidates for gold in golds)


def _choice(choices: tuple[str, ...], text: str) -> int | None:
    """Return the index of the choice that the text names; None where it names none or several."""
    letters = ascii_uppercase[: len(choices)]
    given, texts = _normalised(text), [_normalised(choice) for choice in choices]
    # A choice's own text goes before the letters, so that "E. coli" isn't choice E; a lone letter is one.
    if text.strip() in choices and text.strip() not in letters:
        return choices.index(text.strip())
    if texts.count(given) == 1 and len(given) > 1:
        return texts.index(given)
    letter = _letter(text)
    if letter is not None and letter in letters:
        return letters.index(letter)
    found = [choice for choice in texts if _contains(choice, given)]
    # "New York" isn't "York" too.
    widest = [choice for choice in found if not any(choice != other and _contains(choice, other) for other in found)]
    return texts.index(widest[0]) if len(widest) == 1 else None


def _letter(text: str) -> str | None:
    """Return the letter that a text announces or starts with; None where there is none or several are offered."""
    announced = {letter.upper() for match in _ANNOUNCED.finditer(text) for letter in match.groups() if letter}
    if announced:
        return announced.pop() if len(announced) == 1 else None
    listed = {letter for match in _LISTED.finditer(text) for letter in match.groups() if letter}
    leading = _LEADING.match(text)
    if leading is None or len(listed) > 1:
        return None
    return next(letter.upper() for letter in leading.groups() if letter)


def _contains(words: str, given: str) -> bool:
    return f" {words} " in f" {given} "


def _normalised(text: str) -> str:
    """Reduce a text to words, without accents, case, punctuation and articles, unless it holds nothing else."""
    text = text.replace("\N{MINUS SIGN}", "-")
    plain = "".join(mark for mark in unicodedata.normalize("NFKD", text) if not unicodedata.combining(mark))
    plain = _INNER_APOSTROPHE.sub("", _POSSESSIVE.sub("", plain))
    plain = _THOUSANDS.sub("", _POINT_OF_INITIALS.sub("", plain))
    return _words(_ARTICLE.sub(" ", plain)) or _words(plain) or plain.strip().casefold()


def _words(text: str) -> str:
    return " ".join(_PUNCTUATION.sub(" ", text).casefold().split())
