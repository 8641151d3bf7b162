"""Any runnable under a guard: what goes in and comes out stays as it was, and the policy decides what comes out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import ConfigurableFieldSpec
from langchain_core.utils.pydantic import TypeBaseModel

from ilis_guard import Action, Decision, Generation, Guard, IlisGuardError, Request, Tier
from ilis_guard.errors import ConfigError, ModelError, RequestError, ScoringError, control_flow
from ilis_guard.types import Labels
from ilis_guard_langchain.calls import CURRENT, Call, in_a_thread, silent
from ilis_guard_langchain.chains import ModelOfChain, TappedModelOfChain, WholeChain, larger
from ilis_guard_langchain.messages import to_messages
from ilis_guard_langchain.outputs import Refused, answered, kind_of, refused
from ilis_guard_langchain.parts import check_unguarded, parts_of
from ilis_guard_langchain.pipelines import TappedPipeline
from ilis_guard_langchain.tracing import atrace_attempts, trace_attempts


class GuardedRunnable(Runnable[Any, Any]):
    """A runnable in the place of a tier's model; ``guard.wrap(chain)`` makes one.

    It takes what the runnable takes, and puts out what that does. Each attempt on the tier asks the runnable's model
    once; where the policy wants a larger tier, that is asked the conversation that the runnable's model was really
    sent, and its answer goes through what stands after that model. An abstention or an escalation is a value: the
    policy's message as text, or as a message, and a `Refused` where the runnable puts out anything else.

    Args:
        guard: what decides.
        runnable: a model, a chain, an agent, a function.
        tier: in whose place it stands; the guard's first unless named.
        labels: what the policy's conditions see as ``labels.NAME``; a call may bring more, ``invoke(..., labels={})``.
        output: `answer`, or the whole `decision` instead.
        prompt: makes of the input what the request asks, as text or messages: what larger tiers are asked and tickets
            show. Needed where the runnable shows no model and takes neither text nor messages.
        as_output: makes of a larger tier's text what the runnable puts out. Needed where it shows no model, a retry is
            possible, and it puts out neither text nor a message.

    Raises:
        ConfigError: there is no such tier, the runnable is guarded already, or `as_output` is needed.
        BundleMismatchError: the runnable's model is local, and not the one that the tier's bundle was fitted to.
        ModelError, SignatureError: it is local and can't be tapped.
    """

    def __init__(
        self,
        guard: Guard,
        runnable: Runnable[Any, Any],
        *,
        tier: str | None = None,
        labels: Labels | None = None,
        output: Literal["answer", "decision"] = "answer",
        prompt: Callable[[Any], LanguageModelInput] | None = None,
        as_output: Callable[[str], Any] | None = None,
    ) -> None:
        if output not in ("answer", "decision"):
            raise ConfigError(f"a guarded runnable's output is 'answer' or 'decision', got {output!r}")
        check_unguarded(runnable)
        self._runnable = runnable
        self._tier = _tier(guard, tier)
        self._labels = labels
        self._output = output
        self._prompt = prompt
        self._as_output = as_output
        self._parts = parts_of(runnable)
        self._kind = kind_of(runnable)
        self._tapped = None if self._parts is None else TappedPipeline.found(self._parts, self._tier)
        self._check_output(guard)
        self._guard = guard.with_model(self._tier.name, self._model(), check=self._check)
        self._tier = _tier(self._guard, self._tier.name)

    def invoke(
        self,
        input: Any,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        labels: Labels | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run, score and decide.

        Args:
            input: the runnable's.
            config: LangChain's; what is inside runs as a child of this run.
            labels: beside those of the guarded runnable.
            kwargs: passed on to the runnable.

        Raises:
            RequestError: the conversation, or the labels, can't be used.
            Exception: what stands before the runnable's model raised it: then there is nothing to ask.
        """
        return self._call_with_config(
            partial(self._decide, labels=labels, kwargs=kwargs), input, config, run_type="chain"
        )

    async def ainvoke(
        self,
        input: Any,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        labels: Labels | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `invoke`: what is inside is awaited on this event loop, which goes on meanwhile."""
        return await self._acall_with_config(
            partial(self._adecide, labels=labels, kwargs=kwargs), input, config, run_type="chain"
        )

    def stream(
        self,
        input: Any,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        labels: Labels | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As `invoke`, in one piece: nothing is shown before the decision."""
        held = partial(self._held, labels=labels, kwargs=kwargs)
        yield from self._transform_stream_with_config(iter([input]), held, config, run_type="chain")

    async def astream(
        self,
        input: Any,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        labels: Labels | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """As `stream`."""

        async def inputs() -> AsyncIterator[Any]:
            yield input

        held = partial(self._aheld, labels=labels, kwargs=kwargs)
        async for piece in self._atransform_stream_with_config(inputs(), held, config, run_type="chain"):
            yield piece

    @property
    def InputType(self) -> Any:  # noqa: N802 - LangChain's name
        """The runnable's."""
        return self._runnable.InputType

    @property
    def OutputType(self) -> Any:  # noqa: N802 - LangChain's name
        """The runnable's, and `Refused` beside it where that is neither text nor a message."""
        if self._output == "decision":
            return Decision
        return self._runnable.OutputType if self._kind != "other" else self._runnable.OutputType | Refused

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The runnable's."""
        return self._runnable.config_specs

    def get_input_schema(self, config: RunnableConfig | None = None) -> TypeBaseModel:
        """The runnable's."""
        return self._runnable.get_input_schema(config)

    def get_output_schema(self, config: RunnableConfig | None = None) -> TypeBaseModel:
        """The runnable's, where what comes out is always of its type."""
        if self._output == "answer" and self._kind != "other":
            return self._runnable.get_output_schema(config)
        return super().get_output_schema(config)

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """The runnable's, and the guard after it."""
        graph = self._runnable.get_graph(config)
        graph.trim_last_node()
        before = graph.last_node()
        guard, output = graph.add_node(self), graph.add_node(self.get_output_schema(config))
        if before is not None:
            graph.add_edge(before, guard)
        graph.add_edge(guard, output)
        return graph

    def _model(self) -> ModelOfChain | TappedModelOfChain | WholeChain:
        if self._parts is None:
            return WholeChain(self._runnable)
        return ModelOfChain(self._parts) if self._tapped is None else TappedModelOfChain(self._parts, self._tapped)

    def _check_output(self, guard: Guard) -> None:
        """See that a larger tier's answer could come out as what the runnable puts out."""
        is_last = guard.tiers[-1].name == self._tier.name
        if is_last or self._parts is not None or self._kind != "other" or self._as_output or self._output != "answer":
            return
        raise ConfigError(
            f"{type(self._runnable).__name__} puts out {self._runnable.OutputType!r} and shows no model inside, so a "
            "larger tier's answer can't be brought into that form: pass as_output=, which makes it of the answer's "
            "text; or say that it puts out text, runnable.with_types(output_type=str)"
        )

    def _decide(self, given: Any, config: RunnableConfig, *, labels: Labels | None, kwargs: dict[str, Any]) -> Any:
        head = None if self._parts is None else self._parts.head
        sent = given if head is None else head.invoke(given, silent(config), **kwargs)
        call = Call(given=sent, config=silent(config), kwargs={} if head is not None else kwargs)
        decision, output = self._decided(call, self._request(call, given), self._all(labels))
        trace_attempts(decision, config)
        return output

    async def _adecide(
        self, given: Any, config: RunnableConfig, *, labels: Labels | None, kwargs: dict[str, Any]
    ) -> Any:
        head = None if self._parts is None else self._parts.head
        sent = given if head is None else await head.ainvoke(given, silent(config), **kwargs)
        call = Call(
            given=sent,
            config=silent(config),
            kwargs={} if head is not None else kwargs,
            loop=asyncio.get_running_loop(),
        )
        request = self._request(call, given)
        try:
            decision, output = await in_a_thread(partial(self._decided, call, request, self._all(labels)))
        finally:
            call.end()
        await atrace_attempts(decision, config)
        return output

    def _held(self, given: Iterator[Any], config: RunnableConfig, **options: Any) -> Iterator[Any]:
        for one in given:
            yield _chunk(self._decide(one, config, **options))

    async def _aheld(self, given: AsyncIterator[Any], config: RunnableConfig, **options: Any) -> AsyncIterator[Any]:
        async for one in given:
            yield _chunk(await self._adecide(one, config, **options))

    def _request(self, call: Call, given: Any) -> Request:
        """What the request asks: what the runnable's model is about to be sent, or the input itself.

        Raises:
            RequestError: that is no conversation.
        """
        if self._prompt is not None:
            asked = self._prompt(given)
        elif self._parts is not None:
            asked = call.given
        else:
            asked = _asked_by(given)
        request = Request.of(to_messages(asked))
        if self._tapped is None:
            if self._tier.bundle is not None and (options := sorted(call.kwargs.keys() - {"stop"})):
                call.problem = (
                    f"the call passes {options!r} on to the chain's model, which was compared with the tier's bundle "
                    "without them: how uncertain its answers are isn't known; bind them before it is wrapped"
                )
            return request
        turns = Request.of(to_messages(call.given)).messages
        worded = self._tapped.conversation(call.given, turns)
        if worded is None:
            call.problem = (
                f"the chain words its prompt otherwise than the tier's bundle, which was fitted to "
                f"{self._tapped.model.template.text[:200]!r}: how uncertain its answers are isn't known"
            )
            return request
        return request if self._prompt is not None else Request(messages=worded)

    def _decided(self, call: Call, request: Request, labels: Labels) -> tuple[Decision, Any]:
        """The decision, and what comes out."""
        token = CURRENT.set(call)
        try:
            decision = self._guard.decide(request.messages, labels=labels)
            return decision, self._put_out(call, decision)
        finally:
            CURRENT.reset(token)

    def _check(self, tier: str, generation: Generation) -> None:
        """Let an answer come out of the chain, so that what the chain can't use is no answer.

        Raises:
            ModelError: what stands after the model failed.
            ScoringError: the answer has no score, whatever it is.
        """
        call = CURRENT.get()
        if tier == self._tier.name:
            call.outputs[tier] = self._finished(call, call.reply)
            if call.problem:
                raise ScoringError(call.problem)
        elif self._as_output is not None:
            call.outputs[tier] = _made_of_answer(self._as_output, generation.text)
        else:
            is_message = self._kind == "message" if self._parts is None else isinstance(self._parts.core, BaseChatModel)
            call.outputs[tier] = self._finished(call, larger(generation) if is_message else generation.text)

    def _finished(self, call: Call, reply: Any) -> Any:
        """What the chain makes of its model's reply."""
        if self._parts is None or self._parts.tail is None:
            return reply
        return _made_of_answer(partial(call.run, self._parts.tail), reply)

    def _put_out(self, call: Call, decision: Decision) -> Any:
        if self._output == "decision":
            return decision
        if decision.mode == "shadow":
            return self._as_before(call, decision)
        if decision.action is Action.ANSWER:
            return answered(call.outputs[decision.attempts[-1].tier], decision)
        return refused(self._kind, decision)

    def _as_before(self, call: Call, decision: Decision) -> Any:
        """What would come out without a guard, its errors too: the policy only looks on."""
        tier = decision.attempts[-1].tier
        if tier in call.outputs:
            return answered(call.outputs[tier], decision)
        if call.reply is not None:  # nobody could look inside, and that is all that went wrong
            return answered(self._finished(call, call.reply), decision)
        if call.error is not None:
            raise call.error
        return refused(self._kind, decision)

    def _all(self, labels: Labels | None) -> Labels:
        return {**(self._labels or {}), **(labels or {})}


def _tier(guard: Guard, name: str | None) -> Tier:
    tiers = {tier.name: tier for tier in guard.tiers}
    if name is not None and name not in tiers:
        raise ConfigError(f"there is no tier {name!r} to wrap a runnable in the place of; there are {list(tiers)!r}")
    return guard.tiers[0] if name is None else tiers[name]


def _made_of_answer(make: Callable[[Any], Any], reply: Any) -> Any:
    """What comes out, made of an answer.

    Raises:
        ModelError: it can't be made of this one.
    """
    try:
        return make(reply)
    except control_flow():
        raise
    except IlisGuardError:
        raise
    except Exception as error:
        # Its own words may quote the answer.
        raise ModelError(f"what the chain does with the answer failed: {type(error).__name__}") from error


def _asked_by(given: Any) -> LanguageModelInput:
    """What an input asks, if it says so itself: text, messages, or an agent's state."""
    if isinstance(given, dict) and isinstance(given.get("messages"), list):
        given = given["messages"]
    if isinstance(given, str | PromptValue | list | tuple):
        return given
    if isinstance(given, BaseMessage):
        return [given]
    raise RequestError(
        f"what a chain asks can't be told from its input, a {type(given).__name__}, and it shows no model inside: "
        "pass prompt=, which makes text or messages of the input"
    )


def _chunk(output: Any) -> Any:
    """A piece of a stream: messages come as chunks, which add up."""
    if isinstance(output, AIMessage) and not isinstance(output, AIMessageChunk):
        return AIMessageChunk(**output.model_dump(exclude={"type"}))
    return output
