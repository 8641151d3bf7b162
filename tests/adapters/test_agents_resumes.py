"""A graph that is resumed with anything but a verdict asks again, says what was wrong, and never blocks its thread."""

import operator
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from ilis_guard.testing import InMemoryQueue
from ilis_guard.types import Verdict
from ilis_guard_langchain import IlisGuardMiddleware
from tests.adapters.agents import ScriptedChat, guarding

ASKED: Any = {"messages": [("user", "How is the weather in Oslo?")]}
ONE: RunnableConfig = {"configurable": {"thread_id": "one"}}
ACCEPT: Any = Command(resume={"verdict": "accept", "reviewer": "ana"})
UNKNOWN_ID = "0123456789abcdef" * 2

NO_MAPPINGS = ["accept", "", [], [{"verdict": "accept"}], 0, True, False, 3.5, b"accept", float("nan")]
OTHER_MAPPINGS: list[tuple[Any, str]] = [
    ({"verdict": "fine"}, "'verdict': Input should be 'accept', 'correct' or 'reject'"),
    ({"verdict": "ACCEPT"}, "'verdict': Input should be"),
    ({"verdict": None}, "'verdict': Input should be"),
    ({"verdict": ["accept"]}, "'verdict': Input should be"),
    ({"answer": "accept"}, "'verdict': Field required"),
    ({"verdict": "accept", "by": "ana"}, "'by': Extra inputs are not permitted"),
    ({"verdict": "accept", "k" * 5000: "ana"}, f"'{'k' * 59}...: Extra inputs are not permitted"),
    ({"verdict": "accept", "version": "1"}, "'version': Input should be a valid integer"),
    ({"verdict": "accept", "version": 9}, "has version 1, and the verdict is on version 9"),
    ({"verdict": "accept", "text": "12 degrees."}, "takes no text"),
    ({"verdict": "accept", "reviewer": "x" * 101}, "'reviewer': String should have at most 100 characters"),
    ({"verdict": "correct"}, "needs the right answer as its text, which is empty"),
    ({"verdict": "correct", "text": " \n"}, "needs the right answer as its text, which is empty"),
    ({"verdict": "correct", "text": "\u200b\ufeff"}, "needs the right answer as its text, which is empty"),
    ({"verdict": "correct", "text": None}, "'text': Input should be a valid string"),
    ({"verdict": "correct", "text": 12}, "'text': Input should be a valid string"),
    ({"verdict": "correct", "text": ["12"]}, "'text': Input should be a valid string"),
    ({"verdict": "correct", "text": "12\0"}, "'text': String should match pattern"),
    ({"verdict": "correct", "text": "\ud800"}, "'text': Input should be a valid string"),
]


@pytest.fixture
def queue() -> Iterator[InMemoryQueue]:
    with InMemoryQueue() as made:
        yield made


def agent_of(queue: InMemoryQueue) -> tuple[Any, ScriptedChat]:
    chat = ScriptedChat(replies=["Mild."])
    return create_agent(
        chat, middleware=[IlisGuardMiddleware(guarding(queue, 0.5))], checkpointer=InMemorySaver()
    ), chat


def refused(state: Any) -> str:
    (pending,) = state["__interrupt__"]
    assert pending.value["proposed"] == "Mild."
    return str(pending.value["refused"])


def text(state: Any) -> str:
    assert "__interrupt__" not in state
    return str(state["messages"][-1].content)


@pytest.mark.parametrize("given", NO_MAPPINGS, ids=repr)
def test_what_is_no_mapping_is_asked_again(queue: InMemoryQueue, given: Any) -> None:
    agent, chat = agent_of(queue)
    agent.invoke(ASKED, ONE)
    why = refused(agent.invoke(Command(resume=given), ONE))
    assert why.startswith('this waits for a verdict, resume it with {"verdict": "accept"}')
    assert why.endswith(f"got {type(given).__name__!r}")
    assert [ticket.state for ticket in queue.list()] == ["open"]
    assert text(agent.invoke(ACCEPT, ONE)) == "Mild."
    assert len(chat.calls) == 1


@pytest.mark.parametrize(("given", "why"), OTHER_MAPPINGS)
@pytest.mark.parametrize("is_async", [False, True])
async def test_what_is_no_verdict_is_asked_again(queue: InMemoryQueue, given: Any, why: str, is_async: bool) -> None:
    agent, _ = agent_of(queue)
    agent.invoke(ASKED, ONE)
    resume: Any = Command(resume=given)
    assert why in refused(await agent.ainvoke(resume, ONE) if is_async else agent.invoke(resume, ONE))
    assert [ticket.state for ticket in queue.list()] == ["open"]
    assert text(agent.invoke(ACCEPT, ONE)) == "Mild."


def test_no_value_that_was_refused_returns(queue: InMemoryQueue) -> None:
    agent, _ = agent_of(queue)
    agent.invoke(ASKED, ONE)
    for given in ("accept", {"verdict": "correct", "text": ""}, ["accept"]):
        assert refused(agent.invoke(Command(resume=given), ONE))
    # Asked for the state alone, it has no reason of an earlier answer's.
    assert text(agent.invoke(Command(resume={"verdict": "correct", "text": "12 degrees."}), ONE)) == "12 degrees."
    (ticket,) = queue.list()
    assert [event.type for event in queue.get(ticket.id).history] == ["created", "resolved"]


@pytest.mark.parametrize("given", [{}, {UNKNOWN_ID: {"verdict": "accept"}}])
def test_a_resume_of_no_pending_interrupt_is_asked_again(queue: InMemoryQueue, given: Any) -> None:
    agent, _ = agent_of(queue)
    agent.invoke(ASKED, ONE)
    assert refused(agent.invoke(Command(resume=given), ONE)) == ""
    assert text(agent.invoke(ACCEPT, ONE)) == "Mild."


@pytest.mark.parametrize("given", [None, {1: 2}, {"\ud800": 1}, object()], ids=["none", "numbered", "half", "object"])
def test_what_langgraph_itself_refuses_blocks_nothing(queue: InMemoryQueue, given: Any) -> None:
    agent, _ = agent_of(queue)
    agent.invoke(ASKED, ONE)
    with pytest.raises((UnboundLocalError, TypeError)):  # LangGraph's own, before the guard is asked
        agent.invoke(Command(resume=given), ONE)
    assert text(agent.invoke(ACCEPT, ONE)) == "Mild."


@pytest.mark.parametrize("given", ["accept", [], {"verdict": "correct", "text": 12}])
def test_a_resume_of_another_shape_comes_too_late_for_a_ticket_that_has_ended(queue: InMemoryQueue, given: Any) -> None:
    agent, _ = agent_of(queue)
    agent.invoke(ASKED, ONE)
    (ticket,) = queue.list()
    queue.resolve(ticket.id, Verdict.CORRECT, text="12 degrees.", reviewer="ben")
    done = agent.invoke(Command(resume=given), ONE)
    assert text(done) == "12 degrees."
    assert "overruled" not in done["messages"][-1].response_metadata["ilis_guard"]["verdict"]


class Both(TypedDict):
    """The answers of two agents that work at once."""

    said: Annotated[list[str], operator.add]


def said_by(agent: Any, _: Both) -> dict[str, list[str]]:
    return {"said": [text(agent.invoke(ASKED))]}


@pytest.mark.parametrize("given", ["accept", None, {"verdict": "correct", "text": 12}])
def test_of_several_interrupts_only_the_misanswered_one_is_asked_again(queue: InMemoryQueue, given: Any) -> None:
    graph: Any = StateGraph(Both)
    for name in ("left", "right"):
        chat = ScriptedChat(replies=[f"{name}'s"])
        agent = create_agent(chat, middleware=[IlisGuardMiddleware(guarding(queue, 0.5))])
        graph.add_node(name, partial(said_by, agent))
        graph.add_edge(START, name)
    graph = graph.compile(checkpointer=InMemorySaver())
    paused = graph.invoke({"said": []}, ONE)
    ids = {one.value["proposed"]: one.id for one in paused["__interrupt__"]}
    halfway = graph.invoke(Command(resume={ids["left's"]: given, ids["right's"]: {"verdict": "accept"}}), ONE)
    (again,) = halfway["__interrupt__"]
    assert again.value["proposed"] == "left's"
    assert "this waits for a verdict" in again.value["refused"]
    done = graph.invoke(Command(resume={again.id: {"verdict": "correct", "text": "ours"}}), ONE)
    assert sorted(done["said"]) == ["ours", "right's"]
    assert sorted(str(ticket.verdict) for ticket in queue.list()) == ["accept", "correct"]


def test_clients_still_get_the_shape_of_a_verdict(queue: InMemoryQueue) -> None:
    agent, _ = agent_of(queue)
    (pending,) = agent.invoke(ASKED, ONE)["__interrupt__"]
    assert set(pending.response_schema["properties"]) == {"verdict", "text", "reason", "reviewer", "version"}
    assert pending.response_schema["required"] == ["verdict"]
