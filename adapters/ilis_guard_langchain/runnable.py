"""Guards as runnables: `wrap` puts any runnable under a guard, `GuardRunnable` is a guard as a chain's last step."""

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.graph import Graph
from langchain_core.runnables.utils import ConfigurableFieldSpec, Input, Output
from langchain_core.utils.pydantic import TypeBaseModel

from ilis_guard import Action, Decision, Generation, Guard, Message, Tier
from ilis_guard.cascade.settlement import Settlement
from ilis_guard.concurrency.portal import LoopPortal, run_in_thread
from ilis_guard.errors import ConfigError, ModelError, ScoringError
from ilis_guard.types import Labels, in_order
from ilis_guard.types.generations import SOFT_ARGUMENTS
from ilis_guard_langchain.chain import check_unguarded, output_kind, split_chain
from ilis_guard_langchain.chain_models import (
    CURRENT_CALL,
    ChainCall,
    ChainModel,
    OpaqueChainModel,
    TappedChainModel,
    generation_message,
)
from ilis_guard_langchain.messages import (
    as_chunk,
    attach_summary,
    find_conversation,
    refusal_kwargs,
    summarize_decision,
    to_messages,
)
from ilis_guard_langchain.tracing import atrace_attempts, trace_attempts

OutputMode = Literal["answer", "decision"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The output in the place of one that is neither text nor a message, where the policy gives no answer."""

    text: str
    """The policy's message."""
    summary: dict[str, Any]
    """The decision's, as a message has it in ``response_metadata["ilis_guard"]``."""


def wrap(
    runnable: Runnable[Any, Any],
    guard: Guard,
    *,
    tier: str | None = None,
    labels: Labels | None = None,
    output: OutputMode = "answer",
    prompt: Callable[[Any], LanguageModelInput] | None = None,
    as_output: Callable[[str], Any] | None = None,
    reports_endings: bool = True,
) -> "GuardedRunnable":
    """Put a runnable under a guard, in the place of a tier's model.

    Args:
        runnable: a model, a chain, an agent, a function.
        guard: decides on its answers.
        tier: the tier in whose place it stands; the guard's first unless named.
        labels: what the policy's conditions see as ``labels.NAME``; a call may add more, ``invoke(..., labels={})``.
        output: `answer`, in the runnable's own type, or the whole `decision` instead.
        prompt: converts the input to the text or messages of the request, which larger tiers are asked and tickets
            show. Needed where the runnable shows no model and takes neither text nor messages.
        as_output: converts a larger tier's text to the runnable's output. Needed where it shows no model, a retry is
            possible, and its output is neither text nor a message.
        reports_endings: False where the runnable's models never say why an answer ended, so that one may be unfinished.

    Raises:
        ConfigError: there is no such tier, the runnable is guarded already, or `as_output` is needed.
        BundleMismatchError: the runnable's model is local, and not the one that the tier's bundle was fitted to.
        ModelError, SignatureError: it is local and can't be tapped.
    """
    return GuardedRunnable(
        runnable,
        guard,
        tier=tier,
        labels=labels,
        output=output,
        prompt=prompt,
        as_output=as_output,
        reports_endings=reports_endings,
    )


class _LabelledRunnable(Runnable[Input, Output]):
    """A runnable that takes labels, and decides in one run of its own."""

    def __init__(self, labels: Labels | None) -> None:
        self._labels = labels or {}

    def invoke(
        self,
        input: Input,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        labels: Labels | None = None,
        **kwargs: Any,
    ) -> Output:
        """Run, score and decide.

        Args:
            input: what is asked.
            config: LangChain's; what is inside runs as a child of this run.
            labels: added to the runnable's own.
            kwargs: passed on to a runnable that is wrapped.

        Raises:
            RequestError: the conversation, or the labels, can't be used.
            TypeError: no runnable is wrapped that takes the keywords: a misspelt `labels` that is ignored would open a
                gate.
            Exception: what stands before a wrapped runnable's model raised it: then there is nothing to ask.
        """
        decide = partial(self._decide, **self._options(labels, **kwargs))
        return self._call_with_config(decide, input, config, run_type="chain")

    async def ainvoke(
        self,
        input: Input,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        labels: Labels | None = None,
        **kwargs: Any,
    ) -> Output:
        """As `invoke`. The guard decides in a thread; what can be awaited is awaited on this event loop."""
        decide = partial(self._adecide, **self._options(labels, **kwargs))
        return await self._acall_with_config(decide, input, config, run_type="chain")

    def _options(self, labels: Labels | None = None, **kwargs: Any) -> dict[str, Any]:
        return {"labels": {**self._labels, **(labels or {})}, "kwargs": kwargs}

    @abstractmethod
    def _decide(self, given: Input, config: RunnableConfig, *, labels: Labels, kwargs: dict[str, Any]) -> Output:
        """The output for an input."""

    @abstractmethod
    async def _adecide(self, given: Input, config: RunnableConfig, *, labels: Labels, kwargs: dict[str, Any]) -> Output:
        """As `_decide`."""


class GuardRunnable(_LabelledRunnable[LanguageModelInput, Decision]):
    """A guard in the place of a chat model: ``prompt | GuardRunnable(guard)``; the output is the decision.

    An abstention or an escalation is a value, not an exception, so that ``with_fallbacks`` doesn't swallow it.

    Args:
        guard: decides.
        labels: what the policy's conditions see as ``labels.NAME``; a call may add more:
            ``invoke(..., labels={...})`` or ``bind(labels={...})``.
    """

    def __init__(self, guard: Guard, *, labels: Labels | None = None) -> None:
        super().__init__(labels)
        self._guard = guard

    def _options(self, labels: Labels | None = None, **kwargs: Any) -> dict[str, Any]:
        if kwargs:
            raise TypeError(f"a guard takes the keyword 'labels' and no other, got {sorted(kwargs)!r}")
        return super()._options(labels)

    def _decide(self, given: LanguageModelInput, config: RunnableConfig, **options: Any) -> Decision:  # noqa: ARG002
        return self._guard.decide(to_messages(given), labels=options["labels"])

    async def _adecide(self, given: LanguageModelInput, config: RunnableConfig, **options: Any) -> Decision:  # noqa: ARG002
        return await self._guard.adecide(to_messages(given), labels=options["labels"])


class GuardedRunnable(_LabelledRunnable[Any, Any]):
    """A runnable in the place of a tier's model, with the runnable's own input and output; `wrap` builds it.

    Each attempt on the tier calls the runnable's model once. Where the policy retries on a larger tier, that is asked
    the conversation that the runnable's model received, and its answer goes through what stands after that model. An
    abstention or an escalation is a value: the policy's message as text or as a message, or `Refused`.

    Arguments and errors: as of `wrap`.
    """

    def __init__(
        self,
        runnable: Runnable[Any, Any],
        guard: Guard,
        *,
        tier: str | None = None,
        labels: Labels | None = None,
        output: OutputMode = "answer",
        prompt: Callable[[Any], LanguageModelInput] | None = None,
        as_output: Callable[[str], Any] | None = None,
        reports_endings: bool = True,
    ) -> None:
        if output not in ("answer", "decision"):
            raise ConfigError(f"a guarded runnable's output is 'answer' or 'decision', got {output!r}")
        super().__init__(labels)
        check_unguarded(runnable)
        self._runnable = runnable
        self._output = output
        self._prompt = prompt
        self._as_output = as_output
        self._kind = output_kind(runnable)
        self._parts = parts = split_chain(runnable)
        own_tier = _find_tier(guard, tier)
        self._check_output(guard, own_tier)
        tapped = None if parts is None else TappedChainModel.find(parts, own_tier)
        self._model = tapped or (
            OpaqueChainModel(runnable, reports_endings=reports_endings)
            if parts is None
            else ChainModel(parts, reports_endings=reports_endings)
        )
        self._guard = guard.with_model(own_tier.name, self._model, check=self._store_output)
        self._tier = _find_tier(self._guard, own_tier.name)

    def stream(self, input: Any, config: RunnableConfig | None = None, **options: Any) -> Iterator[Any]:  # noqa: A002 - LangChain's name
        """As `invoke`, in one chunk: nothing is shown before the decision."""

        def transform(inputs: Iterator[Any], run_manager: Any, config: RunnableConfig) -> Iterator[Any]:  # noqa: ARG001
            for given in inputs:
                yield as_chunk(self._decide(given, config, **self._options(**options)))

        yield from self._transform_stream_with_config(iter([input]), transform, config, run_type="chain")

    async def astream(
        self,
        input: Any,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        **options: Any,
    ) -> AsyncIterator[Any]:
        """As `stream`, run as by `ainvoke`."""

        async def inputs() -> AsyncIterator[Any]:
            yield input

        async def transform(inputs: AsyncIterator[Any], run_manager: Any, config: RunnableConfig) -> AsyncIterator[Any]:  # noqa: ARG001
            async for given in inputs:
                yield as_chunk(await self._adecide(given, config, **self._options(**options)))

        async for chunk in self._atransform_stream_with_config(inputs(), transform, config, run_type="chain"):
            yield chunk

    @property
    def InputType(self) -> Any:  # noqa: N802 - LangChain's name
        """The runnable's."""
        return self._runnable.InputType

    @property
    def OutputType(self) -> Any:  # noqa: N802 - LangChain's name
        """The runnable's, or `Refused` where that is neither text nor a message."""
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
        """The runnable's, where the output is always of its type."""
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

    def _check_output(self, guard: Guard, tier: Tier) -> None:
        """Check that a larger tier's answer can be converted to the runnable's output."""
        is_last = guard.tiers[-1].name == tier.name
        if is_last or self._parts is not None or self._kind != "other" or self._as_output or self._output != "answer":
            return
        raise ConfigError(
            f"{type(self._runnable).__name__} puts out {self._runnable.OutputType!r} and shows no model inside, so a "
            "larger tier's answer can't be brought into that form: pass as_output=, which makes it of the answer's "
            "text; or say that it puts out text, runnable.with_types(output_type=str)"
        )

    def _decide(self, given: Any, config: RunnableConfig, *, labels: Labels, kwargs: dict[str, Any]) -> Any:
        inner, head = _silence(config), None if self._parts is None else self._parts.head
        sent = given if head is None else head.invoke(given, inner, **kwargs)
        call = ChainCall(given=sent, config=inner, kwargs=kwargs if head is None else {}, portal=None)
        decision, output = self._run(call, given, labels)
        trace_attempts(decision, config)
        return output

    async def _adecide(self, given: Any, config: RunnableConfig, *, labels: Labels, kwargs: dict[str, Any]) -> Any:
        inner, head = _silence(config), None if self._parts is None else self._parts.head
        sent = given if head is None else await head.ainvoke(given, inner, **kwargs)
        portal, settlement = LoopPortal(), Settlement()
        call = ChainCall(
            given=sent, config=inner, kwargs=kwargs if head is None else {}, portal=portal, settlement=settlement
        )
        try:
            decision, output = await run_in_thread(partial(self._run, call, given, labels))
        finally:
            settlement.cancel()
            portal.cancel()
        await atrace_attempts(decision, config)
        return output

    def _run(self, call: ChainCall, given: Any, labels: Labels) -> tuple[Decision, Any]:
        """Decide on a call; the decision and the output."""
        token = CURRENT_CALL.set(call)
        try:
            decision = self._guard.decide(self._conversation(call, given), labels=labels, settlement=call.settlement)
            return decision, self._build_output(call, decision)
        finally:
            CURRENT_CALL.reset(token)

    def _conversation(self, call: ChainCall, given: Any) -> Sequence[Message]:
        """The request's messages: what the runnable's model is about to receive, or the input itself.

        Raises:
            RequestError: that is no conversation.
        """
        if self._prompt is not None:
            asked = self._prompt(given)
        else:
            asked = find_conversation(given) if self._parts is None else call.given
        messages = to_messages(asked)
        if isinstance(self._model, TappedChainModel):
            stripped = self._model.strip_wording(call)
            return messages if stripped is None or self._prompt is not None else stripped
        if self._tier.bundle is not None:
            given = [name for name, value in call.kwargs.items() if value is not None]
            if options := sorted(set(given) - SOFT_ARGUMENTS.keys()):
                call.unscorable = (
                    f"the call passes {options!r} on to the chain's model, which was compared with the tier's bundle "
                    "without them: how uncertain its answers are isn't known; bind them before it is wrapped"
                )
            call.departures = in_order(SOFT_ARGUMENTS[name] for name in given if name in SOFT_ARGUMENTS)
        return messages

    def _store_output(self, tier: str, generation: Generation) -> None:
        """Compute the output for a tier's answer before it is scored: what the chain can't use is no answer.

        Raises:
            ModelError: what stands after the model failed.
            ScoringError: the answer has no score, whatever it is.
        """
        call = CURRENT_CALL.get()
        call.check()
        if tier == self._tier.name:
            call.outputs[tier] = self._finish(call, call.reply)
            if call.unscorable:
                raise ScoringError(call.unscorable)
        elif self._as_output is not None:
            with call.convert_errors(_output_error):
                call.outputs[tier] = self._as_output(generation.text)
        else:
            is_message = self._kind == "message" if self._parts is None else isinstance(self._parts.core, BaseChatModel)
            call.outputs[tier] = self._finish(call, generation_message(generation) if is_message else generation.text)

    def _finish(self, call: ChainCall, reply: Any) -> Any:
        """Run what stands after the chain's model on a reply."""
        if self._parts is None or self._parts.tail is None:
            return reply
        with call.convert_errors(_output_error):
            return call.run(self._parts.tail, reply)

    def _build_output(self, call: ChainCall, decision: Decision) -> Any:
        if self._output == "decision":
            return decision
        tier, summary = decision.attempts[-1].tier, summarize_decision(decision)
        if decision.mode == "shadow":  # what would come out without a guard, errors too
            if tier not in call.outputs and call.reply is not None:  # it answered, and only couldn't be scored
                call.outputs[tier] = self._finish(call, call.reply)
            if tier in call.outputs:
                return attach_summary(call.outputs[tier], summary)
            if call.error is not None:
                raise call.error
        elif decision.action is Action.ANSWER:
            return attach_summary(call.outputs[tier], summary)
        if self._kind == "message":
            return attach_summary(AIMessage(decision.text, additional_kwargs=refusal_kwargs(decision)), summary)
        return decision.text if self._kind == "text" else Refused(text=decision.text, summary=summary)


def _find_tier(guard: Guard, name: str | None) -> Tier:
    tiers = {tier.name: tier for tier in guard.tiers}
    if name is not None and name not in tiers:
        raise ConfigError(f"there is no tier {name!r} to wrap a runnable in the place of; there are {list(tiers)!r}")
    return guard.tiers[0] if name is None else tiers[name]


def _silence(config: RunnableConfig) -> RunnableConfig:
    """A config for what is inside: LangGraph streams the tokens of any model in a node unless it is tagged so."""
    return merge_configs(config, {"tags": ["nostream"]})


def _output_error(error: Exception) -> ModelError:
    # The error's own text may quote the answer.
    return ModelError(f"what the chain does with the answer failed: {type(error).__name__}")
