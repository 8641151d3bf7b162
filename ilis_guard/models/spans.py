"""Spans: which generated tokens carry a part of the answer's text."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from os.path import commonprefix

from ilis_guard.errors import ModelError

Offsets = tuple[int, int]
"""Of the first character and of the one after the last, in `Generation.text`."""
Span = Offsets | Callable[[str], Offsets | None]
"""The offsets themselves, or what finds them in a text; None where it finds nothing."""


def offsets(span: Span, text: str) -> Offsets | None:
    """Where a span lies in a text.

    Raises:
        ModelError: it is empty or reaches beyond the text.
    """
    found = span(text) if callable(span) else span
    if found is None:
        return None
    start, end = found
    if not 0 <= start < end <= len(text):
        raise ModelError(
            f"the span ({start!r}, {end!r}) doesn't lie in the answer, which has {len(text)} characters: give offsets "
            "with 0 <= start < end <= length"
        )
    return start, end


def tokens_in(span: Offsets, tokens: Sequence[int], text_of: Callable[[Sequence[int]], str]) -> list[int]:
    """Places of the tokens that carry at least one character of the span.

    Args:
        span: in the text of all tokens.
        tokens: an answer's token ids.
        text_of: an answer's text, as it comes out of the model.
    """
    start, end = span
    whole = text_of(tokens)
    reached = [_common(text_of(tokens[:count]), whole) for count in range(len(tokens) + 1)]
    # A token that brought no whole character carries part of the next one; behind the text's end, of none.
    return [
        place
        for place, (before, after) in enumerate(pairwise(reached))
        if before < end and start < max(after, before + 1) and before < len(whole)
    ]


def _common(prefix: str, whole: str) -> int:
    """Length of what two texts begin with in common."""
    return len(commonprefix([prefix, whole]))  # noqa: RUF071 - character by character is what is wanted
