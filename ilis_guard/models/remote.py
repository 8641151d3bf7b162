"""Remote models: any LangChain chat model, its fingerprint, and its replies as generations.

They can't be tapped: a reply has output statistics, where the provider returns log-probabilities, and no signature.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Self

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from ilis_guard.config.imports import import_string
from ilis_guard.errors import ModelError, UnfinishedAnswerError, control_flow, error_text
from ilis_guard.models.endings import Ending, ending_of
from ilis_guard.models.logprobs import logprobs_of_answer
from ilis_guard.models.provider_errors import as_model_error
from ilis_guard.models.reasoning import answer_of
from ilis_guard.text import is_blank
from ilis_guard.types import FinishReason, Generation, Message, RemoteFingerprint, Statistics

MODEL_FIELDS: Final = ("model_name", "model")
"""Where LangChain's integrations keep the model's name."""
IGNORED_WORDS: Final = frozenset(
    {"timeout", "retries", "retry", "client", "socket", "proxy", "headers", "stream", "streaming", "organization"}
    | {"key", "token", "secret", "password", "credentials", "auth"}
)
"""An argument with one of these words in its name says how a model is reached, not what it answers, or is a secret."""
UNKNOWN_LOGPROB: Final = -9999.0
"""What OpenAI returns as the log-probability of a very unlikely token."""


class RemoteModel:
    """A LangChain chat model as a tier. LangChain's integrations read their secrets from the environment.

    Args:
        chat: the LangChain model.
        reports_endings: False for one that never says why an answer ended, so that an answer may be unfinished.
    """

    takes_stop = True

    def __init__(self, chat: BaseChatModel, *, reports_endings: bool = True) -> None:
        self._chat = chat
        self.reports_endings = reports_endings
        """As of `ilis_guard.models.base.reports_endings`."""

    @property
    def chat(self) -> BaseChatModel:
        """The LangChain model."""
        return self._chat

    @property
    def fingerprint(self) -> RemoteFingerprint:
        """Models of one fingerprint have comparable output statistics. Of the object as it is now."""
        return fingerprint_of(self._chat)

    @classmethod
    def load(cls, path: str, arguments: Mapping[str, Any], *, reports_endings: bool = True) -> Self:
        """Build the chat model from its import path.

        Args:
            path: ``package.module:Class``.
            arguments: passed to the class by keyword.
            reports_endings: as of the class.

        Raises:
            ModelError: the path leads to no chat model, or the class refuses the arguments.
        """
        found = import_string(path, what="chat model", kind="Class", error=ModelError)
        if not (isinstance(found, type) and issubclass(found, BaseChatModel)):
            raise ModelError(f"{path!r} isn't a LangChain chat model (a subclass of BaseChatModel)")
        try:
            return cls(found(**arguments), reports_endings=reports_endings)
        # A third party's constructor may raise anything: the operator sees which model and why.
        except Exception as error:
            raise ModelError(
                f"the chat model {path!r} refuses its arguments: {type(error).__name__}: {_describe(error)}"
            ) from error

    def generate(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generation:
        """Call the model once.

        Args:
            messages: the last turn is the user's.
            stop: passed to the model, which has its own limits for them.

        Raises:
            TransientModelError: it can't be reached, is overloaded, or timed out.
            UnfinishedAnswerError: its reply is no finished answer.
            ModelError: it failed in another way.
        """
        started = time.perf_counter()
        try:
            reply = self._chat.invoke([(turn.role, turn.content) for turn in messages], stop=list(stop) or None)
        except control_flow():
            raise
        except Exception as error:
            raise as_model_error(error, type(self._chat).__name__) from error
        generation = generation_of(reply, seconds=time.perf_counter() - started)
        # Whether one of the sequences has cut the answer, replies don't say.
        return replace(generation, departures=("decoding",)) if stop else generation


def fingerprint_of(chat: BaseChatModel, bound: Mapping[str, Any] | None = None) -> RemoteFingerprint:
    """Build the fingerprint of a chat model: models of one fingerprint have comparable output statistics.

    It is read from the object, so that a model from guard.yaml and one that a program built have the same if they send
    the same requests, whether or not parts of them came from the environment.

    Args:
        chat: of any integration.
        bound: further arguments of every call.
    """
    kind = type(chat)
    fields = {
        name: getattr(chat, name)
        for name, field in kind.model_fields.items()
        if name not in BaseChatModel.model_fields and name not in chat.lc_secrets and not field.exclude
    }
    model = next((value for name in MODEL_FIELDS if isinstance(value := fields.pop(name, None), str)), "")
    given = {**fields, **(bound or {})}
    return RemoteFingerprint(
        chat_model=f"{kind.__module__}:{kind.__qualname__}",
        model=model,
        arguments={name: _digest(given[name]) for name in sorted(given) if _is_relevant(name, given[name])},
    )


def generation_of(reply: AIMessage, *, seconds: float, may_call_tools: bool = False) -> Generation:
    """Convert a chat model's whole reply, which took so many seconds.

    Raises:
        UnfinishedAnswerError: as `finish_reason_of`.
    """
    answer, problem = answer_of(reply)
    prompt_tokens, tokens = usage_of(reply)
    return Generation(
        text=answer,
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        finish_reason=finish_reason_of(reply, may_call_tools=may_call_tools),
        seconds=seconds,
        statistics=statistics_of(logprobs_of_answer(reply.response_metadata.get("logprobs"), answer)),
        thinking_problem=problem,
    )


def finish_reason_of(reply: AIMessage, *, may_call_tools: bool = False) -> FinishReason | None:
    """Find why a reply ended; None where it doesn't say.

    Args:
        reply: whole.
        may_call_tools: whether a call of tools is an answer, as where one brings a structured answer.

    Raises:
        UnfinishedAnswerError: it is no finished answer: it refuses, asks for tools, or was broken off.
    """
    try:
        ending = _ending_of_answer(reply, may_call_tools=may_call_tools)
    except UnfinishedAnswerError as error:
        error.prompt_tokens, error.tokens = usage_of(reply)
        raise
    return "stop" if ending == "tool_calls" else ending


def usage_of(reply: AIMessage) -> tuple[int | None, int | None]:
    """The tokens that a reply's model read and wrote; None where the provider doesn't say, or says 0 for some."""
    usage: Mapping[str, Any] = reply.usage_metadata or {}
    read, written = _count(usage.get("input_tokens")), _count(usage.get("output_tokens"))
    wrote_nothing = is_blank(reply.text) and not (reply.tool_calls or reply.invalid_tool_calls)
    # Integrations write 0 for what they weren't told; no prompt is empty.
    return read or None, written if written or wrote_nothing else None


def statistics_of(logprobs: object) -> Statistics | None:
    """Compute output statistics from logprobs in the format of OpenAI's chat completions.

    ``{"content": [{"logprob": ..., "top_logprobs": [{"logprob": ...}, ...]}, ...]}``, one entry a token. The entropy
    of a distribution isn't known from its likeliest tokens, and the margin only where each token came with two of them:
    unknown statistics are NaN, which conditions see as missing.

    Args:
        logprobs: from the message's metadata, of any shape.

    Returns:
        None where there are no logprobs of that format.
    """
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(tokens, Sequence) or isinstance(tokens, str) or not tokens:
        return None
    total = math.fsum(_logprob(token) for token in tokens)
    return Statistics(
        logprob_sum=total,
        logprob_mean=total / len(tokens),
        entropy_mean=math.nan,
        # A minimum with NaN in it may be any number to Python.
        margin_min=math.nan if any(map(math.isnan, margins := [_margin(token) for token in tokens])) else min(margins),
    )


def _ending_of_answer(reply: AIMessage, *, may_call_tools: bool) -> Ending | None:
    blocks = reply.content if isinstance(reply.content, list) else ()
    refuses = any(isinstance(block, dict) and block.get("type") == "refusal" for block in blocks)
    if refuses or reply.additional_kwargs.get("refusal"):
        raise UnfinishedAnswerError("the model refused to answer")
    ending = ending_of(reply.response_metadata)
    if not may_call_tools and (ending == "tool_calls" or reply.tool_calls or reply.invalid_tool_calls):
        raise UnfinishedAnswerError(
            "the model asks for tools, which is no answer: a guard decides on answers of the agent that calls them, "
            "so wrap that, or give the agent the guard's middleware"
        )
    return ending


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _describe(error: Exception) -> str:
    """Describe an error without the arguments that pydantic quotes: one may be a key."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_input=False, include_url=False)
        return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
    return error_text(error)


def _is_relevant(name: str, value: object) -> bool:
    if isinstance(value, SecretStr | SecretBytes) or not IGNORED_WORDS.isdisjoint(name.lower().split("_")):
        return False
    # Empty arguments are left out: a later release of the integration may add some.
    return value is not None and not (isinstance(value, list | tuple | Mapping) and not value)


def _digest(value: object) -> bool | int | float | str:
    if isinstance(value, bool | int | float):
        return value
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_to_json).encode()).hexdigest()[:16]


def _to_json(value: object) -> object:
    """Convert what JSON doesn't know; of objects that hold no data, such as functions, only the type counts."""
    if isinstance(value, BaseModel):
        return dict(value)
    return sorted(map(repr, value)) if isinstance(value, set | frozenset) else type(value).__qualname__


def _margin(token: Any) -> float:
    """How much likelier the likeliest token was than the second, 0 to 1; NaN where unknown."""
    listed = token.get("top_logprobs") if isinstance(token, Mapping) else None
    if not isinstance(listed, Sequence) or len(listed) < 2:
        return math.nan
    logprobs = [_logprob(each) for each in listed]
    if any(map(math.isnan, logprobs)):
        return math.nan
    likeliest, second = sorted(logprobs, reverse=True)[:2]
    return math.exp(likeliest) - math.exp(second)


def _logprob(token: Any) -> float:
    """In nats; NaN where unknown."""
    value = token.get("logprob") if isinstance(token, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= UNKNOWN_LOGPROB:
        return math.nan
    return min(float(value), 0.0)  # servers round, and a probability is at most 1
