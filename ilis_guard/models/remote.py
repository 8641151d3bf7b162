"""Remote models: any LangChain chat model. They can't be tapped: what they say has statistics at most, no signature."""

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from http import HTTPStatus
from typing import Any, Self

from langchain_core.language_models import BaseChatModel
from pydantic import ValidationError

from ilis_guard.config.imports import import_string
from ilis_guard.errors import ModelError, TransientModelError, control_flow
from ilis_guard.models.chat_fingerprint import fingerprint_of
from ilis_guard.models.replies import check_not_refused, generation_of
from ilis_guard.types import Generation, Message, RemoteFingerprint

BUSY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class RemoteModel:
    """A LangChain chat model as a tier. Its secrets come from the environment, as LangChain's integrations do it."""

    takes_stop = True

    def __init__(self, chat: BaseChatModel) -> None:
        self._chat = chat

    @property
    def chat(self) -> BaseChatModel:
        """As given."""
        return self._chat

    @cached_property
    def fingerprint(self) -> RemoteFingerprint:
        """What its output statistics are comparable with."""
        return fingerprint_of(self._chat)

    @classmethod
    def load(cls, path: str, arguments: Mapping[str, Any]) -> Self:
        """Build the chat model from its import path.

        Args:
            path: ``package.module:Class``.
            arguments: passed to the class by keyword.

        Raises:
            ModelError: the path leads to no chat model, or the class refuses the arguments.
        """
        found = import_string(path, what="chat model", kind="Class", error=ModelError)
        if not (isinstance(found, type) and issubclass(found, BaseChatModel)):
            raise ModelError(f"{path!r} isn't a LangChain chat model (a subclass of BaseChatModel)")
        try:
            return cls(found(**arguments))
        # Whatever a third party's constructor raises: the operator sees which model and why.
        except Exception as error:
            raise ModelError(
                f"the chat model {path!r} refuses its arguments: {type(error).__name__}: {_told(error)}"
            ) from error

    def generate(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generation:
        """Ask the model once.

        Args:
            messages: the last turn is the user's.
            stop: given to the model as it is, which has its own bounds for them.

        Raises:
            TransientModelError: it can't be reached, is overloaded, or timed out.
            ModelError: it refused, whether by an error or in its reply.
        """
        started = time.perf_counter()
        try:
            reply = self._chat.invoke([(turn.role, turn.content) for turn in messages], stop=list(stop) or None)
        except control_flow():
            raise
        except Exception as error:
            raise as_model_error(error, type(self._chat).__name__) from error
        check_not_refused(reply)
        return generation_of(reply, seconds=time.perf_counter() - started)


def as_model_error(error: Exception, model: str) -> ModelError:
    """What a chat model's integration raised, in the guard's words.

    Args:
        error: its own; its text may quote the prompt, so it isn't repeated.
        model: who didn't answer.
    """
    kind = TransientModelError if _is_transient(error) else ModelError
    return kind(f"{model} didn't answer: {type(error).__name__}{_status(error)}")


def _told(error: Exception) -> str:
    """What the error says, without the arguments that pydantic would quote: a key may be among them."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_input=False, include_url=False)
        return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
    return str(error)


def _is_transient(error: Exception) -> bool:
    """Whether the same call may succeed if made again: LangChain's own word, else the HTTP status, else the type."""
    if hasattr(error, "is_retryable"):
        return bool(error.is_retryable)
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, ConnectionError | TimeoutError)


def _status(error: Exception) -> str:
    """The HTTP status, where there is one. The error's own text may quote the prompt, so it isn't repeated."""
    status = getattr(error, "status_code", None)
    return f" (status {status})" if isinstance(status, int) else ""
