"""What a tier needs of a model."""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, runtime_checkable

from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.types import Fingerprint, Generation, Message, RemoteFingerprint, Step

Proceed = Callable[[Generation], bool]
"""Asked once, after the prompt and before a token is generated, with a generation that has the prompt's signature and
no text: whether to go on."""


class Model(Protocol):
    """Anything that answers a conversation."""

    @property
    def fingerprint(self) -> Fingerprint | RemoteFingerprint | None:
        """What its signatures or, where it can't be tapped, its statistics are comparable with; None for nothing."""

    def generate(self, messages: Sequence[Message]) -> Generation:
        """Answer a conversation whose last turn is the user's.

        Raises:
            ModelError: there is no answer; ``is_retryable`` on its class tells whether to ask again.
            SignatureError: the model was tapped and an activation is missing or not finite.
        """


@runtime_checkable
class StepwiseModel(Model, Protocol):
    """A model that can be stopped on its way, at the prompt or after any token; local models can."""

    def generate(
        self, messages: Sequence[Message], *, proceed: Proceed | None = None, deadline: Deadline | None = None
    ) -> Generation:
        """As `Model.generate`; where `proceed` says no, what it was asked with is returned.

        Raises:
            BudgetError: the deadline has passed. The guard gave the call up by then; so does the model, at its next
                token, and leaves the processor to others.
            ClientDisconnected: whoever asked has left, as the deadline says whenever it is checked.
        """

    def stream(self, messages: Sequence[Message]) -> Generator[Step, None, None]:
        """Answer step by step: after the prompt, after each token, and at the end. Closing it ends the generation.

        The text so far only grows, but for half characters and spaces at its end; only the last step, which is the
        whole answer, has a finish reason.
        """


@runtime_checkable
class StoppableModel(Model, Protocol):
    """A model whose answers end where the caller says; local models and remote chat models do."""

    takes_stop: bool
    """True: its `generate` takes ``stop``. What has none is never given it."""

    def generate(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generation:
        """As `Model.generate`; the answer ends before the first of these, and its score is of what is left."""


@runtime_checkable
class Tokenizing(Protocol):
    """A model that says how it cuts texts into tokens; local ones do."""

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of any text by itself, without special ones."""
