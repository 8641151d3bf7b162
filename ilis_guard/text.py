"""Text that strangers supply: as JSON, databases and terminals can hold it, and whether there is anything to read."""

import re
import unicodedata
from typing import Final

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
REPLACEMENT: Final = "\ufffd"
"""Stands for what was no character, as decoders put it."""
_INVISIBLE_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Me", "Mn", "Zl", "Zp", "Zs"})
"""Control and format characters (NUL, BOM, zero-width, bidi and tag characters, soft hyphens), half characters, marks
without a letter to stand on (variation selectors, joiners), separators."""
_INVISIBLE: Final = frozenset(
    {
        *("\u115f", "\u1160", "\u3164", "\uffa0"),  # fillers of Hangul, which count as letters
        *("\u2800", "\U0001d159"),  # the braille pattern without a dot, the musical note without a head
        *("\ufffc", REPLACEMENT),  # they stand for something that isn't in the text, or couldn't be read
    }
)


def has_half_characters(text: str) -> bool:
    """Whether a text holds lone surrogates, which no encoding of Unicode can express."""
    return not text.isascii() and _LONE_SURROGATE.search(text) is not None


def whole_characters(text: str) -> str:
    """Replace lone surrogates, which JSON can escape; of a subclass of `str`, return a plain one."""
    plain = str.__str__(text)
    return plain if plain.isascii() else _LONE_SURROGATE.sub(REPLACEMENT, plain)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing, so that it counts as empty: no letter, digit, sign or symbol."""
    return not any(map(_is_visible, set(text)))


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    # A character that Unicode has given away since Python's release may be anything; some never will be given.
    is_given = category != "Cn" or not _is_reserved(ord(character))
    return is_given and category not in _INVISIBLE_CATEGORIES and character not in _INVISIBLE


def _is_reserved(code: int) -> bool:
    """Whether a character is none and never will be, or is to be ignored where it isn't known."""
    is_ignorable = code == 0x2065 or 0xFFF0 <= code <= 0xFFF8 or 0xE0000 <= code <= 0xE0FFF
    return is_ignorable or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
