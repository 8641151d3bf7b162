"""The middleware: an agent's answers are scored and ruled on, and what is escalated waits for a person."""

import asyncio
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeGuard

from langchain.agents.middleware import AgentMiddleware, ExtendedModelResponse, ModelRequest, ModelResponse, hook_config
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_config
from langgraph.runtime import Runtime
from langgraph.types import Command

from ilis_guard import Action, Decision, Guard, ReviewQueue
from ilis_guard.errors import ConfigError
from ilis_guard.models.remote import RemoteModel
from ilis_guard.review import TicketRecord
from ilis_guard.types import Attempt, Labels
from ilis_guard_langchain.agents.calling import AgentCall, AgentModel, AsyncHandler, Bridge, Handler, ToolsWantedError
from ilis_guard_langchain.agents.reviewing import (
    THREAD_LABEL,
    GuardedState,
    Reviewed,
    Waiting,
    held,
    held_as_on,
    reviewed,
)
from ilis_guard_langchain.agents.transcript import transcript
from ilis_guard_langchain.calls import in_a_thread
from ilis_guard_langchain.chat import ChatIlisGuard
from ilis_guard_langchain.telling import KEY, told
from ilis_guard_langchain.tracing import trace_attempts

_END: Final = {"jump_to": "end"}
"""For an agent that would ask its model again for want of a structured answer."""

LabelsOf = Callable[[ModelRequest[Any]], Labels]


class IlisGuardMiddleware(AgentMiddleware[GuardedState, Any, Any]):
    """A guard in an agent: ``create_agent(model, middleware=[IlisGuardMiddleware(guard)])``.

    The agent's model stands in the place of the guard's first tier. Where the policy says `retry`, a larger tier that
    is a chat model is asked in the agent's place, with its tools; any other answers the conversation by itself. Calls
    that ask for tools pass. An escalated answer is a ticket in the guard's queue and an interrupt of the graph, and a
    verdict given to either ends both.

    Args:
        guard: what decides.
        labels: what the policy's conditions see as ``labels.NAME``, or what makes that of a model call.

    Raises:
        ConfigError: the guard's queue takes no verdicts.
    """

    state_schema = GuardedState

    def __init__(self, guard: Guard, *, labels: Labels | LabelsOf | None = None) -> None:
        super().__init__()
        if not isinstance(guard.review, ReviewQueue | None):
            raise ConfigError(f"an agent waits for verdicts in a ReviewQueue, got a {type(guard.review).__name__}")
        self._guard = guard
        self._with_agent: Guard | None = None
        self._queue = guard.review
        self._labels = labels or {}

    def wrap_model_call(self, request: ModelRequest[Any], handler: Handler) -> ExtendedModelResponse[Any]:
        """Let the model answer, and do with the answer what the policy says.

        Raises:
            RequestError: the agent's messages are no conversation that a guard takes, or the labels can't be used.
        """
        return self._guarded(request, handler)

    async def awrap_model_call(self, request: ModelRequest[Any], handler: AsyncHandler) -> ExtendedModelResponse[Any]:
        """As `wrap_model_call`; the event loop goes on meanwhile, and a call that is cancelled ends the model's."""
        bridge = Bridge(handler)
        try:
            return await in_a_thread(partial(self._guarded, request, bridge))
        finally:
            bridge.give_up()

    @hook_config(can_jump_to=["end"])
    def after_model(self, state: GuardedState, runtime: Runtime[Any]) -> dict[str, Any] | None:  # noqa: ARG002 - LangChain's
        """Wait for the verdict on an escalated answer, with an interrupt, and put in its place what becomes of it.

        Raises:
            ReviewError: the queue failed; going on with the thread tries again.
        """
        waiting = state.get("ilis_guard_waiting")
        if waiting is None:
            is_abstention = _about(state["messages"][-1]).get("action") == Action.ABSTAIN
            return _END if is_abstention and "structured_response" in state else None
        assert self._queue is not None, "only a guard with a queue escalates"
        return _outcome(state, waiting, reviewed(self._queue, waiting["ticket"]))

    async def aafter_model(self, state: GuardedState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """As `after_model`, in a thread: the queue blocks."""
        return await asyncio.to_thread(self.after_model, state, runtime)

    def _guarded(self, request: ModelRequest[Any], handler: Handler) -> ExtendedModelResponse[Any]:
        config = get_config()
        decision = _decision_id(config)
        if (record := self._escalated_before(decision)) is not None:
            return _left_waiting(_message(record.say, _told_on(record), config), held_as_on(record))
        call = AgentCall(handler, request)
        system = [] if request.system_message is None else [request.system_message]
        conversation = transcript([*system, *request.messages])
        try:
            with call.going_on():
                made = self._guard_of(request.model).decide(
                    conversation,
                    labels=self._labels_of(request, config),
                    stop=(self._is_own(request.model) and request.model.stop) or (),
                    id=decision,
                )
        except ToolsWantedError as wanted:
            return _answered(wanted.response)
        trace_attempts(made, config)
        if made.mode == "shadow" and (before := _as_before(call, made)) is not None:
            return _answered(_stamped(before, told(made)))
        if made.action is Action.ANSWER:
            return _answered(_stamped(_response(call, made.attempts[-1]), told(made)))
        message = _message(made.text, told(made), config)
        if made.action is Action.ABSTAIN:
            return _answered(ModelResponse(result=[message]))
        return _left_waiting(message, _waiting(call, made))

    def _escalated_before(self, decision: str) -> TicketRecord | None:
        """The ticket of this very call, where the program ended before the agent's state knew of it."""
        record = None if self._queue is None else self._queue.of_decision(decision)
        return record if record is not None and record.ticket.kind == "escalated" else None

    def _guard_of(self, model: BaseChatModel) -> Guard:
        """The guard with the agent in its tiers' places; where the agent's model is the guard, the guard itself."""
        if self._is_own(model):
            return self._guard
        if self._with_agent is None:
            first, *larger = self._guard.tiers
            stands_in = self._guard.with_model(first.name, AgentModel(first.name, None))
            for tier in larger:
                if isinstance(tier.model, RemoteModel):
                    stands_in = stands_in.with_model(tier.name, AgentModel(tier.name, tier.model.chat))
            self._with_agent = stands_in
        return self._with_agent

    def _is_own(self, model: BaseChatModel) -> TypeGuard[ChatIlisGuard]:
        return isinstance(model, ChatIlisGuard) and model.guard is self._guard

    def _labels_of(self, request: ModelRequest[Any], config: RunnableConfig) -> Labels:
        labels = self._labels(request) if callable(self._labels) else self._labels
        if self._is_own(request.model):
            labels = {**request.model.labels, **labels}
        thread = config["configurable"].get("thread_id")
        return labels if thread is None else {**labels, THREAD_LABEL: str(thread)}


def _decision_id(config: RunnableConfig) -> str:
    """The same when the graph comes to this call again, after a crash for instance: it is made of the task's own id."""
    place = config["configurable"]
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{place.get('thread_id')} {place['checkpoint_ns']}").hex


def _response(call: AgentCall, attempt: Attempt) -> ModelResponse[Any]:
    """An attempt's answer as the agent has it; of a tier that answered by itself, its text."""
    return call.answers.get(attempt.tier) or ModelResponse(result=[AIMessage(attempt.text)])


def _as_before(call: AgentCall, made: Decision) -> ModelResponse[Any] | None:
    """What the agent's model said, a refusal too; None where the agent made no call.

    Raises:
        Exception: the model's own, as without a guard.
    """
    response = call.answers.get(made.attempts[-1].tier)
    if response is None and call.error is not None:
        raise call.error
    return response


def _waiting(call: AgentCall, made: Decision) -> Waiting:
    assert made.ticket is not None, "an escalation has a ticket"
    proposed = next((attempt for attempt in reversed(made.attempts) if attempt.text.strip()), None)
    if proposed is None:
        return held(made.ticket.id, "")
    response = _response(call, proposed)
    return Waiting(
        ticket=made.ticket.id,
        text=proposed.text,
        messages=[*response.result],  # type: ignore[list-item]  # LangChain's two words for a message
        structured_response=response.structured_response,
    )


def _answered(response: ModelResponse[Any]) -> ExtendedModelResponse[Any]:
    """Nothing waits; nor does any more what an earlier turn left."""
    return ExtendedModelResponse(response, Command(update={"ilis_guard_waiting": None}))


def _left_waiting(message: AIMessage, waiting: Waiting) -> ExtendedModelResponse[Any]:
    return ExtendedModelResponse(ModelResponse(result=[message]), Command(update={"ilis_guard_waiting": waiting}))


def _message(text: str, about: dict[str, Any], config: RunnableConfig) -> AIMessage:
    """What the agent says where no model's answer goes out."""
    return AIMessage(text, name=config["metadata"].get("lc_agent_name"), response_metadata={KEY: about})


def _stamped(response: ModelResponse[Any], about: dict[str, Any]) -> ModelResponse[Any]:
    messages = [_told_of(message, about) for message in response.result]
    return ModelResponse(result=messages, structured_response=response.structured_response)


def _told_of(message: BaseMessage, about: dict[str, Any]) -> BaseMessage:
    """The same message, with word of the decision where a model, or a person in its place, said it."""
    if not isinstance(message, AIMessage):
        return message
    return message.model_copy(update={"response_metadata": {**message.response_metadata, KEY: about}})


def _named(message: AnyMessage, name: str | None) -> AnyMessage:
    return message if message.name else message.model_copy(update={"name": name})


def _told_on(record: TicketRecord) -> dict[str, Any]:
    """As `told`, of an escalation of which only the ticket is left."""
    last = record.attempts[-1]
    return {
        "id": record.decision,
        "action": Action.ESCALATE.value,
        "rule": record.rule,
        "uncertainty": last["uncertainty"],
        "rulings": [ruling.for_callers() for ruling in record.rulings],
        "errors": [],
        "tier": last["tier"],
        "ticket": record.ticket.id,
        "cost": sum(attempt["cost"] for attempt in record.attempts),
        "policy": record.policy,
    }


def _about(message: AnyMessage) -> dict[str, Any]:
    """What a message tells of its decision; nothing where it has none."""
    about: dict[str, Any] = message.response_metadata.get(KEY, {})
    return about


def _outcome(state: GuardedState, waiting: Waiting, review: Reviewed) -> dict[str, Any]:
    """The agent's state once a person has decided: what goes out takes the place of what was said meanwhile."""
    record = review.record
    about = {**_told_on(record), "verdict": review.told()}
    let_out = review.let_out(waiting) or held(record.ticket.id, record.say)
    meanwhile = [message for message in state["messages"] if _about(message).get("ticket") == record.ticket.id]
    name = meanwhile[0].name if meanwhile else None
    # A new message, not the same one with another text: whoever streams messages is shown only those.
    messages = [
        *(RemoveMessage(id=str(message.id)) for message in meanwhile),
        *(_told_of(_named(message, name), about) for message in let_out["messages"]),
    ]
    structured = let_out["structured_response"]
    update = {"messages": messages, "ilis_guard_waiting": None}
    if "structured_response" not in state:
        return update
    return {**update, "structured_response": structured, **({} if structured else _END)}
