"""Protocols of models, and the model that stands in for one that mustn't be called."""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, runtime_checkable

from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.errors import BudgetError
from ilis_guard.types import Fingerprint, Generation, Message, RemoteFingerprint, Step

Proceed = Callable[[Generation], bool]
"""Called once, after the prompt and before a token is generated, with a generation that has the prompt's signature and
no text; returns whether to go on."""


class Model(Protocol):
    """Answers conversations."""

    @property
    def fingerprint(self) -> Fingerprint | RemoteFingerprint | None:
        """Models of one fingerprint have comparable signatures or, untapped, comparable statistics; None for none."""

    def generate(self, messages: Sequence[Message]) -> Generation:
        """Answer a conversation whose last turn is the user's.

        Raises:
            ModelError: there is no answer; ``is_retryable`` on its class says whether another call may give one.
            SignatureError: the model was tapped and an activation is missing or not finite.
        """


@runtime_checkable
class StepwiseModel(Model, Protocol):
    """A model that can stop after its prompt or after any token, such as a local one."""

    def generate(
        self, messages: Sequence[Message], *, proceed: Proceed | None = None, deadline: Deadline | None = None
    ) -> Generation:
        """As `Model.generate`; where `proceed` returns False, return the generation that it was called with.

        Raises:
            BudgetError: the deadline has passed. The guard has given the call up by then; the model ends it at its next
                token, and frees the processor.
            ClientDisconnected: the deadline's client has disconnected.
        """

    def stream(self, messages: Sequence[Message]) -> Generator[Step, None, None]:
        """Answer step by step: after the prompt, after each token, and at the end. Closing it ends the generation.

        The text so far only grows, but for half characters and spaces at its end; only the last step, which is the
        whole answer, has a finish reason.
        """


@runtime_checkable
class StoppableModel(Model, Protocol):
    """A model whose answers end at the caller's stop sequences, such as a local or a remote chat model."""

    takes_stop: bool
    """True: its `generate` takes ``stop``. A model without this attribute never gets stop sequences."""

    def generate(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generation:
        """As `Model.generate`; the answer ends before the first stop sequence, and is scored without it."""


@runtime_checkable
class Tokenizing(Protocol):
    """A model that encodes texts as tokens, such as a local one."""

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of any text by itself, without special ones."""


class UnavailableModel:
    """Takes the place of a tier's model and fails at once: the policy decides what becomes of the request.

    Args:
        reason: a sentence without prompts and answers.
    """

    fingerprint = None
    takes_stop = True

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def generate(self, messages: Sequence[Message], **options: object) -> Generation:
        """Fail.

        Raises:
            BudgetError: always.
        """
        del messages, options
        raise BudgetError(self._reason)
