"""Chains as a tier's model: run once an attempt, in the guard's hands from then on."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable

from ilis_guard import Generation, IlisGuardError, Message
from ilis_guard.errors import ModelError, control_flow
from ilis_guard.models.remote import as_model_error, check_not_refused, fingerprint_of, generation_of
from ilis_guard.types import RemoteFingerprint
from ilis_guard_langchain.calls import CURRENT, Call
from ilis_guard_langchain.overhearing import CaptureCallback
from ilis_guard_langchain.parts import Parts, bound_to
from ilis_guard_langchain.pipelines import TappedPipeline

INTERRUPT: Final = "__interrupt__"
"""Where LangGraph puts what a graph waits for, in the state that it returns meanwhile."""


class ModelOfChain:
    """The model that a chain shows, asked with what the chain's head made of the input."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @property
    def fingerprint(self) -> RemoteFingerprint | None:
        """The chat model's, with what it is bound to; None where it is none, or not always this one (fallbacks)."""
        core, bound = self._parts.core, bound_to(self._parts.model)
        return fingerprint_of(core, bound) if isinstance(core, BaseChatModel) and bound is not None else None

    def generate(self, messages: Sequence[Message]) -> Generation:  # noqa: ARG002 - the chain words its own
        """Ask it once.

        Raises:
            ModelError: it didn't answer; `TransientModelError` where it may if it is asked again.
            GraphBubbleUp: LangGraph's control flow, which is no answer and no failure.
        """
        call, started = CURRENT.get(), time.perf_counter()
        call.reply = _asked(call, self._parts.model, self._parts.core)
        said = as_message(call.reply)
        check_not_refused(said)
        return generation_of(said, seconds=time.perf_counter() - started)


class TappedModelOfChain:
    """As `ModelOfChain`, of a local model of transformers: what is seen inside comes from the pass that answers."""

    def __init__(self, parts: Parts, tapped: TappedPipeline) -> None:
        self.fingerprint = tapped.model.fingerprint
        self._parts = parts
        self._tapped = tapped

    def generate(self, messages: Sequence[Message]) -> Generation:
        """Ask it once, and listen.

        Raises:
            ModelError, GraphBubbleUp: as `ModelOfChain.generate`.
            SignatureError: an activation is missing or not finite.
        """
        call, model = CURRENT.get(), self._tapped.model
        with model.record() as listening:
            call.problem = call.problem or self._tapped.problem(call.kwargs)
            options = self._tapped.options(listening.options, call.kwargs)
            call.reply = _asked(call, self._parts.model, self._parts.core, here=options)
            generation = listening.generation(as_message(call.reply).text.strip())
        if not call.problem and listening.prompt != model.prompt_tokens(messages):
            call.problem = (
                "the chain puts its prompt to the model otherwise than the bundle's: other tokens came in than the "
                "model's chat template makes of this conversation (is a beginning-of-text token there twice, or does "
                "the chain write the prompt's marks itself?)"
            )
        return generation


class WholeChain:
    """A chain that doesn't show its model: what it puts out is the answer."""

    fingerprint = None

    def __init__(self, chain: Runnable[Any, Any]) -> None:
        self._chain = chain

    def generate(self, messages: Sequence[Message]) -> Generation:  # noqa: ARG002 - it has an input of its own
        """Run it once.

        Raises:
            ModelError: it failed, or what comes out has no text; `TransientModelError` where it may if run again.
            GraphBubbleUp: LangGraph's control flow, which is no answer and no failure.
        """
        call, heard, started = CURRENT.get(), CaptureCallback(), time.perf_counter()
        try:
            call.reply = call.run_heard(self._chain, call.given, heard, **call.kwargs)
        except control_flow():
            raise
        except IlisGuardError:
            raise
        except Exception as error:
            raise as_model_error(error, f"the chain ({type(self._chain).__name__})") from error
        for reply in heard.replies[-1:]:
            check_not_refused(reply)
        told = [generation_of(reply, seconds=0.0) for reply in heard.replies]
        text = _text(call.reply)
        if text is None and len(told) == 1:
            text = told[0].text
        if text is None:
            raise ModelError(
                f"what comes out of the chain, a {type(call.reply).__name__}, has no text to judge: let the chain put "
                "out text or a message"
            )
        # Of several models' answers, none is the chain's.
        only = told[0] if len(told) == 1 else None
        return Generation(
            text=text,
            tokens=sum(each.tokens for each in told),
            prompt_tokens=sum(each.prompt_tokens for each in told),
            finish_reason="stop" if only is None else only.finish_reason,
            seconds=time.perf_counter() - started,
            statistics=None if only is None else only.statistics,
            sent=heard.sent,
        )


def as_message(reply: Any) -> AIMessage:
    """A model's reply as a message: a model of texts has no more to say.

    Raises:
        ModelError: it is none, or it calls tools: what it says besides is no answer.
    """
    if isinstance(reply, str):
        return AIMessage(reply)
    if not isinstance(reply, AIMessage):
        raise ModelError(f"a chain's answer is text or a model's message, got a {type(reply).__name__}")
    if reply.tool_calls or reply.invalid_tool_calls:
        raise ModelError("the model asks for tools, which is no answer: wrap the agent that calls them, not its model")
    return reply


def larger(generation: Generation) -> AIMessage:
    """What a larger tier answered, as a chat model in the chain would have."""
    prompt, answer = generation.prompt_tokens, generation.tokens
    return AIMessage(
        generation.text,
        usage_metadata={"input_tokens": prompt, "output_tokens": answer, "total_tokens": prompt + answer},
        response_metadata={} if generation.finish_reason is None else {"finish_reason": generation.finish_reason},
    )


def _asked(call: Call, step: Runnable[Any, Any], core: object, *, here: Mapping[str, Any] | None = None) -> Any:
    try:
        if here is None:
            return call.run(step, call.given, **call.kwargs)
        return call.run_here(step, call.given, **here)
    except control_flow():
        raise
    except IlisGuardError:
        raise
    except Exception as error:
        raise as_model_error(error, type(core).__name__) from error


def _text(output: Any) -> str | None:
    """What there is to read in what a chain put out: text, a message, or the last message of an agent's state.

    Raises:
        ModelError: that message is no answer, or a graph waits for somebody.
    """
    if isinstance(output, Mapping) and output.get(INTERRUPT):
        raise ModelError("the graph in the chain waits at an interrupt, so that there is no answer yet")
    if isinstance(output, Mapping) and isinstance(turns := output.get("messages"), list) and turns:
        output = turns[-1]
    if isinstance(output, BaseMessage):
        said = as_message(output)
        check_not_refused(said)
        return str(said.text).strip()
    return output.strip() if isinstance(output, str) else None
