"""Whether words stand in a text, without accents, case, punctuation and articles.

It says which questions a set leaves out, so it stays as it is: another rule would make other sets than those that the
committed figures were measured on. How answers are graded is another matter (`ilis_guard.lab.grading`).
"""

import re
import unicodedata

_APOSTROPHE = "['\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}]"
_POSSESSIVE = re.compile(rf"(?<=\w){_APOSTROPHE}s\b")
_INNER_APOSTROPHE = re.compile(rf"(?<=\w){_APOSTROPHE}(?=\w)")
_POINT_OF_INITIALS = re.compile(r"(?<=\b[^\W\d_])\.(?=[^\W\d_]\b)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_ARTICLE = re.compile(r"(?:\b(?i:an|the)|\ba|(?:^|(?<=[.!?:]\s))A)(?=\s+\W*\w)")
_PUNCTUATION = re.compile(r"(?!(?<=\d)\.\d|(?<!\w)-\d)[\W_]")


def stands_in(words: str, text: str) -> bool:
    """Whether words stand in a text, whole."""
    return f" {_normalised(words)} " in f" {_normalised(text)} "


def _normalised(text: str) -> str:
    """Reduce a text to words, without accents, case, punctuation and articles, unless it holds nothing else."""
    text = text.replace("\N{MINUS SIGN}", "-")
    plain = "".join(mark for mark in unicodedata.normalize("NFKD", text) if not unicodedata.combining(mark))
    plain = _INNER_APOSTROPHE.sub("", _POSSESSIVE.sub("", plain))
    plain = _THOUSANDS.sub("", _POINT_OF_INITIALS.sub("", plain))
    return _words(_ARTICLE.sub(" ", plain)) or _words(plain) or plain.strip().casefold()


def _words(text: str) -> str:
    return " ".join(_PUNCTUATION.sub(" ", text).casefold().split())
