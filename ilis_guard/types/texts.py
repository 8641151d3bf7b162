"""Texts: whether there is anything in them to read."""

import unicodedata
from typing import Final

_INVISIBLE_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Me", "Mn", "Zl", "Zp", "Zs"})
"""Control and format characters (NUL, BOM, zero-width, bidi and tag characters, soft hyphens), half characters, marks
without a letter to stand on (variation selectors, joiners), separators."""
_INVISIBLE: Final = frozenset(
    {
        *("\u115f", "\u1160", "\u3164", "\uffa0"),  # fillers of Hangul, which count as letters
        *("\u2800", "\U0001d159"),  # the braille pattern without a dot, the musical note without a head
        *("\ufffc", "\ufffd"),  # they stand for something that isn't in the text, or couldn't be read
    }
)


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
