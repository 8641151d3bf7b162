"""A model that isn't asked any more."""

from collections.abc import Sequence

from ilis_guard.errors import BudgetError
from ilis_guard.types import Generation, Message


class UnavailableModel:
    """Stands where a tier's model stood, and fails at once: what becomes of the request is the policy's to say.

    Args:
        why: a sentence without prompts and answers.
    """

    fingerprint = None
    takes_stop = True

    def __init__(self, why: str) -> None:
        self._why = why

    def generate(self, messages: Sequence[Message], **options: object) -> Generation:
        """Fail, whatever is asked and how.

        Raises:
            BudgetError: always.
        """
        del messages, options
        raise BudgetError(self._why)
