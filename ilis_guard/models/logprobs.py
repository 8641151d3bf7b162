"""Log-probabilities of a remote answer: those of the tokens that spell its text, and of no others."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from ilis_guard.types.thinking import find_answer

_CONTROL_TOKEN: Final = re.compile(rb"(?:<[|/]?[^<>\s]{1,40}>|\[[/A-Z_]{1,20}\]|\s)*")
"""What may come after an answer: servers differ in whether they list its end-of-sequence token."""


def logprobs_of_answer(logprobs: object, answer: str) -> dict[str, Any] | None:
    """Take the entries of an answer's tokens out of those of all tokens.

    Args:
        logprobs: in the format of OpenAI's chat completions; from a message's metadata, of any shape.
        answer: without its thinking.

    Returns:
        None where the tokens, joined, don't spell the answer, after thinking that may precede it.
    """
    entries = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not answer:
        return None
    spelled = [_bytes(entry) for entry in entries]
    pieces = [each for each in spelled if each is not None]
    if len(pieces) < len(spelled):
        return None
    for count in _counts(pieces):
        if (first := _first_token(pieces[:count], answer)) is not None:
            return {"content": list(entries[first:count])}
    return None


def _counts(pieces: Sequence[bytes]) -> Sequence[int]:
    """How many tokens may spell an answer: those before control tokens at the end, or all."""
    count = len(pieces)
    while count and pieces[count - 1].strip() and _CONTROL_TOKEN.fullmatch(pieces[count - 1]):
        count -= 1
    return [len(pieces)] if count == len(pieces) else [count, len(pieces)]


def _first_token(pieces: Sequence[bytes], answer: str) -> int | None:
    """The place of the first token of an answer; None where they spell another text."""
    try:
        text = b"".join(pieces).decode()
    except UnicodeDecodeError:
        return None
    part = find_answer(text)
    if part.of(text) != answer:
        return None
    if not part.has_thinking:
        return 0
    start = len(text[: part.start].encode())
    return next(place for place, end in enumerate(accumulate(map(len, pieces))) if end > start)


def _bytes(entry: object) -> bytes | None:
    """What a token spells: its bytes, where the server gives them, since a token may be part of a character."""
    if not isinstance(entry, Mapping):
        return None
    listed, token = entry.get("bytes"), entry.get("token")
    if isinstance(listed, list) and all(type(each) is int and 0 <= each < 256 for each in listed):
        return bytes(listed)
    return token.encode(errors="replace") if isinstance(token, str) else None
