"""Which of several lettered choices an answer gives."""

import re
import unicodedata
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Final

from ilis_guard.lab.assertions import is_denied, is_taken_back
from ilis_guard.lab.mentions import contains, mentions_of, words_of

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
_LETTER: Final = re.compile(
    r"(?<![A-Za-z0-9_'\N{RIGHT SINGLE QUOTATION MARK}.])([A-Z])(?![A-Za-z0-9_'\N{RIGHT SINGLE QUOTATION MARK}]|\.\w|\+)"
)
"""A letter that stands alone, also beside words of scripts that don't part them: ``答案是B``."""
_ARTICLE_OR_PRONOUN: Final = re.compile(r"(?:A|I)\s+(?!(?:is|or|and|isn|was|because|but|not)\b)\w")
_ALTERNATIVES: Final = re.compile(
    r"([A-Z])\)?[\s,(*]*(?:/|&|\b(?i:or|and|oder|und|ou|et|o|y|e|или|и|veya)\b|或|和|か|と|また는|또는)\s*"
    r"(?:(?i:maybe|perhaps|possibly|even|option|choice)\s+)?\(?([A-Z])(?![A-Za-z0-9_])"
)
_CLOSED: Final = re.compile(r"\W*[A-Za-z][).:\]]\W*(?P<text>[^\n]+)")
_MARK: Final = "zqletter"
_MOST_LETTERS: Final = 50
_MOST_WORDS: Final = 25
"""In a longer text a letter may be anything."""


def chosen(choices: tuple[str, ...], text: str) -> int | None:
    """Return the index of the choice that the text gives; None where it gives none or several."""
    letters = ascii_uppercase[: len(choices)]
    given, texts = words_of(text), [words_of(choice) for choice in choices]
    # A choice's own text goes before the letters, so that "E. coli" isn't choice E; a lone letter is one.
    if text.strip() in choices and text.strip() not in letters:
        return choices.index(text.strip())
    if texts.count(given) == 1 and len("".join(given)) > 1:
        return texts.index(given)
    plain = unicodedata.normalize("NFKC", text)
    asserted, denied = _letters(plain)
    letter = _letter(plain, denied)
    if letter is not None and letter in letters:
        place = letters.index(letter)
        return None if _is_beside_another(plain, place, texts) else place
    found = [
        words
        for words, choice in zip(texts, choices, strict=True)
        if any(not is_denied(mention) for mention in mentions_of(choice, text))
    ]
    # "New York" isn't "York" too.
    widest = [choice for choice in found if not any(choice != other and contains(choice, other) for other in found)]
    if widest or len(given) > _MOST_WORDS:
        return texts.index(widest[0]) if len(widest) == 1 else None
    only = "".join(asserted)
    return letters.index(only) if len(only) == 1 and only in letters else None


def _letter(text: str, denied: frozenset[str]) -> str | None:
    """Return the letter that a text announces or starts with; None where there is none or several are offered."""
    announced = {letter.upper() for match in _ANNOUNCED.finditer(text) for letter in match.groups() if letter} - denied
    offered = {frozenset(match.groups()) for match in _ALTERNATIVES.finditer(text)}
    if announced:
        letter = announced.pop()
        return None if announced or any(letter in pair for pair in offered if not pair & denied) else letter
    listed = {letter for match in _LISTED.finditer(text) for letter in match.groups() if letter}
    leading = _LEADING.match(text)
    if leading is None or len(listed) > 1:
        return None
    letter = next(letter.upper() for letter in leading.groups() if letter)
    return None if letter in denied else letter


def _letters(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """The letters that a text gives, and those that it only denies."""
    found = [match for match in _LETTER.finditer(text) if not _ARTICLE_OR_PRONOUN.match(text, match.start())]
    pieces, end = [], 0
    for number, match in enumerate(found[:_MOST_LETTERS]):
        pieces += [text[end : match.start()], f" {_mark(number)} "]
        end = match.end()
    marked = "".join([*pieces, text[end:]])
    asserted = {
        match[1]
        for number, match in enumerate(found[:_MOST_LETTERS])
        if not any(is_denied(mention) or is_taken_back(mention) for mention in mentions_of(_mark(number), marked))
    }
    return frozenset(asserted), frozenset(match[1] for match in found) - asserted


def _mark(number: int) -> str:
    """A word for a letter, that no text has."""
    return _MARK + "".join(ascii_lowercase[int(digit)] for digit in str(number))


def _is_beside_another(text: str, place: int, texts: Sequence[tuple[str, ...]]) -> bool:
    """Whether a letter stands before the text of another choice: ``B) Paris`` where B is London."""
    if (match := _CLOSED.match(text)) is None:
        return False
    beside = words_of(match["text"])
    return beside in texts and texts.index(beside) != place
