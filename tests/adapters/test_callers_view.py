"""Callers see errors by kind: no stranger's exception text, path, host or key reaches messages, events or traces."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import orjson
import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.tracers.schemas import Run
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from ilis_guard import Generation, Guard, Message, Policy, Tier
from ilis_guard.errors import QueueStorageError
from ilis_guard.models.remote import RemoteModel
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard_langchain import ChatIlisGuard, GuardRunnable, IlisGuardMiddleware, wrap
from ilis_guard_langchain.tracing import feedback
from tests.adapters.agents import ScriptedChat

KEY, HOST, PATH = "sk-live-4711", "db.internal.example", "/srv/secrets/queue.db"
POLICY = """
version: 1
name: escalating
rules:
  - {id: failed, when: 'error != ""', do: escalate, say: A colleague will answer.}
  - {id: rest, do: escalate, say: A colleague will answer.}
"""
QUESTION = "Capital of Norway?"
OWN_RUNS = {"ScriptedChat", "function"}
"""Runs of the wrapped things themselves, where LangChain shows their errors as it does without a guard."""


class BrokenQueue(InMemoryQueue):
    """A queue whose storage fails with words of its own."""

    def escalate(self, **_: Any) -> Any:
        raise QueueStorageError(f"the database {PATH} on {HOST} refused the password {KEY}")


class EventSpy(BaseCallbackHandler):
    """Keeps the data of custom events, and the outputs of failed attempts, which tracers don't keep."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:  # noqa: ARG002 - LangChain's signature
        self.events.append(data)

    def on_chain_error(self, error: BaseException, **about: Any) -> None:  # noqa: ARG002 - as above
        self.events.append(about.get("outputs"))


def failing_chat() -> ScriptedChat:
    """A provider's client that quotes the key, the host and the path of its configuration."""
    return ScriptedChat(replies=[ValueError(f"401 from https://{HOST}: wrong API key {KEY} (read from {PATH})")] * 9)


class OwnModel:
    """A user's own model, which raises whatever its provider's client does."""

    fingerprint = None

    def __init__(self, chat: ScriptedChat) -> None:
        self._chat = chat

    def generate(self, messages: Sequence[Message]) -> Generation:
        text = str(self._chat.invoke(messages[-1].content).content)
        return Generation(text=text, tokens=1, prompt_tokens=1, finish_reason="stop", seconds=0.0)


def guard_of(review: InMemoryQueue, model: Any = None) -> Guard:
    tier = Tier(name="small", model=model or FakeModel("Oslo"), scorer=FixedScorer(0.5))
    return Guard(tiers=[tier], policy=Policy.parse(POLICY), review=review)


Entrance = Callable[[InMemoryQueue, ScriptedChat], Any]


def agent(queue: InMemoryQueue, model: ScriptedChat) -> Any:
    made: Any = create_agent(model, middleware=[IlisGuardMiddleware(guard_of(queue))], checkpointer=InMemorySaver())
    return RunnableLambda(lambda question: {"messages": [("user", question)]}).with_config(run_name="input") | made


ENTRANCES: dict[str, Entrance] = {
    "chat model": lambda queue, model: ChatIlisGuard(guard=guard_of(queue, RemoteModel(model))),
    "chat model of an own model": lambda queue, model: ChatIlisGuard(guard=guard_of(queue, OwnModel(model))),
    "wrapped model": lambda queue, model: wrap(model, guard_of(queue)),
    "wrapped chain": lambda queue, model: wrap(model | JsonOutputParser(), guard_of(queue)),
    "wrapped function": lambda queue, model: wrap(RunnableLambda(model.invoke, name="function"), guard_of(queue)),
    "agent": agent,
}


def visible(value: Any) -> str:
    """A value as LangSmith serializes it: the fields of data classes, models and objects."""

    def default(each: Any) -> Any:
        return each.model_dump() if isinstance(each, BaseModel) else repr(each)

    return orjson.dumps(value, default=default, option=orjson.OPT_NON_STR_KEYS).decode()


def guards_runs(run: Run) -> Iterator[Run]:
    if run.name not in OWN_RUNS:
        yield run
    for child in run.child_runs:
        yield from guards_runs(child)


def invoke(runnable: Any, config: RunnableConfig) -> Awaitable[Any]:
    async def run() -> Any:
        return runnable.invoke(QUESTION, config)

    return run()


def ainvoke(runnable: Any, config: RunnableConfig) -> Awaitable[Any]:
    return runnable.ainvoke(QUESTION, config)  # type: ignore[no-any-return]


def stream(runnable: Any, config: RunnableConfig) -> Awaitable[Any]:
    async def run() -> Any:
        return [chunk async for chunk in runnable.astream(QUESTION, config)]

    return run()


@pytest.mark.parametrize("how", [invoke, ainvoke, stream])
@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("queue", [InMemoryQueue, BrokenQueue])
@pytest.mark.parametrize("fails", [True, False])
async def test_neither_outputs_nor_events_nor_traces_quote_strangers(
    entrance: str, queue: type[InMemoryQueue], how: Any, fails: bool
) -> None:
    collector, spy = RunCollectorCallbackHandler(), EventSpy()
    config: RunnableConfig = {"callbacks": [collector, spy], "configurable": {"thread_id": "one"}}
    with queue() as review:
        model = failing_chat() if fails else ScriptedChat(replies=['{"capital": "Oslo"}'] * 9)
        output = await how(ENTRANCES[entrance](review, model), config)
    (root,) = collector.traced_runs
    runs = [(run.name, run.outputs, run.error, run.extra, run.events) for run in guards_runs(root)]
    seen = visible([output, spy.events, runs])
    for secret in (KEY, HOST, PATH):
        assert secret not in seen
    model_error = "UnexpectedError" if "own model" in entrance else "ModelError"
    assert (model_error in seen) == fails
    assert ("QueueStorageError" in seen) == (queue is BrokenQueue)


def test_a_decision_is_whole_and_its_metadata_are_the_callers_view() -> None:
    with BrokenQueue() as review:
        decision = GuardRunnable(guard_of(review, RemoteModel(failing_chat()))).invoke(QUESTION)
        message = ChatIlisGuard(guard=guard_of(review, RemoteModel(failing_chat()))).invoke(QUESTION)
    assert decision.ticket_error is not None
    assert PATH in decision.ticket_error.detail
    summary = message.response_metadata["ilis_guard"]
    assert summary["errors"] == [{"kind": "ModelError", "message": "The model gave no answer."}]
    assert summary["ticket_error"] == {
        "kind": "QueueStorageError",
        "message": "The request could not be put before a person.",
    }
    assert KEY not in visible(feedback(decision, "run"))
