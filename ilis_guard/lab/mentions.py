"""Where an answer names something: the words of a text, folded as a reader would, and the places of a phrase in it."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
from typing import Final

from ilis_guard.lab.numerals import digits_of, numerals_in
from ilis_guard.lab.scripts import parts_around

APOSTROPHES: Final = "['`\N{ACUTE ACCENT}\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}]"
_POSSESSIVE: Final = re.compile(rf"(?<=\w){APOSTROPHES}s\b")
_ELIDED: Final = re.compile(
    rf"\b(?:[ldjmnstc]|qu|jusqu|lorsqu|dell|nell|all|sull|dall){APOSTROPHES}(?=\w)", re.IGNORECASE
)
_INNER_APOSTROPHE: Final = re.compile(rf"(?<=\w){APOSTROPHES}(?=\w)")
_POINT_OF_INITIALS: Final = re.compile(r"(?<=\b[^\W\d_])\.(?=[^\W\d_]\b)")
_ARTICLE: Final = re.compile(r"(?:\b(?i:an|the)|\ba|(?:^|(?<=[.!?:]\s))A)(?=\s+\W*\w)")
"""A word that another word follows. Inside a sentence a capital "A" is a name: "vitamin A is"."""
_TURKISH_SUFFIX: Final = re.compile(
    rf"(?<=\w\w\w){APOSTROPHES}(?=(?:[dt][ıiuü]r|[dt][ae]n?|n?[ıiuü]n|y?[ıiuü]|[ny]?[ae]|l[ıiuü])\b)", re.IGNORECASE
)
_SEPARATED_NAME: Final = re.compile(r"(?<=[\u30a0-\u30ff])[\N{KATAKANA MIDDLE DOT}=](?=[\u30a0-\u30ff])")
_UNITS: Final = {
    "km": "kilometers kilometres kilometer kilometre",
    "m": "meters metres meter metre",
    "cm": "centimeters centimetres centimeter centimetre",
    "mm": "millimeters millimetres millimeter millimetre",
    "kg": "kilograms kilogrammes kilogram kilogramme kilos",
    "g": "grams grammes gram gramme",
    "l": "liters litres liter litre",
    "h": "hours hour",
    "min": "minutes minute",
    "s": "seconds second",
}
_UNIT_OF: Final = {word: unit for unit, words in _UNITS.items() for word in words.split()}
_ORDINALS: Final = {
    word: f"{number}{'st' if number == 1 else 'nd' if number == 2 else 'rd' if number == 3 else 'th'}"
    for number, word in enumerate("first second third fourth fifth sixth seventh eighth ninth tenth".split(), start=1)
}
_ROMAN: Final = {
    numeral: number
    for number, numeral in enumerate(
        "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX XXI".split(),
        start=1,
    )
    if len(numeral) > 1
}
_AND: Final = re.compile(
    rf"\s?&\s?|\s{APOSTROPHES}n{APOSTROPHES}?\s|\s(?:as well as|als auch|ainsi que|así como)\s"
    r"|(?<=[^\W\d_])\s\+\s(?=[^\W\d_])"
)
_OR: Final = re.compile(r"\s(?:ya da|or else)\s")
_APART: Final = re.compile(rf"(?<=\w)\s(?=n{APOSTROPHES}t\b)")
"""Some tokenizers part "isn't" there."""
_PLAIN_LETTERS: Final = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th"}
)
_UMLAUT: Final = re.compile(r"[äöü]", re.IGNORECASE)
_UMLAUTS: Final = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
_MOST_MENTIONS: Final = 50
"""In an answer that repeats itself, the first ones."""
_LINE: Final = "\n"
_SIGNS: Final = "+#"
"""Part of a name where they end a word: C++, F#."""


@dataclass(frozen=True, slots=True)
class Token:
    """A word of a text, or a punctuation mark between words."""

    text: str
    is_word: bool
    is_capital: bool = False
    """Whether it was written with a capital letter."""


@dataclass(frozen=True, slots=True)
class Mention:
    """Where a phrase stands in a text: its tokens, and the first and the last that belong to it."""

    tokens: tuple[Token, ...]
    first: int
    last: int


@lru_cache(maxsize=4096)
def tokens_of(text: str, *, umlauts: bool = False, elisions: bool = False) -> tuple[Token, ...]:
    """Return a text's words and marks, without case, accents, articles, and other ways to write the same number.

    Accents are left out where they are additions to letters (Latin, Greek), and kept where they make others: voicing
    marks, vowel signs, tone marks.

    Args:
        text: an answer.
        umlauts: write ä, ö and ü with an e.
        elisions: drop the "l'" of "l'Allemagne".
    """
    plain = _readable(text)
    whole = _without_affixes(_ELIDED.sub("", plain) if elisions else plain)
    folded = _ARTICLE.sub(
        " ", _SEPARATED_NAME.sub("", _INNER_APOSTROPHE.sub("", _OR.sub(" or ", _AND.sub(" and ", whole))))
    )
    tokens = _split(folded, umlauts=umlauts)
    return tuple(tokens if any(token.is_word for token in tokens) else _split(plain, umlauts=umlauts))


@lru_cache(maxsize=4096)
def words_of(text: str, *, umlauts: bool = False, elisions: bool = False) -> tuple[str, ...]:
    """As `tokens_of`, the words alone; of a text without words, its marks."""
    tokens = tokens_of(text, umlauts=umlauts, elisions=elisions)
    words = tuple(token.text for token in tokens if token.is_word)
    return words or tuple(token.text for token in tokens)


def mentions_of(gold: str, text: str) -> list[Mention]:
    """Find a phrase in a text, as whole words."""
    both = gold + text
    for umlauts, elisions in ((False, False), (False, True), (True, False)):
        if (elisions and not _ELIDED.search(both)) or (umlauts and not _UMLAUT.search(both)):
            continue
        found = _mentions(
            words_of(gold, umlauts=umlauts, elisions=elisions), tokens_of(text, umlauts=umlauts, elisions=elisions)
        )
        if found:
            return found
    return []


def contains(phrase: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether words stand in others, in their order and side by side."""
    size = len(phrase)
    return any(tuple(words[start : start + size]) == tuple(phrase) for start in range(len(words) - size + 1))


def _mentions(phrase: tuple[str, ...], tokens: tuple[Token, ...]) -> list[Mention]:
    if any(all(word not in token.text for token in tokens) for word in phrase):
        return []
    if not any(character.isalnum() for word in phrase for character in word):
        return [Mention(tokens, 0, len(tokens) - 1)] if tuple(token.text for token in tokens) == phrase else []
    parts = tuple(
        replace(token, text=part)
        for token in tokens
        for part in (parts_around(phrase[0], phrase[-1], token.text) if token.is_word else [token.text])
    )
    places = [place for place, token in enumerate(parts) if token.is_word]
    size = len(phrase)
    found = (
        Mention(parts, places[start], places[start + size - 1])
        for start in range(len(places) - size + 1)
        if all(parts[places[start + offset]].text == word for offset, word in enumerate(phrase))
    )
    return list(islice(found, _MOST_MENTIONS))


def _readable(text: str) -> str:
    """Compose, drop what isn't seen, and write numbers in one way."""
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    text = _APART.sub("", text.replace("\N{ACUTE ACCENT}", "'"))
    text = unicodedata.normalize("NFC", digits_of(text.replace("**", "").replace("__", "")))
    text = unicodedata.normalize("NFKC", text)
    pieces, end = [], 0
    for numeral in numerals_in(text):
        as_written = text[numeral.start : numeral.end]
        value = as_written if re.fullmatch(r"0\d+", as_written) else numeral.text + " percent" * numeral.is_percent
        pieces += [text[end : numeral.start], value, " " * _is_unit(text, numeral.end)]
        end = numeral.end
    return "".join([*pieces, text[end:]])


def _is_unit(text: str, place: int) -> bool:
    """Whether a unit or a counter stands right behind a number."""
    following = re.match(r"[^\W\d_]+", text[place:])
    if following is None:
        return False
    word = following.group()
    return (word in _UNITS and word != "s") or word in ("km", "mg", "ft", "lb", "oz") or ord(word[0]) >= 0x0E00


def _without_affixes(text: str) -> str:
    """Drop what hangs on a word by an apostrophe, and the points of initials."""
    return _POINT_OF_INITIALS.sub("", _TURKISH_SUFFIX.sub(" ", _POSSESSIVE.sub("", text)))


def _split(text: str, *, umlauts: bool) -> list[Token]:
    tokens: list[Token] = []
    for piece in re.split(r"((?<!\w)-?\d+(?:\.\d+|/\d+)?(?!\w|\.\d))", text):
        if re.fullmatch(r"-?\d+(?:\.\d+|/\d+)?", piece):
            tokens.append(Token(piece, is_word=True))
            continue
        for is_word, group in groupby(piece, key=_is_letter):
            run = "".join(group)
            if is_word:
                word = str(_ROMAN[run]) if run in _ROMAN else fold(run, umlauts=umlauts)
                tokens.append(Token(word, is_word=True, is_capital=run[0].isupper()))
                continue
            signs = re.match(rf"[{_SIGNS}]+(?=[\s.,;!?]|$)", run)
            if signs and tokens and tokens[-1].is_word and tokens[-1].text[-1:].isalpha() and len(tokens[-1].text) < 3:
                tokens[-1] = replace(tokens[-1], text=tokens[-1].text + signs.group())
                run = run[signs.end() :]
            tokens += [Token(mark, is_word=False) for mark in run if mark == _LINE or not mark.isspace()]
    return [_same_word(tokens, place) for place in range(len(tokens))]


def _same_word(tokens: Sequence[Token], place: int) -> Token:
    token = tokens[place]
    if place and tokens[place - 1].text[-1:].isdigit() and token.text in _UNIT_OF:
        return replace(token, text=_UNIT_OF[token.text])
    if place and token.text == "cent" and tokens[place - 1].text == "per":
        return replace(token, text="percent")
    return replace(token, text=_ORDINALS.get(token.text, token.text))


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def fold(word: str, *, umlauts: bool = False) -> str:
    """Leave out case, and accents where they don't make another letter."""
    word = unicodedata.normalize("NFC", word.casefold())
    if umlauts:
        word = word.translate(_UMLAUTS)
    kept, base = [], ""
    for character in unicodedata.normalize("NFD", word):
        if unicodedata.category(character) != "Mn":
            base = unicodedata.name(character, "").split(" ")[0]
            kept.append(character)
        elif not _is_accent(base, character, kept[-1] if kept else ""):
            kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept)).translate(_PLAIN_LETTERS)


def _is_accent(script: str, mark: str, letter: str) -> bool:
    if script == "CYRILLIC":  # Russian often leaves out the diaeresis, and marks stress for learners only
        return mark in "\N{COMBINING ACUTE ACCENT}\N{COMBINING GRAVE ACCENT}" or (mark, letter) == ("\u0308", "е")
    return script in ("LATIN", "GREEK", "ARABIC", "HEBREW")
