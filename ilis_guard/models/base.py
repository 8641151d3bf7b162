"""What a tier needs of a model."""

from collections.abc import Sequence
from typing import Protocol

from ilis_guard.types import Fingerprint, Generation, Message


class Model(Protocol):
    """Anything that answers a conversation."""

    @property
    def fingerprint(self) -> Fingerprint | None:
        """What the model's signatures are comparable with; None where it can't be tapped."""

    def generate(self, messages: Sequence[Message]) -> Generation:
        """Answer a conversation whose last turn is the user's.

        Raises:
            ModelError: there is no answer; ``is_retryable`` on its class tells whether to ask again.
            SignatureError: the model was tapped and an activation is missing or not finite.
        """
