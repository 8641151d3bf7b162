"""Text that strangers supply, as JSON, databases and terminals can hold it."""

import re
from typing import Final

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
REPLACEMENT: Final = "\ufffd"
"""Stands for what was no character, as decoders put it."""


def has_half_characters(text: str) -> bool:
    """Whether a text holds lone surrogates, which no encoding of Unicode can express."""
    return not text.isascii() and _LONE_SURROGATE.search(text) is not None


def whole_characters(text: str) -> str:
    """Replace lone surrogates, which JSON can escape; of a subclass of `str`, return a plain one."""
    plain = str.__str__(text)
    return plain if plain.isascii() else _LONE_SURROGATE.sub(REPLACEMENT, plain)
