"""Every error ilis_guard raises: one root, one class a cause.

A message says what went wrong, what was got (with ``!r``) and what to do. Prompts and answers never stand in a
message: messages are logged. All errors carry plain strings, so they survive pickling between processes.
"""

import reprlib
import sys
from typing import ClassVar, Final, Literal, Self

from ilis_guard.text import whole_characters

MAX_ERROR_TEXT: Final = 2_000
"""Characters of an exception's own text that are kept: a provider's may hold the whole request."""


class IlisGuardError(Exception):
    """Root of all errors of this package.

    ``is_retryable`` says whether the same call may succeed if it is made again.
    """

    is_retryable: ClassVar[bool] = False
    caller_message: ClassVar[str] = "The request failed."
    """The message for an API's callers, the same for all errors of the class."""


class RequestError(IlisGuardError):
    """The caller's prompt, messages, labels or stop sequences can't be used.

    Args:
        message: what is wrong.
        field: the field of `Request` at fault.
    """

    caller_message = "The request is invalid."

    def __init__(self, message: str, field: Literal["messages", "labels", "stop", "id"] = "messages") -> None:
        super().__init__(message)
        self.field = field


class RequestConflictError(RequestError):
    """The id, or the idempotency key, was given to another request before."""

    caller_message = "The id belongs to another request."

    def __init__(self, message: str) -> None:
        super().__init__(message, "id")

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (str(self),)


class ConfigError(IlisGuardError):
    """``guard.yaml`` is wrong; the message starts with ``file:line:column``."""


class PolicyError(IlisGuardError):
    """A policy file is wrong; the message starts with ``file:line:column``."""


class FactsError(IlisGuardError):
    """Facts or a decision can't be explained, because they are invalid; the message starts with their place."""


class QuestionError(IlisGuardError):
    """A file of labelled questions is wrong; the message starts with ``file:line``."""


class ModelError(IlisGuardError):
    """A model can't be loaded or didn't answer."""

    caller_message = "The model gave no answer."


class TransientModelError(ModelError):
    """The model didn't answer this time: a time-out, a rate limit, a connection that broke.

    Args:
        message: what happened.
        is_reply_lost: the call was made and its reply never came whole: nobody knows what the model read and wrote.
    """

    caller_message = "The model is unreachable or overloaded."

    is_retryable = True

    def __init__(self, message: str, *, is_reply_lost: bool = False) -> None:
        super().__init__(message)
        self.is_reply_lost = is_reply_lost


class PromptTooLongError(ModelError):
    """The prompt and the tokens to be generated don't fit into the model's context."""

    caller_message = "The prompt is too long for the model."


class ThinkingError(ModelError):
    """The model thought and gave no answer: it never left its thinking, or thought in the middle of its answer."""


class UnfinishedAnswerError(ModelError):
    """The model's reply is no finished answer: it refuses, asks for tools, was broken off, or doesn't say how it ended.

    Args:
        message: what the reply is.
        prompt_tokens: what the model read all the same; None where that isn't known.
        tokens: what it wrote; None where that isn't known.
    """

    caller_message = "The model gave no finished answer."

    def __init__(self, message: str, *, prompt_tokens: int | None = None, tokens: int | None = None) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.tokens = tokens


class CircuitOpenError(ModelError):
    """The tier's model failed too often in a row: it isn't called for a while."""

    caller_message = "The model failed too often and is not called for a while."


class BudgetError(IlisGuardError):
    """The request's time is over: a later answer isn't given."""

    caller_message = "The time for the request is over."


class ClientDisconnected(IlisGuardError):  # noqa: N818 - no failure, and the field's word for it
    """The client has disconnected, so nobody waits for the result. It never reaches a caller."""

    caller_message = "The client disconnected."


class WeightsError(ModelError):
    """Weights that a package carries are missing, incomplete or not the ones expected."""


class MissingDependencyError(IlisGuardError):
    """An optional dependency isn't installed; the message names the extra that brings it."""


class SignatureError(IlisGuardError):
    """No signature can be computed: a layer wasn't found, didn't fire, or gave a non-finite activation."""

    caller_message = "The answer could not be scored."


class ScoringError(IlisGuardError):
    """A generation can't be scored."""

    caller_message = "The answer could not be scored."


class BundleError(IlisGuardError):
    """A bundle can't be read: a file is missing, damaged, or not what its metadata says."""

    caller_message = "The answer could not be scored."


class BundleMismatchError(BundleError):
    """A bundle was fitted to another model, precision or prompt than the one that runs."""


class ProfileError(IlisGuardError):
    """A traffic profile can't be made or read, or was made with another bundle or model."""

    caller_message = "The answer could not be scored."


class AttemptsError(IlisGuardError):
    """A table of attempts, or a file of decisions or verdicts, can't be read; the message starts with its path."""


class FitError(IlisGuardError):
    """A scorer can't be fitted to these rows."""


class UnacceptedFindingsError(FitError):
    """A score is no better than chance, or its figures are no evidence; nobody accepted it all the same."""


class SimulationError(IlisGuardError):
    """A policy can't be simulated on a table of attempts."""


class ReviewError(IlisGuardError):
    """The human queue failed, or can't do what was requested."""

    caller_message = "The request could not be put before a person."


class TicketPendingError(ReviewError):
    """The time for the request was over while its ticket was being stored; it may be stored all the same."""

    caller_message = "The request was still being put before a person when its time was over."


class DecisionRecordedError(ReviewError):
    """Another process has recorded a decision under this id first."""


class QueueStorageError(ReviewError):
    """The queue's database failed, or what was to be written into it is no text or number that it takes."""

    may_pass: bool = False
    """Whether the same may succeed a moment later: the database was out of reach or read-only, as in a failover."""
    may_be_stored: bool = False
    """Whether the connection broke in the middle of the commit: what was written may be stored all the same."""


class TicketNotFoundError(ReviewError):
    """No ticket has this id."""


class TicketConflictError(ReviewError):
    """The ticket has changed since it was read: read it again."""


class TicketResolvedError(TicketConflictError):
    """The ticket already ended with another verdict."""


class TicketExpiredError(TicketConflictError):
    """The ticket was overdue and ended without a verdict."""


class TicketClaimedError(TicketConflictError):
    """Somebody else has the ticket in hand, or the claim that was to be renewed or released is gone."""


class TicketChangedError(TicketConflictError):
    """The ticket has another version than the one that was looked at."""


class WebhookSignatureError(ReviewError):
    """The webhook's signature is invalid, or it was sent too long ago."""


class DeliveryNotFoundError(ReviewError):
    """No dead letter has this id."""


def public_class(error: BaseException) -> type[IlisGuardError] | None:
    """The class of this module that an error is an instance of, a user's subclasses aside; None for strangers."""
    return next(
        (each for each in type(error).__mro__ if issubclass(each, IlisGuardError) and each.__module__ == __name__), None
    )


def error_text(error: BaseException) -> str:
    """An exception's own text, cut; empty where it can't be had: a stranger's ``__str__`` may raise anything."""
    try:
        text = str.__getitem__(_text(error), slice(MAX_ERROR_TEXT + 1))
    except BaseException:  # noqa: BLE001 - the exception is at hand already; no other one may take its place
        return ""
    return whole_characters(text if len(text) <= MAX_ERROR_TEXT else f"{text[:MAX_ERROR_TEXT]}...")


def _text(error: BaseException) -> str:
    """As ``str``, which takes seconds to write out an argument of many megabytes."""
    is_plain = type(error).__str__ in (BaseException.__str__, OSError.__str__, KeyError.__str__)
    if not is_plain or all(_is_short(argument) for argument in error.args):
        return str(error)
    return ", ".join(
        argument[: MAX_ERROR_TEXT + 1] if isinstance(argument, str) else reprlib.repr(argument)
        for argument in error.args
    )


def _is_short(argument: object) -> bool:
    return argument is None or isinstance(argument, int) or (isinstance(argument, str) and len(argument) < 1000)


def log_detail(error: BaseException) -> str:
    """An error as it may be logged: ours with its message, a stranger's by its class alone: it may quote texts."""
    known = public_class(error)
    return f"UnexpectedError: {type(error).__name__}" if known is None else f"{known.__name__}: {error_text(error)}"


_FRAMEWORKS: Final = (("langgraph.errors", "GraphBubbleUp"),)
"""Module and class. A module that nobody imported raises nothing, so none is imported for this."""


def control_flow() -> tuple[type[BaseException], ...]:
    """Exceptions that aren't failures: the client disconnected, or a framework interrupts a call to resume it later.

    A model that asks its graph's person with LangGraph's `interrupt` does the latter. Code that catches everything lets
    them pass first::

        except control_flow():
            raise
        except Exception:
            ...
    """
    known = (getattr(sys.modules[module], name) for module, name in _FRAMEWORKS if module in sys.modules)
    return (ClientDisconnected, *known)
