"""Chains in the place of a tier's model: the guard runs them once an attempt."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs

from ilis_guard import Generation, Message, Tier
from ilis_guard.cascade.settlement import Settlement
from ilis_guard.concurrency.portal import LoopPortal
from ilis_guard.errors import IlisGuardError, ModelError, UnfinishedAnswerError, control_flow
from ilis_guard.models.provider_errors import as_model_error
from ilis_guard.models.reasoning import answer_of, without_thinking
from ilis_guard.models.remote import fingerprint_of, finish_reason_of, generation_of, usage_of
from ilis_guard.types import (
    Departure,
    Fingerprint,
    FinishReason,
    RemoteFingerprint,
    Statistics,
    in_order,
    total,
)
from ilis_guard.types.thinking import without_thinking as text_without_thinking
from ilis_guard_langchain.callbacks import CaptureCallback
from ilis_guard_langchain.chain import ChainParts, bound_options
from ilis_guard_langchain.messages import to_messages, usage_metadata

if TYPE_CHECKING:  # importing it imports torch
    from ilis_guard.models.tapped import TappedModel

PIPELINE_KWARGS: Final = "pipeline_kwargs"
"""The option that langchain-huggingface passes on to the pipeline, and that to ``generate``."""


@dataclass(slots=True, kw_only=True)
class ModelCall:
    """One call of a model in a tier's place, made in the thread that decides."""

    portal: LoopPortal | None
    """Runs coroutines on the caller's event loop; None where the caller waits in its own thread."""
    settlement: Settlement | None = None
    """Given up when the caller is cancelled; None where it waits in its own thread."""
    error: Exception | None = None
    """The last error of what is called."""

    def check(self) -> None:
        """Check that the caller still waits: otherwise no larger tier is called and no ticket is made.

        Raises:
            ClientDisconnected: the caller was cancelled.
        """
        if self.portal is not None:
            self.portal.check()

    @contextmanager
    def convert_errors(self, convert: Callable[[Exception], ModelError]) -> Iterator[None]:
        """Keep an error, and raise a stranger's as a model's; control flow and this package's errors pass.

        Raises:
            ModelError: what `convert` made of an exception.
        """
        try:
            yield
        except control_flow():
            raise
        except Exception as error:
            self.check()
            self.error = error
            if isinstance(error, IlisGuardError):
                raise
            raise convert(error) from error


@dataclass(slots=True, kw_only=True)
class ChainCall(ModelCall):
    """One call of a guarded runnable: the input and the options of its parts, and their results."""

    given: Any
    """The input of the part of the chain that runs in an attempt."""
    config: RunnableConfig
    """For that part: a child of the guarded runnable's own run."""
    kwargs: Mapping[str, Any]
    """Passed on to that part."""
    unscorable: str = ""
    """Why an attempt on the chain has no score, whatever its answer."""
    departures: tuple[Departure, ...] = ()
    """What makes its score uncalibrated, beside the conversation and the model's fingerprint."""
    reply: Any = None
    """The message, or text, of the chain's own model; None where it hasn't answered."""
    outputs: dict[str, Any] = field(default_factory=dict)
    """By tier: the chain's output for the tier's answer."""

    def run(
        self, part: Runnable[Any, Any], given: Any, callback: BaseCallbackHandler | None = None, **kwargs: Any
    ) -> Any:
        """Run a part of the chain, awaited on the caller's event loop where the caller awaits.

        Args:
            part: of the chain.
            given: its input.
            callback: receives the events of this run too.
            kwargs: its options.
        """
        config = self.config if callback is None else merge_configs(self.config, {"callbacks": [callback]})
        if self.portal is None:
            return part.invoke(given, config, **kwargs)
        return self.portal.call(partial(part.ainvoke, given, config, **kwargs))


CURRENT_CALL: Final[ContextVar[ChainCall]] = ContextVar("ilis_guard_langchain.call")
"""The call that is being answered; threads that a guard starts for it inherit it."""


class ChainModel:
    """The model that a chain shows, called with the output of the chain's head."""

    def __init__(self, parts: ChainParts, *, reports_endings: bool) -> None:
        self._parts = parts
        self.reports_endings = reports_endings

    @property
    def fingerprint(self) -> RemoteFingerprint | None:
        """The chat model's, with the options bound to it; None where it is none, or may be another (fallbacks)."""
        core, bound = self._parts.core, bound_options(self._parts.model)
        return fingerprint_of(core, bound) if isinstance(core, BaseChatModel) and bound is not None else None

    def generate(self, messages: Sequence[Message]) -> Generation:  # noqa: ARG002 - the chain words its own
        """Call the model once.

        Raises:
            ModelError: it didn't answer; `TransientModelError` where a repeated call may succeed.
            GraphBubbleUp: LangGraph's control flow, which is neither an answer nor a failure.
        """
        call, capture, started = CURRENT_CALL.get(), CaptureCallback(), time.perf_counter()
        with call.convert_errors(partial(as_model_error, model=type(self._parts.core).__name__)):
            call.reply = call.run(self._parts.model, call.given, capture, **call.kwargs)
        message = as_message(call.reply)
        if isinstance(call.reply, str):  # only its callbacks hear how the text of a completion model ended
            message = next((each for each in reversed(capture.replies) if each.text == call.reply), message)
        generation = generation_of(message, seconds=time.perf_counter() - started)
        if not generation.thinking_problem:
            call.reply = _without_thinking(call.reply)
        return replace(generation, departures=call.departures)


class TappedChainModel:
    """As `ChainModel`, of a local transformers pipeline: its activations are recorded in the pass that answers."""

    def __init__(
        self, parts: ChainParts, model: "TappedModel", llm: Any, *, bound: Mapping[str, Any], is_chat: bool
    ) -> None:
        self._parts = parts
        self._model = model
        self._llm = llm
        self._bound = bound
        self._is_chat = is_chat

    @classmethod
    def find(cls, parts: ChainParts, tier: Tier) -> Self | None:
        """Tap the pipeline in a chain; None where its model is another, or the tier has no bundle to score it with.

        Raises:
            BundleMismatchError: it generates otherwise than the bundle says.
            ModelError, SignatureError: it can't be tapped.
        """
        # Not imported here: whoever has such a model has imported it.
        huggingface = sys.modules.get("langchain_huggingface")
        if huggingface is None or tier.bundle is None or (bound := bound_options(parts.model)) is None:
            return None
        core: Any = parts.core
        is_chat = isinstance(core, huggingface.ChatHuggingFace)
        llm = core.llm if is_chat else core
        metadata = tier.bundle.metadata
        fitted = metadata.fingerprint
        if not (isinstance(llm, huggingface.HuggingFacePipeline) and isinstance(fitted, Fingerprint)):
            return None
        from ilis_guard.models.tapped import TappedModel

        assert metadata.max_new_tokens is not None, "the bundle of a local model has it"
        pipeline = llm.pipeline
        model = TappedModel.of(
            pipeline.model,
            pipeline.tokenizer,
            _generate_options(pipeline, bound.get(PIPELINE_KWARGS, {})),
            fitted=fitted,
            prompt=metadata.prompt,
            max_new_tokens=metadata.max_new_tokens,
        )
        return cls(parts, model, llm, bound=bound, is_chat=is_chat)

    @property
    def fingerprint(self) -> Fingerprint:
        """The pipeline's model's, in the bundle's wording."""
        return self._model.fingerprint

    @property
    def max_new_tokens(self) -> int | None:
        """The bundle's; None where the pipeline has another limit."""
        return self._model.max_new_tokens

    def strip_wording(self, call: ChainCall) -> tuple[Message, ...] | None:
        """The conversation without the bundle's own words; None, and no calibrated score, where the chain has others.

        Raises:
            RequestError: the model's input is no conversation.
        """
        messages = to_messages(call.given)
        if self._is_chat:
            stripped = self._model.strip_template(messages)
        else:
            text = call.given.to_string() if isinstance(call.given, PromptValue) else messages[-1].content
            stripped = self._model.strip_rendered(text)
        if stripped is None:
            call.departures = ("wording",)
        return stripped

    def generate(self, messages: Sequence[Message]) -> Generation:
        """Call the model once and record the pass.

        Raises:
            ModelError, GraphBubbleUp: as `ChainModel.generate`; the pipeline was changed since it was wrapped.
            SignatureError: an activation is missing or not finite.
        """
        call, pipeline = CURRENT_CALL.get(), self._llm.pipeline
        given = call.kwargs.get(PIPELINE_KWARGS, {})
        with call.convert_errors(partial(as_model_error, model=type(self._parts.core).__name__)):
            options = _generate_options(pipeline, {**self._bound.get(PIPELINE_KWARGS, {}), **given})
        departures = {*call.departures, *self._model.check_call(pipeline.model, pipeline.tokenizer, options)}
        with self._model.record() as recorder:
            options = {
                **call.kwargs,
                PIPELINE_KWARGS: {**self._bound.get(PIPELINE_KWARGS, {}), **given, **recorder.options},
            }
            if self._is_chat:  # streaming, the pipeline would run in a thread of its own, whose pass isn't recorded
                options["stream"] = False
            with call.convert_errors(partial(as_model_error, model=type(self._parts.core).__name__)):
                # In this thread, also where the caller awaits: the recorder follows its own thread only.
                call.reply = self._parts.model.invoke(call.given, call.config, **options)
            message = as_message(call.reply)
            finish_reason_of(message)  # the recorder knows how the pass ended, and not that the answer calls tools
            text = message.text.strip()
            generation = recorder.generation(text)
        if generation.text != text and not generation.thinking_problem:
            # The pipeline has decoded it without the markers of its thinking.
            call.reply = generation.text if isinstance(call.reply, str) else AIMessage(generation.text)
        expected = self._expected_prompt(call, messages)
        if expected is not None and recorder.prompt != expected:
            call.unscorable = (
                "the chain puts its prompt to the model otherwise than the bundle's: other tokens came in than the "
                "model's chat template makes of this conversation (is a beginning-of-text token there twice, does the "
                "chain write the prompt's marks itself, or do the messages hold the text of control tokens, such as "
                "<|im_end|>?)"
            )
        return replace(generation, departures=in_order(departures))

    def _expected_prompt(self, call: ChainCall, messages: Sequence[Message]) -> list[int] | None:
        """The tokens of the chain's prompt, if nobody forges turns in it; None where that can't be known."""
        if "wording" not in call.departures:
            return self._model.prompt_tokens(messages)
        return self._model.prompt_tokens(to_messages(call.given), is_worded=True) if self._is_chat else None


class OpaqueChainModel:
    """A chain that doesn't show its model: its output is the answer."""

    fingerprint = None

    def __init__(self, chain: Runnable[Any, Any], *, reports_endings: bool) -> None:
        self._chain = chain
        self.reports_endings = reports_endings

    def generate(self, messages: Sequence[Message]) -> Generation:  # noqa: ARG002 - it has an input of its own
        """Run the chain once.

        Raises:
            ModelError: it failed, or its output has no text; `TransientModelError` where a repeated run may succeed.
            GraphBubbleUp: LangGraph's control flow, which is neither an answer nor a failure.
        """
        call, capture, started = CURRENT_CALL.get(), CaptureCallback(), time.perf_counter()
        with call.convert_errors(partial(as_model_error, model=f"the chain ({type(self._chain).__name__})")):
            call.reply = call.run(self._chain, call.given, capture, **call.kwargs)
        output, replies = _output_message(call.reply), capture.replies
        # Of several models' replies, none is the chain's answer.
        only = replies[0] if len(replies) == 1 else None
        found = only if output is None else output
        if found is None:
            raise ModelError(
                f"what comes out of the chain, a {type(call.reply).__name__}, has no text to judge: let the chain put "
                "out text or a message"
            )
        text, problem = answer_of(found)
        if not problem:
            call.reply = _without_thinking(call.reply)
        usage = [usage_of(reply) for reply in replies]
        return Generation(
            text=text.strip(),
            # A chain that LangChain saw call no model may have called one by itself.
            tokens=total((tokens for _, tokens in usage), start=0) if usage else None,
            prompt_tokens=total((tokens for tokens, _ in usage), start=0) if usage else None,
            finish_reason=_chain_finish_reason(output, capture),
            seconds=time.perf_counter() - started,
            # Of the model's text, which the chain may have made another of.
            statistics=None if only is None or answer_of(only)[0] != text else _statistics(only),
            thinking_problem=problem,
            sent=capture.sent,
        )


def as_message(reply: Any) -> AIMessage:
    """A model's reply as a message; text becomes one without metadata.

    Raises:
        ModelError: it is neither.
    """
    if isinstance(reply, str):
        return AIMessage(reply)
    if not isinstance(reply, AIMessage):
        raise ModelError(f"a chain's answer is text or a model's message, got a {type(reply).__name__}")
    return reply


def generation_message(generation: Generation) -> AIMessage:
    """A larger tier's answer as the message of a chat model in the chain."""
    return AIMessage(
        generation.text,
        usage_metadata=usage_metadata(generation.prompt_tokens, generation.tokens),
        response_metadata={} if generation.finish_reason is None else {"finish_reason": generation.finish_reason},
    )


def _generate_options(pipeline: Any, bound: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the pipeline passes to ``generate``: its own, the bound ones, and its defaults."""
    _, of_call, _ = pipeline._sanitize_parameters(**bound)  # noqa: SLF001 - no public method tells what it passes on
    options: dict[str, Any] = pipeline._prepare_generate_kwargs({**pipeline._forward_params, **of_call})  # noqa: SLF001
    return options


def _output_message(output: Any) -> AIMessage | None:
    """The answer in a chain's output: text itself, a message, or the last message of an agent's state.

    Raises:
        ModelError: that message is no model's, or a graph waits at an interrupt.
    """
    if isinstance(output, Mapping) and output.get("__interrupt__"):
        raise ModelError("the graph in the chain waits at an interrupt, so that there is no answer yet")
    if isinstance(output, Mapping) and isinstance(turns := output.get("messages"), list) and turns:
        output = turns[-1]
    return as_message(output) if isinstance(output, BaseMessage | str) else None


def _chain_finish_reason(output: AIMessage | None, capture: CaptureCallback) -> FinishReason | None:
    """Find why a chain's answer ended: as the output says, else the reply that it is, else all replies that it is of.

    A chain that calls no model of LangChain's is a function, whose return is its end.

    Raises:
        UnfinishedAnswerError: one of them is no finished answer, or was broken off.
    """
    replies = capture.replies
    if output is not None and (said := finish_reason_of(output)) is not None:
        return said
    same = [reply for reply in replies if output is not None and answer_of(reply) == answer_of(output)]
    if not same and capture.problem:
        raise UnfinishedAnswerError(f"the chain gave no finished answer: {capture.problem}")
    # Calls of tools are steps towards an answer, unless there is nothing else, and their arguments became the answer.
    parts = same[-1:] or [reply for reply in replies if not reply.tool_calls]
    found = {finish_reason_of(reply, may_call_tools=not parts) for reply in parts or replies}
    if None in found:
        return None
    return "length" if "length" in found else "stop"


def _statistics(reply: AIMessage) -> Statistics | None:
    return generation_of(reply, seconds=0.0, may_call_tools=True).statistics


def _without_thinking(output: Any) -> Any:
    """An output without the thinking in its answer, wherever `_output_message` finds that."""
    if isinstance(output, str):
        return text_without_thinking(output)
    if isinstance(output, AIMessage):
        return without_thinking(output)
    if isinstance(output, Mapping) and isinstance(turns := output.get("messages"), list) and turns:
        return {**output, "messages": [*turns[:-1], _without_thinking(turns[-1])]}
    return output
