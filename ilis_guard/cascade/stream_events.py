"""What a stream is made of: pieces of an answer, their withdrawal, and the decision, which is always the last."""

from dataclasses import dataclass

from ilis_guard.types import Decision, StreamMode

__all__ = ["Retraction", "StreamEvent", "StreamMode", "TextDelta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """A piece of the answer. Where none was withdrawn, pieces joined are exactly the decision's text."""

    text: str
    """Never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraction:
    """All pieces so far are withdrawn; nothing but the decision follows."""

    reason: str
    """A sentence without prompts and answers."""


StreamEvent = TextDelta | Retraction | Decision
"""The decision comes exactly once, at the end."""
