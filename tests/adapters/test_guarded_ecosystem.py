"""A guarded runnable behaves in LangChain as any runnable does."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda
from langgraph.graph import END, START, StateGraph, add_messages
from typing_extensions import TypedDict

from ilis_guard import Decision
from ilis_guard.errors import RequestError
from ilis_guard_langchain import GuardedRunnable, Refused, wrap
from tests.adapters.guards import ABSTAIN, PROMPT, RETRY, chain_of, chat, guard_of

NORWAY = {"country": "Norway"}


class Spy(BaseCallbackHandler):
    """Keeps the runs that it sees begin and end."""

    def __init__(self) -> None:
        self.runs: dict[UUID, dict[str, Any]] = {}

    def on_chain_start(self, *_: Any, run_id: UUID, **told: Any) -> None:
        self.runs[run_id] = told

    def on_chat_model_start(self, *_: Any, run_id: UUID, **told: Any) -> None:
        self.runs[run_id] = {**told, "name": "model"}

    def named(self, name: str) -> list[dict[str, Any]]:
        return [run for run in self.runs.values() if run["name"] == name]


async def test_ainvoke_awaits_coroutine_functions() -> None:
    loops: list[Any] = []

    async def ask(question: str) -> str:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return f"answer to {question}"

    assert await wrap(RunnableLambda(ask), guard_of()).ainvoke("q") == "answer to q"
    assert loops == [asyncio.get_running_loop()]


def test_a_batch_keeps_its_order() -> None:
    wrapped = wrap(
        PROMPT | RunnableLambda(lambda given: given.to_messages()[-1].content).with_types(output_type=str),
        guard_of(),
        prompt=lambda given: given["country"],
    )
    found = wrapped.batch([{"country": str(number)} for number in range(20)], {"max_concurrency": 4})
    assert found == [f"Capital of {number}?" for number in range(20)]


async def test_a_large_async_batch_gets_through_models_that_use_the_loops_pool() -> None:
    """Were the guard's own threads taken from that pool, all of it would wait for itself."""
    wrapped = wrap(chain_of(chat("Bergen")), guard_of(RETRY))
    async with asyncio.timeout(60):
        assert await wrapped.abatch([NORWAY] * 100) == ["Oslo, surely"] * 100


async def test_an_async_batch_respects_max_concurrency() -> None:
    running, most = 0, 0

    async def ask(question: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return question

    wrapped = wrap(RunnableLambda(ask), guard_of())
    questions = [str(number) for number in range(12)]
    assert await wrapped.abatch(questions, {"max_concurrency": 3}) == questions
    assert most == 3


def test_a_batch_returns_errors_on_request() -> None:
    good, bad = wrap(chat(), guard_of()).batch(["q", ""], return_exceptions=True)
    assert good.content == "Oslo"
    assert isinstance(bad, RequestError)


@pytest.mark.parametrize("uncertainty", [RETRY, ABSTAIN])
async def test_a_stream_is_one_chunk_after_the_decision(uncertainty: float) -> None:
    wrapped = wrap(chain_of(chat("Bergen")), guard_of(uncertainty))
    expected = wrapped.invoke(NORWAY)
    assert list(wrapped.stream(NORWAY)) == [expected]
    assert [piece async for piece in wrapped.astream(NORWAY)] == [expected]


async def test_a_streamed_message_is_a_chunk_with_the_decision() -> None:
    usage: Any = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    wrapped = wrap(chat(AIMessage("Oslo", usage_metadata=usage)), guard_of())
    for pieces in (list(wrapped.stream("q")), [piece async for piece in wrapped.astream("q")]):
        (piece,) = pieces
        assert isinstance(piece, AIMessageChunk)
        assert (piece.content, piece.usage_metadata) == ("Oslo", usage)
        assert piece.response_metadata["ilis_guard"]["action"] == "answer"


async def test_a_stream_may_come_in_and_go_on() -> None:
    def pieces() -> Iterator[str]:
        yield from ("Capital of ", "Norway?")

    async def apieces() -> AsyncIterator[str]:
        for piece in pieces():
            yield piece

    model = chat()
    wrapped = wrap(model, guard_of())
    assert [piece.content for piece in wrapped.transform(pieces())] == ["Oslo"]
    assert [piece.content async for piece in wrapped.atransform(apieces())] == ["Oslo"]
    assert [turns[0].content for turns in model.asked] == ["Capital of Norway?"] * 2
    assert list((wrapped | (lambda message: message.content.upper())).stream("q")) == ["OSLO"]


async def test_events_show_the_runs_inside_and_the_decision() -> None:
    wrapped = wrap(chain_of(chat("Bergen")), guard_of(RETRY)).with_config(run_name="capitals")
    events = [event async for event in wrapped.astream_events(NORWAY, version="v2")]
    assert (events[0]["event"], events[0]["name"]) == ("on_chain_start", "capitals")
    assert (events[-1]["event"], events[-1]["data"]["output"]) == ("on_chain_end", "Oslo, surely")
    mine = [event for event in events if event["name"] == "capitals" and event["event"] == "on_chain_stream"]
    assert [event["data"]["chunk"] for event in mine] == ["Oslo, surely"]
    (told,) = [event for event in events if event["event"] == "on_custom_event"]
    assert (told["name"], dict(told["data"])["tier"]) == ("ilis_guard.decision", "large")
    assert told["run_id"] == events[0]["run_id"]
    ended = [event for event in events if event["event"] == "on_chain_end" and event["name"] == "ilis_guard.attempt"]
    assert [event["data"]["output"]["uncertainty"] for event in ended] == [RETRY, 0.1]


def test_langgraph_streams_no_token_before_the_decision() -> None:
    class State(TypedDict):
        messages: Annotated[list[Any], add_messages]

    before = FakeListChatModel(responses=["a question made by a model"]) | StrOutputParser()
    wrapped = wrap(before | chat("Bergen"), guard_of(RETRY))

    def node(state: State, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": [wrapped.invoke(state["messages"], config)]}

    graph = StateGraph(State)
    graph.add_node("ask", node)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    shown = graph.compile().stream({"messages": [("human", "q")]}, stream_mode="messages")
    assert [piece[0].content for piece in shown if isinstance(piece, tuple)] == ["Oslo, surely"]


def test_inner_runs_are_children_with_the_callers_tags_and_metadata() -> None:
    spy, mine = Spy(), uuid4()
    config: RunnableConfig = {
        "callbacks": [spy],
        "run_id": mine,
        "run_name": "capitals",
        "tags": ["test"],
        "metadata": {"user": "7"},
    }
    wrap(chain_of(chat()), guard_of()).invoke(NORWAY, config)
    assert spy.runs[mine]["name"] == "capitals"
    assert spy.runs[mine]["parent_run_id"] is None
    for name in ("ChatPromptTemplate", "model", "StrOutputParser", "ilis_guard.attempt"):
        (run,) = spy.named(name)
        assert run["parent_run_id"] == mine
        assert "test" in run["tags"]
        assert run["metadata"]["user"] == "7"


def test_a_guarded_runnable_is_a_child_of_the_outer_chain() -> None:
    spy = Spy()
    (wrap(chain_of(chat()), guard_of()) | RunnableLambda(str.upper)).invoke(NORWAY, {"callbacks": [spy]})
    (outer,) = [run_id for run_id, run in spy.runs.items() if run["parent_run_id"] is None]
    assert spy.named("GuardedRunnable")[0]["parent_run_id"] == outer


def test_a_refusal_is_a_value_that_retries_and_fallbacks_leave_alone() -> None:
    model = chat()
    wrapped = wrap(chain_of(model), guard_of(ABSTAIN))
    assert wrapped.with_retry().invoke(NORWAY) == "I don't know."
    assert wrapped.with_fallbacks([RunnableLambda(lambda _: "swallowed")]).invoke(NORWAY) == "I don't know."
    assert len(model.asked) == 2


def test_keywords_reach_the_chain() -> None:
    model = chat()
    wrap(model, guard_of()).bind(stop=["\n"]).invoke("q", seed=1)
    assert model.options == [{"stop": ["\n"], "seed": 1}]


def test_fields_stay_configurable() -> None:
    model = FakeListChatModel(responses=["Bergen"]).configurable_fields(responses=ConfigurableField(id="responses"))
    wrapped = wrap(chain_of(model), guard_of(), reports_endings=False)
    assert (
        "responses"
        in wrapped.config_schema(include=["configurable"]).model_json_schema()["$defs"]["Configurable"]["properties"]
    )
    assert wrapped.with_config(configurable={"responses": ["Oslo"]}).invoke(NORWAY) == "Oslo"


def test_schemas_are_those_of_the_chain() -> None:
    chain = chain_of(chat())
    wrapped = wrap(chain, guard_of())
    assert wrapped.get_input_jsonschema() == chain.get_input_jsonschema()
    assert wrapped.get_output_jsonschema() == chain.get_output_jsonschema()
    assert (wrapped.InputType, wrapped.OutputType) == (chain.InputType, str)
    assert wrap(chain, guard_of(), output="decision").OutputType is Decision
    assert Refused in wrap(PROMPT | chat() | JsonOutputParser(), guard_of()).OutputType.__args__


def test_the_graph_shows_the_chain_and_then_the_guard() -> None:
    wrapped = wrap(chain_of(chat()), guard_of())
    graph = wrapped.get_graph()
    assert [node.name for node in graph.nodes.values()] == [
        "PromptInput",
        "ChatPromptTemplate",
        "Chat",
        "StrOutputParser",
        "GuardedRunnable",
        "StrOutputParserOutput",
    ]
    names = {key: node.name for key, node in graph.nodes.items()}
    drawn = [(names[edge.source], names[edge.target]) for edge in graph.edges]
    assert drawn[-2:] == [("StrOutputParser", "GuardedRunnable"), ("GuardedRunnable", "StrOutputParserOutput")]
    assert "GuardedRunnable" in (PROMPT | wrap(chat(), guard_of())).get_graph().draw_mermaid()


def test_a_guarded_runnable_has_a_name() -> None:
    assert wrap(chat(), guard_of()).get_name() == "GuardedRunnable"


def test_a_guarded_runnable_is_not_serialized() -> None:
    wrapped = wrap(chat(), guard_of())
    assert dumpd(wrapped)["type"] == "not_implemented"


async def test_calls_at_once_never_mix() -> None:
    seen: set[int] = set()

    def ask(question: str) -> str:
        seen.add(threading.get_ident())
        return f"answer to {question}"

    wrapped: GuardedRunnable = wrap(RunnableLambda(ask), guard_of())
    questions = [f"q{number}" for number in range(30)]
    found = await asyncio.gather(*(asyncio.to_thread(wrapped.invoke, question) for question in questions))
    assert found == [f"answer to {question}" for question in questions]
    assert len(seen) > 1
