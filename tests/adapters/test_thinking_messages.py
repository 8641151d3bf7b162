"""Thinking in LangChain's messages: chains, agents and the chat model show answers alone."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import tool

from ilis_guard import Action, Decision
from ilis_guard.testing import FakeModel, InMemoryQueue
from ilis_guard_langchain import IlisGuardMiddleware, wrap
from ilis_guard_langchain.messages import KEY, to_messages, transcribe
from tests.adapters.agents import ScriptedChat, guarding, tool_call
from tests.adapters.chat_models import chat as guard_chat
from tests.adapters.guards import ANSWER, ESCALATE, PROMPT, chat, guard_of

THINKING = {"type": "thinking", "thinking": "Bergen?", "signature": "s"}
REPLIES = [
    AIMessage("<think>\nBergen?\n</think>\n\nOslo"),
    AIMessage([THINKING, {"type": "text", "text": "Oslo"}]),
    AIMessage([{"type": "reasoning", "id": "rs_1", "summary": []}, {"type": "text", "text": "Oslo", "id": "msg_1"}]),
    AIMessage("Oslo", additional_kwargs={"reasoning_content": "Bergen?"}),
]
UNFINISHED = [
    AIMessage("<think>\nBergen?"),
    AIMessage([THINKING]),
    AIMessage("", additional_kwargs={"reasoning_content": "Bergen?"}),
]
ASKED: Any = {"messages": [("user", "Capital of Norway?")]}


def chains(reply: AIMessage) -> dict[str, Runnable[Any, Any]]:
    """A model in the places where a guard finds, or doesn't find, it."""
    return {
        "model": PROMPT | chat(reply),
        "parsed": PROMPT | chat(reply) | StrOutputParser(),
        "opaque message": RunnableLambda((PROMPT | chat(reply)).invoke).with_types(output_type=AIMessage),
        "opaque text": RunnableLambda(lambda given: str((PROMPT | chat(reply)).invoke(given).text)).with_types(
            output_type=str
        ),
    }


@pytest.mark.parametrize("place", ["model", "parsed", "opaque message", "opaque text"])
@pytest.mark.parametrize("reply", REPLIES)
async def test_a_chain_puts_out_the_answer_alone(reply: AIMessage, place: str) -> None:
    guarded = wrap(chains(reply)[place], guard_of(ANSWER, tiers=1), prompt=lambda _: "Capital of Norway?")
    for output in (guarded.invoke({"country": "Norway"}), await guarded.ainvoke({"country": "Norway"})):
        assert (output if isinstance(output, str) else output.text) == "Oslo"
        assert "Bergen" not in str(output)


@pytest.mark.parametrize("place", ["model", "parsed", "opaque message"])
@pytest.mark.parametrize("reply", UNFINISHED)
def test_a_chain_that_only_thought_gives_no_answer(reply: AIMessage, place: str) -> None:
    guard = guard_of(ANSWER, tiers=1)
    wrapped = wrap(chains(reply)[place], guard, output="decision", prompt=lambda _: "Capital of Norway?")
    decision: Decision = wrapped.invoke({"country": "Norway"})
    assert (decision.action, decision.attempts[0].text) == (Action.ABSTAIN, "")
    assert decision.attempts[0].error is not None
    assert decision.attempts[0].error.kind == "ThinkingError"


def test_an_agents_state_keeps_the_answer_alone() -> None:
    def agent(state: dict[str, list[BaseMessage]]) -> dict[str, list[BaseMessage]]:
        return {"messages": [*state["messages"], REPLIES[0]]}

    found = wrap(RunnableLambda(agent), guard_of(ANSWER, tiers=1)).invoke({"messages": [HumanMessage("Norway?")]})
    assert [turn.text for turn in found["messages"]] == ["Norway?", "Oslo"]


def test_logprobs_of_a_model_are_not_those_of_what_a_chain_made_of_its_text() -> None:
    logprobs = {"content": [{"token": "Oslo", "logprob": -0.25}]}
    reply = AIMessage("Oslo", response_metadata={"logprobs": logprobs})

    def statistics(change: Any) -> Any:
        chain = RunnableLambda(lambda given: change(chat(reply).invoke(given).text))
        decision: Decision = wrap(chain, guard_of(ANSWER, tiers=1), output="decision").invoke("Norway?")
        return decision.attempts[0].statistics

    assert statistics(str).logprob_sum == -0.25
    assert statistics(str.upper) is None


@pytest.mark.parametrize("reply", REPLIES)
def test_an_agent_says_the_answer_alone(reply: AIMessage) -> None:
    agent = create_agent(ScriptedChat(replies=[reply]), middleware=[IlisGuardMiddleware(guarding(None))])
    said = agent.invoke(ASKED)["messages"][-1]
    assert said.text == "Oslo"
    assert said.response_metadata[KEY]["action"] == "answer"
    assert "Bergen" not in str(said)


@pytest.mark.parametrize("reply", UNFINISHED)
def test_an_agent_that_only_thought_is_retried_on_a_larger_tier(reply: AIMessage) -> None:
    with InMemoryQueue() as queue:
        guard = guarding(queue, larger={"large": (FakeModel("Oslo, surely"), 0.1)})
        agent = create_agent(ScriptedChat(replies=[reply]), middleware=[IlisGuardMiddleware(guard)])
        said = agent.invoke(ASKED)["messages"][-1]
        assert said.text == "Oslo, surely"
        assert said.response_metadata[KEY]["errors"][0]["kind"] == "ThinkingError"


def test_a_call_of_a_tool_keeps_the_thinking_that_its_provider_wants_back() -> None:
    @tool
    def weather(city: str) -> str:
        """Tells the weather."""
        return f"12 degrees in {city}"

    call = tool_call("weather", city="Oslo")
    asking = call.model_copy(update={"content": [THINKING, {"type": "text", "text": "I'll look."}]})
    model = ScriptedChat(replies=[asking, REPLIES[1]])
    agent = create_agent(model, tools=[weather], middleware=[IlisGuardMiddleware(guarding(None))])
    turns = agent.invoke(ASKED)["messages"]
    assert turns[1].content == asking.content
    assert model.calls[1][1].content == asking.content
    assert turns[-1].content == [{"type": "text", "text": "Oslo"}]


def test_earlier_answers_are_read_without_thinking_in_whatever_form_they_come() -> None:
    for reply in REPLIES:
        turns = [HumanMessage("Norway?"), reply, HumanMessage("Sweden?")]
        model = FakeModel("Stockholm")
        guard_chat(says=model).invoke(turns)
        assert [turn.content for turn in model.calls[0]] == ["Norway?", "Oslo", "Sweden?"]
        assert "thinking" not in str(to_messages(turns))
    call = tool_call("weather", city="Oslo").model_copy(update={"content": [THINKING]})
    (turn,) = transcribe([HumanMessage("Norway?"), call])
    assert "Bergen" not in turn.content


def test_a_reviewer_sees_the_answer_alone() -> None:
    with InMemoryQueue() as queue:
        guard = guard_of(ESCALATE, tiers=1, review=queue)
        decision: Decision = wrap(chains(REPLIES[0])["parsed"], guard, output="decision").invoke({"country": "Norway"})
        assert decision.ticket is not None
        assert queue.get(decision.ticket.id).proposed == "Oslo"
