"""Where an answer starts among the tokens of a model that thinks before it answers."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ilis_guard.types.thinking import may_hold_marker

OVERLAP: Final = 32
"""Tokens before the newest that are looked at again: no marker, with the words around it, has more."""


class AnswerDecoder(Protocol):
    """Decodes answers, as a `TextCodec` does."""

    def decode_marked(self, tokens: Sequence[int]) -> str:
        """The text of tokens, with the markers of thinking."""

    def answer_start(self, tokens: Sequence[int], opened_by: str) -> int | None:
        """The place of the first token of the answer; None while there is none."""


class AnswerStart:
    """Finds the first token of one answer, again and again as tokens come.

    A whole text is only searched where a marker of thinking stands among the newest tokens.

    Args:
        decoder: of the model.
        opened_by: returns the marker with which the prompt opened the thinking.
    """

    def __init__(self, decoder: AnswerDecoder, opened_by: Callable[[], str]) -> None:
        self._decoder = decoder
        self._opened_by = opened_by
        self._seen = 0
        self._start: int | None = None

    def __call__(self, tokens: Sequence[int]) -> int | None:
        """Return the place of the first token of the answer; None while all are thinking."""
        begin = max(0, self._seen - OVERLAP)
        if not begin or may_hold_marker(self._decoder.decode_marked(tokens[begin:])):
            self._start = self._decoder.answer_start(tokens, self._opened_by())
        self._seen = len(tokens)
        return self._start
