"""The middleware of LangChain's agents: answers are scored and ruled on, and an escalated one waits for a person."""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final, TypeGuard

from langchain.agents.middleware import AgentMiddleware, ExtendedModelResponse, ModelRequest, ModelResponse, hook_config
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, set_config_context
from langgraph.config import get_config
from langgraph.constants import TAG_NOSTREAM
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import Runtime
from langgraph.types import Command

from ilis_guard import Action, Decision, Generation, Guard, Message, ReviewQueue
from ilis_guard.cascade.settlement import Settlement
from ilis_guard.concurrency.portal import LoopPortal, run_in_thread
from ilis_guard.errors import ConfigError, ModelError
from ilis_guard.models.provider_errors import as_model_error
from ilis_guard.models.reasoning import without_thinking
from ilis_guard.models.remote import RemoteModel, generation_of
from ilis_guard.review import TicketRecord
from ilis_guard.text import is_blank
from ilis_guard.types import Attempt, Labels, Request
from ilis_guard_langchain.chain_models import ModelCall
from ilis_guard_langchain.chat import ChatIlisGuard
from ilis_guard_langchain.interrupts import (
    END,
    THREAD_LABEL,
    GuardedState,
    PendingAnswer,
    answer_of_ticket,
    resume_state,
    summarize_ticket,
    text_answer,
    wait_for_verdict,
)
from ilis_guard_langchain.messages import KEY, attach_summary, summarize_decision, transcribe
from ilis_guard_langchain.tracing import trace_attempts

Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
MakeLabels = Callable[[ModelRequest[Any]], Labels]


class ToolCallSignal(GraphBubbleUp):
    """The model calls tools: that is no answer, so the guard's cascade ends without a ruling."""

    def __init__(self, response: ModelResponse[Any]) -> None:
        super().__init__("the model calls tools")
        self.response = response


@dataclass(slots=True, kw_only=True)
class AgentCall(ModelCall):
    """One model call of an agent, while a guard decides on it."""

    request: ModelRequest[Any]
    handler: Handler | AsyncHandler
    """Makes the call, with the agent's tools and its other middleware; awaitable where there is a portal."""
    responses: dict[str, ModelResponse[Any]] = field(default_factory=dict)
    """By tier: its last answer in the agent's form."""

    def run(self, request: ModelRequest[Any]) -> ModelResponse[Any]:
        """Make the call, tagged so that LangGraph streams no token of it: nothing is shown before the decision."""
        config = ensure_config()
        config["tags"] = [*config.get("tags", []), TAG_NOSTREAM]
        call: Callable[[], Any] = partial(self.handler, request)
        with set_config_context(config) as context:
            return context.run(call if self.portal is None else partial(self.portal.call, call))

    def response(self, attempt: Attempt) -> ModelResponse[Any]:
        """An attempt's answer in the agent's form, without thinking; of a tier that answered by itself, its text."""
        response = self.responses.get(attempt.tier)
        if response is None:
            return ModelResponse(result=[AIMessage(attempt.text)])
        # Providers want the thinking before a call of a tool back.
        shown = [
            without_thinking(turn) if isinstance(turn, AIMessage) and not turn.tool_calls else turn
            for turn in response.result
        ]
        return ModelResponse(result=shown, structured_response=response.structured_response)

    def unguarded(self, decision: Decision) -> ModelResponse[Any] | None:
        """The model's response as without a guard, a refusal too; None where the agent made no call.

        Raises:
            Exception: the model's own.
        """
        last = decision.attempts[-1]
        response = self.responses.get(last.tier)
        # A larger tier may have answered after the agent's model failed.
        if response is None and last.error is not None and self.error is not None:
            raise self.error
        return response

    def pending(self, decision: Decision) -> PendingAnswer:
        """The answer that an escalation proposes."""
        assert decision.ticket is not None, "an escalation has a ticket"
        proposed = next((attempt for attempt in reversed(decision.attempts) if not is_blank(attempt.text)), None)
        if proposed is None:
            return text_answer(decision.ticket.id, "")
        response = self.response(proposed)
        return PendingAnswer(
            ticket=decision.ticket.id,
            text=proposed.text,
            messages=[*response.result],  # type: ignore[list-item]  # LangChain has two types for a message
            structured_response=response.structured_response,
        )


_CURRENT_CALL: Final[ContextVar[AgentCall]] = ContextVar("ilis_guard_langchain.agent_call")
"""The call that is being decided on; threads that a guard starts for it inherit it."""


class AgentModel:
    """A chat model in a tier's place, called through the agent at work, with the agent's own messages.

    Args:
        tier: in whose place.
        chat: called in the place of the agent's model; None for the agent's own.
        reports_endings: as of `ilis_guard.models.base.reports_endings`.
    """

    fingerprint = None

    def __init__(self, tier: str, chat: BaseChatModel | None, *, reports_endings: bool) -> None:
        self._tier = tier
        self._chat = chat
        self.reports_endings = reports_endings

    def generate(self, messages: Sequence[Message]) -> Generation:  # noqa: ARG002 - they transcribe the call's own
        """Make the agent's call.

        Raises:
            ToolCallSignal: the model calls tools.
            TransientModelError: it can't be reached, is overloaded, or timed out.
            ModelError: it refused, or its response is no answer.
        """
        call, started = _CURRENT_CALL.get(), time.perf_counter()
        request = call.request if self._chat is None else call.request.override(model=self._chat)
        with call.convert_errors(partial(as_model_error, model=type(request.model).__name__)):
            response = call.run(request)
        message = next((message for message in response.result if isinstance(message, AIMessage)), None)
        if message is None:
            types = [turn.type for turn in response.result]
            raise ModelError(f"the model's answer holds no AIMessage, only {types!r}")
        if message.tool_calls and response.structured_response is None:
            raise ToolCallSignal(response)
        call.responses[self._tier] = response
        structured = _structured_text(message, response)
        reply = message if structured is None else message.model_copy(update={"content": structured})
        # A structured answer may come as a tool's call, which the agent has answered.
        may_call_tools = response.structured_response is not None
        return generation_of(reply, seconds=time.perf_counter() - started, may_call_tools=may_call_tools)


class IlisGuardMiddleware(AgentMiddleware[GuardedState, Any, Any]):
    """A guard in an agent: ``create_agent(model, middleware=[IlisGuardMiddleware(guard)])``.

    The agent's model stands in the place of the guard's first tier. Where the policy says `retry`, a larger tier that
    is a chat model is called in the agent's place, with its tools; any other answers the conversation by itself. Calls
    of tools pass. An escalated answer is a ticket in the guard's queue and an interrupt of the graph, and a verdict
    given to either ends both.

    Args:
        guard: decides.
        labels: what the policy's conditions see as ``labels.NAME``, or a function that makes them of a model call.
        reports_endings: False where the agent's model never says why an answer ended, so that one may be unfinished.

    Raises:
        ConfigError: the guard's queue takes no verdicts.
    """

    state_schema = GuardedState

    def __init__(
        self, guard: Guard, *, labels: Labels | MakeLabels | None = None, reports_endings: bool = True
    ) -> None:
        super().__init__()
        if not isinstance(guard.review, ReviewQueue | None):
            raise ConfigError(f"an agent waits for verdicts in a ReviewQueue, got a {type(guard.review).__name__}")
        self._guard = guard
        self._queue = guard.review
        self._labels = labels or {}
        self._reports_endings = reports_endings

    def wrap_model_call(self, request: ModelRequest[Any], handler: Handler) -> ExtendedModelResponse[Any]:
        """Let the model answer, and act on the policy's ruling.

        Raises:
            RequestError: the agent's messages are no conversation that a guard takes, or the labels can't be used.
        """
        return self._guard_call(AgentCall(request=request, handler=handler, portal=None))

    async def awrap_model_call(self, request: ModelRequest[Any], handler: AsyncHandler) -> ExtendedModelResponse[Any]:
        """As `wrap_model_call`, in a thread of its own; the handler is awaited on this event loop."""
        portal, settlement = LoopPortal(), Settlement()
        try:
            call = AgentCall(request=request, handler=handler, portal=portal, settlement=settlement)
            return await run_in_thread(partial(self._guard_call, call))
        finally:
            settlement.cancel()
            portal.cancel()

    @hook_config(can_jump_to=["end"])
    def after_model(self, state: GuardedState, runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002 - LangChain's
        """Wait for the verdict on an escalated answer, with an interrupt, and replace the answer by its outcome.

        Raises:
            ReviewError: the queue failed; resuming the thread tries again.
        """
        pending = state.get("ilis_guard_pending")
        if pending is None:
            summary: dict[str, Any] = state["messages"][-1].response_metadata.get(KEY, {})
            return END if summary.get("action") == Action.ABSTAIN and "structured_response" in state else None
        assert self._queue is not None, "only a guard with a queue escalates"
        return resume_state(state, pending, wait_for_verdict(self._queue, pending["ticket"]))

    async def aafter_model(self, state: GuardedState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """As `after_model`, in a thread of the event loop's pool: the queue blocks."""
        return await asyncio.to_thread(self.after_model, state, runtime)

    def _guard_call(self, call: AgentCall) -> ExtendedModelResponse[Any]:
        config = get_config()
        request = self._request(call.request, config)
        decision_id = _decision_id(config, request)
        if (record := self._previous_escalation(decision_id)) is not None:
            return _leave(answer_of_ticket(record), _policy_response(record.say, summarize_ticket(record), config))
        token = _CURRENT_CALL.set(call)
        try:
            guard = self._guard if self._is_own(call.request.model) else self._agent_guard
            decision = guard.decide(request, id=decision_id, settlement=call.settlement)
        except ToolCallSignal as signal:
            return _leave(None, signal.response)
        finally:
            _CURRENT_CALL.reset(token)
        trace_attempts(decision, config)
        summary = summarize_decision(decision)
        response = call.unguarded(decision) if decision.mode == "shadow" else None
        if response is None and decision.action is Action.ANSWER:
            response = call.response(decision.attempts[-1])
        if response is not None:
            messages = [attach_summary(message, summary) for message in response.result]
            return _leave(None, ModelResponse(result=messages, structured_response=response.structured_response))
        pending = call.pending(decision) if decision.action is Action.ESCALATE else None
        return _leave(pending, _policy_response(decision.text, summary, config))

    def _request(self, request: ModelRequest[Any], config: RunnableConfig) -> Request:
        model, labels = request.model, self._labels(request) if callable(self._labels) else self._labels
        stop: Sequence[str] = ()
        if self._is_own(model):
            labels, stop = {**model.labels, **labels}, model.stop or ()
        if (thread := config["configurable"].get("thread_id")) is not None:
            labels = {**labels, THREAD_LABEL: str(thread)}
        system = [] if request.system_message is None else [request.system_message]
        return Request.of(transcribe([*system, *request.messages]), labels, stop)

    def _previous_escalation(self, decision_id: str) -> TicketRecord | None:
        """The ticket of this very call, where the program ended before the agent's state knew of it."""
        record = None if self._queue is None else self._queue.of_decision(decision_id)
        return record if record is not None and record.ticket.kind == "escalated" else None

    @cached_property
    def _agent_guard(self) -> Guard:
        """The guard with the agent in the place of its first tier, and of those that are chat models."""
        first, *larger = self._guard.tiers
        guard = self._guard.with_model(first.name, AgentModel(first.name, None, reports_endings=self._reports_endings))
        for tier in larger:
            if isinstance(tier.model, RemoteModel):
                model = AgentModel(tier.name, tier.model.chat, reports_endings=tier.model.reports_endings)
                guard = guard.with_model(tier.name, model)
        return guard

    def _is_own(self, model: BaseChatModel) -> TypeGuard[ChatIlisGuard]:
        """Whether the agent's model is this very guard, whose own tiers then answer."""
        return isinstance(model, ChatIlisGuard) and model.guard is self._guard


def _decision_id(config: RunnableConfig, request: Request) -> str:
    """The same when the graph makes this call again, after a crash for instance.

    It is derived from the task's id, and from the request: other middleware may call the model several times in a task.
    """
    place = config["configurable"]
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{place.get('thread_id')} {place['checkpoint_ns']} {request.digest}").hex


def _structured_text(message: AIMessage, response: ModelResponse[Any]) -> str | None:
    """The text of a structured answer that came as a tool's call: the call's arguments; None for any other."""
    # Beside it there may be calls of real tools, which nobody has answered yet.
    answered = {turn.tool_call_id for turn in response.result if isinstance(turn, ToolMessage)}
    structured = next((call["args"] for call in message.tool_calls if call["id"] in answered), None)
    return None if structured is None else json.dumps(structured, ensure_ascii=False)


def _policy_response(text: str, summary: dict[str, Any], config: RunnableConfig) -> ModelResponse[Any]:
    """The agent's message in the place of a model's answer."""
    name = config["metadata"].get("lc_agent_name")
    return ModelResponse(result=[AIMessage(text, name=name, response_metadata={KEY: summary})])


def _leave(pending: PendingAnswer | None, response: ModelResponse[Any]) -> ExtendedModelResponse[Any]:
    """The response, with an answer pending in the agent's state; None clears what an earlier turn left there."""
    return ExtendedModelResponse(response, Command(update={"ilis_guard_pending": pending}))
