"""Wordings: what two prompts have in common, but for the question in them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ilis_guard.types.generations import Departure
from ilis_guard.types.requests import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """How a question is put to a model."""

    prompt: str
    """As `Fingerprint.prompt`; empty for a model that gets conversations unchanged."""
    system: str = ""
    """Short hexadecimal digest of the system messages; empty without one."""
    history: bool = False
    """Whether turns of user and assistant precede the question."""

    @classmethod
    def of(cls, messages: Sequence[Message], *, prompt: str) -> Self:
        """Find the wording of a conversation.

        Args:
            messages: the last turn is the user's.
            prompt: digest of the tier's wording around it.
        """
        system = "\0".join(turn.content for turn in messages if turn.role == "system")
        return cls(
            prompt=prompt,
            system=hashlib.sha256(system.encode()).hexdigest()[:16] if system else "",
            history=any(turn.role != "system" for turn in messages[:-1]),
        )

    def departures(self, other: Self) -> tuple[Departure, ...]:
        """What another wording has of its own."""
        different: dict[Departure, bool] = {
            "wording": other.prompt != self.prompt,
            "system": other.system != self.system,
            "history": other.history != self.history,
        }
        return tuple(name for name, is_different in different.items() if is_different)
