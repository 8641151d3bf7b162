"""The text of an answer: where stop sequences cut it, which tokens carry a part of it, and what each step adds."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from os.path import commonprefix

from ilis_guard.errors import ModelError
from ilis_guard.types import Generation, Step

Offsets = tuple[int, int]
"""Of the first character and of the one after the last, in `Generation.text`."""
Span = Offsets | Callable[[str], Offsets | None]
"""Offsets, or a function that finds them in a text and returns None where it finds none."""


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """Cut a text before its first stop sequence; None where it has none."""
    places = [place for sequence in stop if (place := text.find(sequence)) >= 0]
    return text[: min(places)] if places else None


def without_partial_stop(text: str, stop: Sequence[str]) -> str:
    """Cut off the longest end of a text with which a stop sequence begins."""
    begun = [
        length
        for sequence in stop
        for length in range(1, min(len(sequence), len(text) + 1))
        if text.endswith(sequence[:length])
    ]
    return text[: len(text) - max(begun, default=0)]


def find_span(span: Span, text: str) -> Offsets | None:
    """Find where a span lies in a text.

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


def tokens_in_span(span: Offsets, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Find the places of the tokens that carry at least one character of a span.

    Args:
        span: in the text of all tokens.
        tokens: an answer's token ids.
        decode: gives the text of an answer's first tokens.
    """
    start, end = span
    whole = decode(tokens)
    # Compared character by character: half a character decodes to a replacement sign.
    reached = [
        len(commonprefix([decode(tokens[:count]), whole]))  # noqa: RUF071 - not paths
        for count in range(len(tokens) + 1)
    ]
    # A token that completes no character carries part of the next one; after the text's end, of none.
    return [
        place
        for place, (before, after) in enumerate(pairwise(reached))
        if before < end and start < max(after, before + 1) and before < len(whole)
    ]


class StepBuilder:
    """Builds the steps of one streamed answer from generations that grow."""

    def __init__(self) -> None:
        self._text = ""

    def step(self, generation: Generation) -> Step:
        """Build the next step, with the text that it adds."""
        # Half a character decodes to a replacement sign: it is added when the other half has come.
        text = generation.text if generation.finish_reason else generation.text.rstrip("\ufffd")
        token = text[len(self._text) :] if text.startswith(self._text) else ""
        self._text += token
        return Step(token=token, generation=generation)
