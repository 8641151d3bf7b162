"""Grade answers: by the question's own gold answers and plain rules of text, or by a callable of the user's own.

The rules are lenient where a person would be (accents, case, articles, a sentence around the answer) and strict
where leniency would pass a wrong answer (word boundaries, several choices named at once).
"""

import math
import re
from collections.abc import Callable, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Final

from ilis_guard.config.imports import import_string
from ilis_guard.errors import QuestionError
from ilis_guard.lab.assertions import is_alternative, is_asserted, is_denied
from ilis_guard.lab.mentions import Mention, contains, mentions_of, tokens_of, words_of
from ilis_guard.lab.numerals import Numeral, digits_of, numerals_in
from ilis_guard.lab.questions import Question, numbers_in

Judge = Callable[[Question, str], bool]
"""Called with a question and an answer's text; returns whether the answer is right."""
RULES: Final = "rules"
"""What a manifest calls `is_correct`."""

_YES: Final = frozenset("yes yep yeah yup true ja oui si sim evet да نعم हाँ हां はい 是 是的 对 對 예 네 ใช่".split())
_NO: Final = frozenset("no nope nah false nein non nao nee hayir нет لا नहीं いいえ 否 不是 不 아니요 아니오 ไม่".split())
"""At an answer's beginning; elsewhere only the English ones are truths."""
_TRUTHS: Final = {"yes": True, "true": True, "correct": True, "no": False, "false": False, "incorrect": False}

_NAME_OF_A_NUMBER: Final = "zqnumber"
"""Stands for a number where the words around it are looked at."""

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

    - ``open``: a gold answer stands in the text as whole words, both without accents, case, punctuation and articles,
      and the text says so: it isn't negated, nor one of several that the text offers.
    - ``numeric``: a gold answer equals (within 1e-9, relative) the last number in the text, or the last one that
      doesn't repeat a number of the question: "3 hours are 180 minutes" and "180 minutes in 3 hours" are equal.
      Negated numbers and alternatives don't count.
    - ``boolean``: the first "yes", "true", "no" or "false" in the text is right, or its opposite is negated.
    - ``choice``: the text is a choice's own; or it announces one letter ("Answer: B") or starts with one ("B", "B)",
      "(b)", "B. bank"); or, without a letter, exactly one choice stands in it as whole words.
    """
    match question.kind:
        case "open":
            return _names(question.answers, text)
        case "numeric":
            return _has_number(question, text)
        case "boolean":
            return _truth(text) is (question.answers[0] in ("yes", "true"))
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
    golds = [number for answer in question.answers for number in numbers_in(answer)]
    return any(math.isclose(number, gold, rel_tol=1e-9) for number in candidates for gold in golds)


def _asserted_numerals(text: str) -> list[Numeral]:
    """The numbers of a text but for those that it denies or offers beside others."""
    digits = digits_of(text)
    numerals = list(numerals_in(digits))
    pieces, end = [], 0
    for place, numeral in enumerate(numerals):
        pieces += [digits[end : numeral.start], f" {_NAME_OF_A_NUMBER}{_letters(place)} "]
        end = numeral.end
    named = "".join([*pieces, digits[end:]])
    if not any(character.isalpha() for character in digits):
        return numerals
    return [
        numeral
        for place, numeral in enumerate(numerals)
        if not all(
            is_denied(mention) or is_alternative(mention, lambda _: False)
            for mention in mentions_of(f"{_NAME_OF_A_NUMBER}{_letters(place)}", named)
        )
    ]


def _letters(number: int) -> str:
    return "".join(ascii_lowercase[int(digit)] for digit in str(number))


def _truth(text: str) -> bool | None:
    """What a text says to a question of yes or no; None where it says neither, or both."""
    tokens = tokens_of(text)
    words = [token.text for token in tokens if token.is_word]
    if not words:
        return None
    if words[:3] in (["yes", "and", "no"], ["yes", "or", "no"], ["true", "or", "false"]):
        return None
    if words[0] in _YES or words[0] in _NO:
        is_no_noun = words[0] == "no" and len(tokens) > 1 and tokens[1].is_word
        if not is_no_noun:
            return words[0] in _YES
    for place, token in enumerate(tokens):
        if not token.is_word or token.text not in _TRUTHS:
            continue
        if token.text == "no" and place + 1 < len(tokens) and tokens[place + 1].is_word:
            continue  # "no evidence"
        mention = Mention(tokens, place, place)
        return _TRUTHS[token.text] is not is_denied(mention)
    return False if words[0] in ("no", "not") else None


def _choice(choices: tuple[str, ...], text: str) -> int | None:
    """Return the index of the choice that the text names; None where it names none or several."""
    letters = ascii_uppercase[: len(choices)]
    given, texts = words_of(text), [words_of(choice) for choice in choices]
    # A choice's own text goes before the letters, so that "E. coli" isn't choice E; a lone letter is one.
    if text.strip() in choices and text.strip() not in letters:
        return choices.index(text.strip())
    if texts.count(given) == 1 and len("".join(given)) > 1:
        return texts.index(given)
    letter = _letter(text)
    if letter is not None and letter in letters:
        return letters.index(letter)
    found = [
        words
        for words, choice in zip(texts, choices, strict=True)
        if any(not is_denied(mention) for mention in mentions_of(choice, text))
    ]
    # "New York" isn't "York" too.
    widest = [choice for choice in found if not any(choice != other and contains(choice, other) for other in found)]
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
