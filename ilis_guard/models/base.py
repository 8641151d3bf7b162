"""Protocols of models, and the model that stands in for one that mustn't be called."""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, runtime_checkable

from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.errors import BudgetError, UnfinishedAnswerError
from ilis_guard.types import Fingerprint, Generation, Message, RemoteFingerprint, Step

Proceed = Callable[[Generation], bool]
"""Called once, after the prompt and before a token is generated, with a generation that has the prompt's signature and
no text; returns whether to go on."""


class Model(Protocol):
    """Answers conversations."""

    @property
    def fingerprint(self) -> Fingerprint | RemoteFingerprint | None:
        """Models of one fingerprint have comparable signatures or, untapped, comparable statistics; None for none.

        A model that can be tapped also has `max_new_tokens`, the length limit of its answers: where that isn't known,
        or isn't the bundle's, its scores aren't calibrated.
        """

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
        """As `Model.generate`; the answer ends before the first stop sequence, and is scored without it.

        An answer that was cut, or may have been, has ``decoding`` among its `departures`: its score isn't calibrated.
        """


@runtime_checkable
class Tokenizing(Protocol):
    """A model that encodes texts as tokens, such as a local one."""

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of any text by itself, without special ones."""


def reports_endings(model: Model) -> bool:
    """Whether an answer's `finish_reason` is known; it is, unless the model has a `reports_endings` that is False.

    From a model that reports endings, an answer without one isn't finished: its stream just ended. Answers of another
    may be unfinished, and nobody knows it: conditions see an empty `finish_reason`.
    """
    return bool(getattr(model, "reports_endings", True))


def check_finished(model: Model, answer: Generation) -> None:
    """Check that an answer is known to be whole.

    Raises:
        UnfinishedAnswerError: it just ended, and the model is one that says why.
    """
    if answer.finish_reason is None and reports_endings(model):
        raise UnfinishedAnswerError(
            "the model gave no finished answer: its reply just ended and doesn't say why. If the model never says, set "
            "`reports_endings` to false: in guard.yaml under the tier's `remote`, in code where the model is given",
            prompt_tokens=answer.prompt_tokens,
            tokens=answer.tokens,
        )


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
