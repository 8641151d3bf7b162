"""What a stream is made of: pieces of an answer, their withdrawal, and the decision, which is always the last."""

from dataclasses import dataclass
from typing import Literal

from ilis_guard.types import Decision

StreamMode = Literal["hold", "optimistic", "early_stop"]
"""`hold` shows nothing before the decision; `optimistic` shows tokens as they come, and may have to withdraw them;
`early_stop` shows nothing either, and generates no more of an answer that the policy wouldn't give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of the answer. Where none was withdrawn, pieces joined are exactly the decision's text."""

    text: str
    """Never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraction:
    """All pieces so far are withdrawn; nothing but the decision follows."""

    reason: str
    """A sentence without prompts and answers."""


StreamEvent = Piece | Retraction | Decision
"""The decision comes exactly once, at the end."""
