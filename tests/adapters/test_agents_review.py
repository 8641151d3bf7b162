"""An escalated answer waits in its graph and in the queue; a verdict given to either ends both, once."""

import operator
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command
from pydantic import BaseModel

from ilis_guard import ReviewQueue
from ilis_guard.config.review import QueueSettings
from ilis_guard.errors import QueueStorageError, ReviewError, TicketNotFoundError, TicketResolvedError
from ilis_guard.testing import InMemoryQueue
from ilis_guard.types import Verdict
from ilis_guard_langchain import IlisGuardMiddleware, thread_of
from tests.adapters.agents import ScriptedChat, guarding, tool_call
from tests.reviewing import Clock, put

ASKED: Any = {"messages": [("user", "How is the weather in Oslo?")]}
MEANWHILE = "A person will look at it."


def thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}}


ONE = thread("one")


@pytest.fixture
def queue() -> Iterator[InMemoryQueue]:
    with InMemoryQueue(queues=[QueueSettings(name="default", due=60.0)], clock=Clock()) as made:
        yield made


def agent_of(
    queue: ReviewQueue, *replies: Any, saver: BaseCheckpointSaver[Any] | None = None, **options: Any
) -> tuple[Any, ScriptedChat]:
    """An agent that is never sure, and its model."""
    chat = ScriptedChat(replies=list(replies or ["Mild."]))
    middleware = [IlisGuardMiddleware(guarding(queue, 0.5))]
    made = create_agent(chat, middleware=middleware, checkpointer=saver or InMemorySaver(), **options)
    return made, chat


def text(state: Any) -> str:
    return str(state["messages"][-1].content)


def verdict_in(state: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", state["messages"][-1].response_metadata["ilis_guard"]["verdict"])


def asked(state: Any) -> dict[str, Any]:
    (pending,) = state["__interrupt__"]
    return cast("dict[str, Any]", pending.value)


def test_an_escalated_answer_is_a_ticket_an_interrupt_and_a_message(queue: ReviewQueue) -> None:
    agent, _ = agent_of(queue)
    paused = agent.invoke(ASKED, ONE)
    (ticket,) = queue.list()
    question = asked(paused)
    assert (question["ticket"], question["proposed"], question["refused"]) == (ticket.id, "Mild.", "")
    assert question["question"] == "How is the weather in Oslo?"
    assert text(paused) == MEANWHILE
    assert "ilis_guard_pending" not in paused
    assert queue.get(ticket.id).request["labels"] == {"thread_id": "one"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"verdict": "accept"}, "Mild."),
        ({"verdict": "correct", "text": "12 degrees."}, "12 degrees."),
        ({"verdict": "reject", "reason": "it snows"}, MEANWHILE),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_verdict_given_to_the_graph_resolves_the_ticket(
    queue: ReviewQueue, given: dict[str, str], said: str, is_async: bool
) -> None:
    agent, chat = agent_of(queue, name="forecaster")
    resume: Any = Command(resume={"reviewer": "ana", **given})
    if is_async:
        await agent.ainvoke(ASKED, ONE)
        done = await agent.ainvoke(resume, ONE)
    else:
        agent.invoke(ASKED, ONE)
        done = agent.invoke(resume, ONE)
    (ticket,) = queue.list()
    record = queue.get(ticket.id)
    assert (ticket.state, ticket.verdict, ticket.text) == ("resolved", given["verdict"], given.get("text", ""))
    assert (record.reviewer, ticket.reason) == ("ana", given.get("reason", ""))
    assert [message.content for message in done["messages"]] == ["How is the weather in Oslo?", said]
    assert done["messages"][-1].name == "forecaster"
    assert verdict_in(done) == {
        "state": "resolved",
        "verdict": given["verdict"],
        "reason": given.get("reason", ""),
        "reviewer": "ana",
    }
    assert len(chat.calls) == 1


@pytest.mark.parametrize(
    ("verdict", "words", "said"),
    [(Verdict.ACCEPT, "", "Mild."), (Verdict.CORRECT, "12 degrees.", "12 degrees."), (Verdict.REJECT, "", MEANWHILE)],
)
def test_a_verdict_given_in_the_queue_goes_on_with_the_graph(
    queue: ReviewQueue, verdict: Verdict, words: str, said: str
) -> None:
    agent, chat = agent_of(queue)
    ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    queue.resolve(ticket, verdict, text=words, reviewer="ben")
    config = thread_of(queue.get(ticket))
    done = agent.invoke(None, config)
    assert text(done) == said
    assert verdict_in(done)["reviewer"] == "ben"
    assert len(chat.calls) == 1
    # A webhook that comes twice does it twice.
    again = agent.invoke(None, config)
    assert [message.content for message in again["messages"]] == ["How is the weather in Oslo?", said]


def test_a_faster_verdict_in_the_queue_stands_and_the_graph_says_so(queue: ReviewQueue) -> None:
    agent, _ = agent_of(queue)
    ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    queue.resolve(ticket, Verdict.CORRECT, text="12 degrees.", reviewer="ben")
    done = agent.invoke(Command(resume={"verdict": "accept", "reviewer": "ana"}), ONE)
    assert text(done) == "12 degrees."
    assert verdict_in(done) == {
        "state": "resolved",
        "verdict": "correct",
        "reason": "",
        "reviewer": "ben",
        "overruled": {"verdict": "accept", "reviewer": "ana"},
    }
    assert [entry.type for entry in queue.get(ticket).history] == ["created", "resolved"]


def test_a_faster_verdict_in_the_graph_stands(queue: ReviewQueue) -> None:
    agent, _ = agent_of(queue)
    ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    agent.invoke(Command(resume={"verdict": "accept", "reviewer": "ana"}), ONE)
    with pytest.raises(TicketResolvedError):
        queue.resolve(ticket, Verdict.REJECT, reviewer="ben")


def test_the_same_verdict_from_both_sides_is_one(queue: ReviewQueue) -> None:
    agent, _ = agent_of(queue)
    ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    queue.resolve(ticket, Verdict.ACCEPT, reviewer="ben")
    done = agent.invoke(Command(resume={"verdict": "accept", "reviewer": "ana"}), ONE)
    assert "overruled" not in verdict_in(done)
    assert [entry.type for entry in queue.get(ticket).history] == ["created", "resolved"]


def test_a_refused_verdict_leaves_the_graph_waiting_and_never_returns(queue: ReviewQueue) -> None:
    agent, chat = agent_of(queue)
    ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    queue.claim(ticket, reviewer="ben")
    paused = agent.invoke(Command(resume={"verdict": "accept", "reviewer": "ana"}), ONE)
    assert f"ticket {ticket} is claimed by 'ben'" in asked(paused)["refused"]
    queue.release(ticket, reviewer="ben")
    # Now the queue would take what it refused: but nobody says it again.
    done = agent.invoke(Command(resume={"verdict": "correct", "text": "12 degrees.", "reviewer": "zoe"}), ONE)
    assert (text(done), verdict_in(done)["reviewer"]) == ("12 degrees.", "zoe")
    assert len(chat.calls) == 1


def test_the_claiming_reviewer_may_resume_the_graph(queue: ReviewQueue) -> None:
    agent, _ = agent_of(queue)
    ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    queue.claim(ticket, reviewer="ana")
    assert text(agent.invoke(Command(resume={"verdict": "accept", "reviewer": "ana"}), ONE)) == "Mild."


def test_a_verdict_on_another_version_of_the_ticket_is_refused(queue: ReviewQueue) -> None:
    agent, _ = agent_of(queue)
    question = asked(agent.invoke(ASKED, ONE))
    queue.claim(question["ticket"], reviewer="ana")
    seen = {"verdict": "accept", "reviewer": "ana", "version": question["version"]}
    paused = agent.invoke(Command(resume=seen), ONE)
    assert "has version 2, and the verdict is on version 1" in asked(paused)["refused"]
    assert text(agent.invoke(Command(resume=seen | {"version": asked(paused)["version"]}), ONE)) == "Mild."


def test_there_is_nothing_to_accept_where_no_model_answered(queue: ReviewQueue) -> None:
    failing = guarding(queue, policy="version: 1\nname: p\nrules:\n  - {id: ask, do: escalate, say: Wait.}\n")
    chat = ScriptedChat(replies=[ValueError()])
    agent = create_agent(chat, middleware=[IlisGuardMiddleware(failing)], checkpointer=InMemorySaver())
    paused: Any = agent.invoke(ASKED, ONE)
    assert asked(paused)["proposed"] is None
    paused = agent.invoke(Command(resume={"verdict": "accept"}), ONE)
    assert "has no answer to accept" in asked(paused)["refused"]
    done = agent.invoke(Command(resume={"verdict": "correct", "text": "12 degrees."}), ONE)
    assert text(done) == "12 degrees."


@pytest.mark.parametrize("resume", [None, {"verdict": "accept", "reviewer": "ana"}])
def test_an_expired_ticket_lets_nothing_out(resume: Any) -> None:
    clock = Clock()
    with InMemoryQueue(queues=[QueueSettings(name="default", due=60.0)], clock=clock) as queue:
        agent, _ = agent_of(queue)
        agent.invoke(ASKED, ONE)
        clock.now += 61
        queue.sweep()
        done = agent.invoke(None if resume is None else Command(resume=resume), ONE)
        assert (text(done), verdict_in(done)["state"], verdict_in(done)["verdict"]) == (MEANWHILE, "expired", None)
        assert verdict_in(done).get("overruled") == (resume and {"verdict": "accept", "reviewer": "ana"})


def test_a_queue_that_fails_is_tried_again_when_the_thread_goes_on(
    queue: ReviewQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, _ = agent_of(queue)
    agent.invoke(ASKED, ONE)

    def broken(*_: Any, **__: Any) -> Any:
        raise QueueStorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(ReviewQueue, "resolve", broken)
        with pytest.raises(QueueStorageError):
            agent.invoke(Command(resume={"verdict": "accept", "reviewer": "ana"}), ONE)
    done = agent.invoke(None, ONE)
    assert (text(done), verdict_in(done)["reviewer"]) == ("Mild.", "ana")


def test_several_threads_wait_at_once(queue: ReviewQueue) -> None:
    agent, _ = agent_of(queue, "one's", "two's", "three's")
    tickets = {name: asked(agent.invoke(ASKED, thread(name)))["ticket"] for name in ("one", "two", "three")}
    queue.resolve(tickets["two"], Verdict.ACCEPT)
    assert text(agent.invoke(None, thread_of(queue.get(tickets["two"])))) == "two's"
    assert text(agent.invoke(Command(resume={"verdict": "accept"}), thread("three"))) == "three's"
    assert [ticket.id for ticket in queue.list(state="open")] == [tickets["one"]]
    assert text(agent.invoke(Command(resume={"verdict": "reject"}), thread("one"))) == MEANWHILE


class Both(TypedDict):
    """The answers of two agents that work at once."""

    said: Annotated[list[str], operator.add]


def said_by(agent: Any, _: Both) -> dict[str, list[str]]:
    return {"said": [text(agent.invoke(ASKED))]}


def two_agents(queue: ReviewQueue) -> tuple[Any, dict[str, ScriptedChat]]:
    """A graph of two branches with an agent each."""
    chats = {name: ScriptedChat(replies=[f"{name}'s"]) for name in ("left", "right")}
    graph = StateGraph(Both)
    for name, chat in chats.items():
        agent = create_agent(chat, middleware=[IlisGuardMiddleware(guarding(queue, 0.5))])

        graph.add_node(name, partial(said_by, agent))
        graph.add_edge(START, name)
    return graph.compile(checkpointer=InMemorySaver()), chats


def test_branches_wait_at_once_and_each_is_resumed_by_its_own_id(queue: ReviewQueue) -> None:
    graph, chats = two_agents(queue)
    paused = graph.invoke({"said": []}, ONE)
    pending = {interrupt.value["proposed"]: interrupt for interrupt in paused["__interrupt__"]}
    assert set(pending) == {"left's", "right's"}
    assert len(queue.list(state="open")) == 2
    halfway = graph.invoke(Command(resume={pending["left's"].id: {"verdict": "accept"}}), ONE)
    assert [interrupt.value["proposed"] for interrupt in halfway["__interrupt__"]] == ["right's"]
    done = graph.invoke(Command(resume={"verdict": "correct", "text": "ours"}), ONE)
    assert sorted(done["said"]) == ["left's", "ours"]
    assert [len(chat.calls) for chat in chats.values()] == [1, 1]
    assert len(queue.list()) == 2


def test_branches_are_resumed_by_the_queue_alone(queue: ReviewQueue) -> None:
    graph, chats = two_agents(queue)
    graph.invoke({"said": []}, ONE)
    for ticket in queue.list():
        queue.resolve(ticket.id, Verdict.ACCEPT)
        config = thread_of(queue.get(ticket.id))
        done = graph.invoke(None, config)
    assert sorted(done["said"]) == ["left's", "right's"]
    assert [len(chat.calls) for chat in chats.values()] == [1, 1]


def test_a_restart_in_between_changes_nothing(tmp_path: Path) -> None:
    url, saver = f"sqlite:///{tmp_path}/tickets.db", InMemorySaver()
    with ReviewQueue(url) as queue:
        agent, _ = agent_of(queue, saver=saver)
        ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    with ReviewQueue(url) as queue:
        queue.resolve(ticket, Verdict.ACCEPT, reviewer="ben")
    with ReviewQueue(url) as queue:
        agent, chat = agent_of(queue, "never asked", saver=saver)
        assert text(agent.invoke(None, thread_of(queue.get(ticket)))) == "Mild."
        assert chat.calls == []
        assert len(queue.list()) == 1


def test_a_new_question_does_not_wait_for_the_old_ones_verdict(queue: ReviewQueue) -> None:
    chat = ScriptedChat(replies=["Mild.", "Sunny."])
    guard = guarding(queue, {"Mild.": 0.5, "Sunny.": 0.1})
    agent: Any = create_agent(chat, middleware=[IlisGuardMiddleware(guard)], checkpointer=InMemorySaver())
    ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    went_on = agent.invoke({"messages": [("user", "And in Bergen?")]}, ONE)
    assert "__interrupt__" not in went_on
    assert [message.content for message in went_on["messages"]][1:] == [MEANWHILE, "And in Bergen?", "Sunny."]
    queue.resolve(ticket, Verdict.ACCEPT)
    assert text(agent.invoke(None, thread_of(queue.get(ticket)))) == "Sunny."


def test_without_a_checkpointer_the_ticket_waits_alone(queue: ReviewQueue) -> None:
    agent: Any = create_agent(ScriptedChat(replies=["Mild."]), middleware=[IlisGuardMiddleware(guarding(queue, 0.5))])
    assert text(agent.invoke(ASKED)) == MEANWHILE
    (ticket,) = queue.list()
    with pytest.raises(ReviewError, match=f"no agent waits for ticket {ticket.id}: it has no label 'thread_id'"):
        thread_of(queue.get(ticket.id))


def test_a_ticket_of_no_agent_has_no_thread(queue: ReviewQueue) -> None:
    with pytest.raises(ReviewError, match="no agent waits"):
        thread_of(queue.get(put(queue, "another's").id))


def test_an_audited_answer_goes_out_and_nothing_waits(queue: ReviewQueue) -> None:
    policy = """
version: 1
name: p
audit: {fraction: 1.0, queue: audits}
rules:
  - {id: sure, when: uncertainty < 1.0, do: answer}
"""
    chat = ScriptedChat(replies=["Mild."])
    middleware = [IlisGuardMiddleware(guarding(queue, policy=policy))]
    done: Any = create_agent(chat, middleware=middleware, checkpointer=InMemorySaver()).invoke(ASKED, ONE)
    assert "__interrupt__" not in done
    assert text(done) == "Mild."
    assert [ticket.queue for ticket in queue.list()] == ["audits"]


class Forecast(BaseModel):
    """A structured answer."""

    degrees: int


@pytest.mark.parametrize(
    ("given", "said", "structured"),
    [
        ({"verdict": "accept"}, ["", "Returning structured response: degrees=12"], Forecast(degrees=12)),
        ({"verdict": "correct", "text": "13"}, ["13"], None),
        ({"verdict": "reject"}, [MEANWHILE], None),
    ],
)
def test_a_structured_answer_is_reviewed_by_its_content(
    queue: ReviewQueue, given: dict[str, str], said: list[str], structured: Forecast | None
) -> None:
    agent, chat = agent_of(queue, tool_call("Forecast", degrees=12), response_format=ToolStrategy(Forecast))
    assert asked(agent.invoke(ASKED, ONE))["proposed"] == '{"degrees": 12}'
    done = agent.invoke(Command(resume=given), ONE)
    assert [message.content for message in done["messages"]][1:] == said
    assert done.get("structured_response") == structured
    assert len(chat.calls) == 1


def test_a_released_answer_comes_in_the_stream(queue: ReviewQueue) -> None:
    agent, _ = agent_of(queue)

    def said(given: Any) -> list[str]:
        seen = [message for message, _ in agent.stream(given, ONE, stream_mode="messages")]
        return [str(message.content) for message in seen if isinstance(message, AIMessage)]

    assert said(ASKED) == [MEANWHILE]
    assert said(Command(resume={"verdict": "accept"})) == ["Mild."]


def test_redaction_removes_a_correction_and_keeps_the_threads_answer() -> None:
    clock = Clock()
    with InMemoryQueue(clock=clock) as queue:
        agent, _ = agent_of(queue, "one's", "two's")
        accepted = asked(agent.invoke(ASKED, thread("one")))["ticket"]
        corrected = asked(agent.invoke(ASKED, thread("two")))["ticket"]
        queue.resolve(accepted, Verdict.ACCEPT)
        queue.resolve(corrected, Verdict.CORRECT, text="ours")
        clock.now += 100
        assert queue.redact(older_than=50) == 2
        assert text(agent.invoke(None, thread("one"))) == "one's"
        assert text(agent.invoke(None, thread("two"))) == MEANWHILE


def test_a_thread_whose_ticket_was_purged_says_so() -> None:
    clock = Clock()
    with InMemoryQueue(clock=clock) as queue:
        agent, _ = agent_of(queue)
        ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
        queue.resolve(ticket, Verdict.ACCEPT)
        clock.now += 100
        assert queue.purge(older_than=50) == 1
        with pytest.raises(TicketNotFoundError, match=ticket):
            agent.invoke(None, ONE)


def test_a_label_of_the_callers_does_not_lead_to_another_thread(queue: ReviewQueue) -> None:
    middleware = [IlisGuardMiddleware(guarding(queue, 0.5), labels={"thread_id": "another's"})]
    agent: Any = create_agent(ScriptedChat(replies=["Mild."]), middleware=middleware, checkpointer=InMemorySaver())
    ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    assert thread_of(queue.get(ticket)) == ONE


def test_docs_name_the_fields_of_interrupts_and_metadata(queue: ReviewQueue) -> None:
    document = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
    agent, _ = agent_of(queue)
    paused = agent.invoke(ASKED, ONE)
    assert f"# {', '.join(asked(paused))}\n" in document
    told = paused["messages"][-1].response_metadata["ilis_guard"]
    assert f"{', '.join(told)}; and" in document.replace("\n", " ")


class Adds(AgentMiddleware[Any, Any, Any]):
    """Has the last word in each turn, before the guard's own middleware looks."""

    def after_model(self, state: Any, runtime: Any) -> dict[str, Any]:  # noqa: ARG002 - LangChain's
        return {"messages": [AIMessage("(an advertisement)", id="added")]}


def test_messages_of_other_middleware_stay(queue: ReviewQueue) -> None:
    chat = ScriptedChat(replies=["Mild."])
    middleware = [IlisGuardMiddleware(guarding(queue, 0.5)), Adds()]
    agent: Any = create_agent(chat, middleware=middleware, checkpointer=InMemorySaver())
    agent.invoke(ASKED, ONE)
    done = agent.invoke(Command(resume={"verdict": "accept", "reviewer": "ana"}), ONE)
    said = [message.content for message in done["messages"]]
    assert said == ["How is the weather in Oslo?", "(an advertisement)", "Mild."]


def test_an_agent_that_is_a_node_of_a_graph_waits_in_that_graph(queue: ReviewQueue) -> None:
    chat = ScriptedChat(replies=["Mild."])
    graph = StateGraph(MessagesState)
    graph.add_node("forecaster", create_agent(chat, middleware=[IlisGuardMiddleware(guarding(queue, 0.5))]))
    graph.add_edge(START, "forecaster")
    whole: Any = graph.compile(checkpointer=InMemorySaver())
    ticket = asked(whole.invoke(ASKED, ONE))["ticket"]
    queue.resolve(ticket, Verdict.ACCEPT, reviewer="ben")
    done = whole.invoke(None, thread_of(queue.get(ticket)))
    assert [message.content for message in done["messages"]] == ["How is the weather in Oslo?", "Mild."]
    assert len(chat.calls) == 1


def test_an_agent_that_is_a_tool_of_another_waits_in_the_others_thread(queue: ReviewQueue) -> None:
    chat = ScriptedChat(replies=["Mild."])
    forecaster: Any = create_agent(chat, middleware=[IlisGuardMiddleware(guarding(queue, 0.5))])

    @tool
    def forecast(question: str) -> str:
        """Asks the forecaster."""
        return text(forecaster.invoke({"messages": [("user", question)]}))

    chat = ScriptedChat(replies=[tool_call("forecast", question="How is it?"), "12 degrees, then."])
    middleware = [IlisGuardMiddleware(guarding(queue, 0.1))]
    agent: Any = create_agent(chat, [forecast], middleware=middleware, checkpointer=InMemorySaver())
    ticket = asked(agent.invoke(ASKED, ONE))["ticket"]
    queue.resolve(ticket, Verdict.CORRECT, text="12 degrees.")
    done = agent.invoke(None, thread_of(queue.get(ticket)))
    assert [message.content for message in done["messages"]][2:] == ["12 degrees.", "12 degrees, then."]
