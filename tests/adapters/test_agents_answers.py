"""An agent's answers are scored and ruled on; its calls for tools pass; nothing is seen before it is decided on."""

import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest
from langchain.agents.structured_output import ToolStrategy
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from ilis_guard import Guard, Policy, Tier
from ilis_guard.cascade.caller import CALLS_PER_ATTEMPT
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.errors import ConfigError, RequestError
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Generation, Message, Score
from ilis_guard_langchain import ChatIlisGuard, IlisGuardMiddleware
from tests.adapters.agents import POLICY, ScriptedChat, guarding, tool_call

ASKED: Any = {"messages": [("user", "How is the weather in Oslo?")]}
THREAD: RunnableConfig = {"configurable": {"thread_id": "one"}}


@tool
def weather(city: str) -> str:
    """Tells the weather."""
    return f"12 degrees in {city}"


def about(message: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", message.response_metadata["ilis_guard"])


def test_a_sure_answer_keeps_the_models_message_and_carries_the_decision() -> None:
    chat = ScriptedChat(replies=[AIMessage("Mild.", id="from-the-model", additional_kwargs={"logo": "x"})])
    agent = create_agent(chat, middleware=[IlisGuardMiddleware(guarding(None))], name="forecaster")
    said = agent.invoke(ASKED)["messages"][-1]
    assert (said.content, said.additional_kwargs, said.name) == ("Mild.", {"logo": "x"}, "forecaster")
    told = about(said)
    assert (told["action"], told["rule"], told["uncertainty"], told["tier"]) == ("answer", "sure", 0.1, "small")
    assert told["ticket"] is None


async def test_an_async_agent_answers() -> None:
    chat = ScriptedChat(replies=["Mild."])
    agent = create_agent(chat, middleware=[IlisGuardMiddleware(guarding(None))])
    said = (await agent.ainvoke(ASKED))["messages"][-1]
    assert (said.content, about(said)["rule"]) == ("Mild.", "sure")


def test_an_abstention_is_the_policys_message() -> None:
    agent = create_agent(ScriptedChat(replies=["Snow!"]), middleware=[IlisGuardMiddleware(guarding(None, 0.9))])
    told = agent.invoke(ASKED)["messages"][-1]
    assert isinstance(told, AIMessage)
    assert (told.content, about(told)["action"], about(told)["rule"]) == ("I can't answer this.", "abstain", "hopeless")


def test_a_larger_chat_model_gets_the_agents_tools_and_instructions() -> None:
    small, large = ScriptedChat(replies=["Hm."]), ScriptedChat(replies=["Mild."])
    guard = guarding(None, 0.5, larger={"large": (large, 0.2)})
    agent = create_agent(small, [weather], system_prompt="Be brief.", middleware=[IlisGuardMiddleware(guard)])
    said = agent.invoke(ASKED)["messages"][-1]
    assert (said.content, about(said)["tier"]) == ("Mild.", "large")
    assert large.tools == small.tools == [["weather"]]
    assert large.calls == small.calls
    assert [type(message) for message in large.calls[0]] == [SystemMessage, HumanMessage]


def test_a_larger_tier_without_a_chat_model_answers_by_itself() -> None:
    chat = ScriptedChat(replies=[tool_call("weather", city="Oslo"), "Hm."])
    large = FakeModel("12 degrees.")
    guard = guarding(None, 0.5, larger={"large": (large, 0.2)})
    agent = create_agent(chat, [weather], system_prompt="Be brief.", middleware=[IlisGuardMiddleware(guard)])
    said = agent.invoke(ASKED)["messages"][-1]
    assert (said.content, about(said)["tier"]) == ("12 degrees.", "large")
    read = 'How is the weather in Oslo?\n\n[weather was asked] {"city": "Oslo"}\n\n[weather said] 12 degrees in Oslo'
    assert large.calls == [(Message(role="system", content="Be brief."), Message(role="user", content=read))]


def test_calls_for_tools_pass_unscored() -> None:
    wish = tool_call("weather", city="Oslo")
    chat = ScriptedChat(replies=[wish, "12 degrees."])
    # Whatever isn't the answer would be hopeless.
    guard = guarding(None, {"12 degrees.": 0.1})
    agent = create_agent(chat, [weather], middleware=[IlisGuardMiddleware(guard)])
    turns = agent.invoke(ASKED)["messages"]
    assert [type(turn) for turn in turns] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert turns[1].tool_calls == wish.tool_calls
    assert "ilis_guard" not in turns[1].response_metadata
    assert turns[3].content == "12 degrees."


def test_a_larger_model_that_asks_for_tools_gets_them() -> None:
    small = ScriptedChat(replies=["Hm.", "12 degrees."])
    large = ScriptedChat(replies=[tool_call("weather", city="Oslo")])
    guard = guarding(None, {"Hm.": 0.5, "12 degrees.": 0.1}, larger={"large": (large, 0.9)})
    agent = create_agent(small, [weather], middleware=[IlisGuardMiddleware(guard)])
    turns = agent.invoke(ASKED)["messages"]
    assert [turn.content for turn in turns[2:]] == ["12 degrees in Oslo", "12 degrees."]


class Forecast(BaseModel):
    """A structured answer."""

    degrees: int


@pytest.mark.parametrize("tools", [[], [weather]])
def test_a_structured_answer_is_an_answer(tools: list[Any]) -> None:
    chat = ScriptedChat(replies=[tool_call("Forecast", degrees=12)])
    guard = guarding(None, {'{"degrees": 12}': 0.1})
    agent = create_agent(chat, tools, response_format=ToolStrategy(Forecast), middleware=[IlisGuardMiddleware(guard)])
    made = agent.invoke(ASKED)
    assert made["structured_response"] == Forecast(degrees=12)
    assert about(made["messages"][1])["rule"] == "sure"


@pytest.mark.parametrize("tools", [[], [weather]])
def test_a_structured_answer_that_is_not_trusted_ends_the_turn_without_one(tools: list[Any]) -> None:
    chat = ScriptedChat(replies=[tool_call("Forecast", degrees=99)])
    agent = create_agent(
        chat, tools, response_format=ToolStrategy(Forecast), middleware=[IlisGuardMiddleware(guarding(None, 0.9))]
    )
    made = agent.invoke(ASKED)
    assert made.get("structured_response") is None
    assert [turn.content for turn in made["messages"]] == ["How is the weather in Oslo?", "I can't answer this."]
    assert len(chat.calls) == 1


def test_a_structured_answer_beside_tool_calls_is_judged() -> None:
    both = AIMessage(
        "", tool_calls=[*tool_call("weather", city="Oslo").tool_calls, *tool_call("Forecast", degrees=12).tool_calls]
    )
    chat = ScriptedChat(replies=[both])
    guard = guarding(None, {'{"degrees": 12}': 0.1})
    agent = create_agent(
        chat, [weather], response_format=ToolStrategy(Forecast), middleware=[IlisGuardMiddleware(guard)]
    )
    assert agent.invoke(ASKED)["structured_response"] == Forecast(degrees=12)


def test_a_model_that_fails_is_the_policys_to_rule_on() -> None:
    small, large = ScriptedChat(replies=[ValueError("secret prompt")]), ScriptedChat(replies=["Mild."])
    guard = guarding(None, larger={"large": (large, 0.2)})
    said = create_agent(small, middleware=[IlisGuardMiddleware(guard)]).invoke(ASKED)["messages"][-1]
    assert said.content == "Mild."
    assert about(said)["errors"] == [{"kind": "ModelError", "message": "The model gave no answer."}]
    assert "secret" not in str(about(said))


def test_a_busy_model_is_asked_again_with_the_whole_request() -> None:
    chat = ScriptedChat(replies=[ConnectionError(), ConnectionError(), "Mild."])
    said = create_agent(chat, middleware=[IlisGuardMiddleware(guarding(None))]).invoke(ASKED)["messages"][-1]
    assert (said.content, len(chat.calls)) == ("Mild.", 3)


def test_labels_reach_the_policy_fixed_or_made_of_the_call() -> None:
    policy = """
version: 1
name: p
rules:
  - {id: open, when: 'labels.topic == "weather" && uncertainty < 1.0', do: answer}
  - {id: closed, do: abstain, say: Not my topic.}
"""
    guard = guarding(None, policy=policy)

    def topic(request: ModelRequest[Any]) -> dict[str, Any]:
        return {"topic": "weather" if "weather" in str(request.messages[-1].content) else "law"}

    cases: list[tuple[Any, str]] = [({"topic": "law"}, "Not my topic."), (topic, "Mild.")]
    for labels, said in cases:
        agent = create_agent(ScriptedChat(replies=["Mild."]), middleware=[IlisGuardMiddleware(guard, labels=labels)])
        assert agent.invoke(ASKED)["messages"][-1].content == said


@pytest.mark.parametrize("mode", ["messages", "updates", "values"])
def test_no_token_is_seen_before_the_decision(mode: Any) -> None:
    chat = ScriptedChat(replies=["Snow and ice and storms."])
    agent = create_agent(chat, middleware=[IlisGuardMiddleware(guarding(None, 0.9))])
    seen = str(list(agent.stream(ASKED, stream_mode=mode)))
    assert "I can't answer this." in seen
    assert "ice" not in seen


async def test_no_token_of_an_async_stream_is_seen_before_the_decision() -> None:
    chat = ScriptedChat(replies=[tool_call("weather", city="Oslo"), "Snow and ice and storms."])
    agent = create_agent(chat, [weather], middleware=[IlisGuardMiddleware(guarding(None, 0.9))])
    seen: list[Any] = [message async for message, _ in agent.astream(ASKED, stream_mode="messages")]
    assert [(message.type, message.content) for message in seen] == [
        ("ai", ""),
        ("tool", "12 degrees in Oslo"),
        ("ai", "I can't answer this."),
    ]


def test_an_answer_is_streamed_after_the_decision() -> None:
    agent = create_agent(ScriptedChat(replies=["It is mild."]), middleware=[IlisGuardMiddleware(guarding(None))])
    seen: list[Any] = [message for message, _ in agent.stream(ASKED, stream_mode="messages")]
    assert [message.content for message in seen] == ["It is mild."]
    assert about(seen[0])["rule"] == "sure"


class AsksBeforeTheModel(AgentMiddleware[Any, Any, Any]):
    """Interrupts the graph inside of the guard's attempt."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        assert interrupt("may I?") == "yes"
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        assert interrupt("may I?") == "yes"
        return await handler(request)


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_interrupt_from_within_an_attempt_leaves_the_guard_untouched(is_async: bool) -> None:
    chat = ScriptedChat(replies=["Mild."])
    with InMemoryQueue() as queue:
        middleware = [IlisGuardMiddleware(guarding(queue)), AsksBeforeTheModel()]
        agent = create_agent(chat, middleware=middleware, checkpointer=InMemorySaver())

        async def run(given: Any) -> Any:
            return await agent.ainvoke(given, THREAD) if is_async else agent.invoke(given, THREAD)

        paused = await run(ASKED)
        assert [asked.value for asked in paused["__interrupt__"]] == ["may I?"]
        assert chat.calls == []
        assert (await run(Command(resume="yes")))["messages"][-1].content == "Mild."
        assert queue.list() == []


async def test_a_run_that_is_cancelled_ends_the_models_call_and_asks_no_other() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    class Slow(AgentMiddleware[Any, Any, Any]):
        async def awrap_model_call(self, *_: Any) -> Any:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    large = ScriptedChat(replies=["never"])
    with InMemoryQueue() as queue:
        guard = guarding(queue, larger={"large": (large, 0.2)})
        agent = create_agent(ScriptedChat(replies=["never"]), middleware=[IlisGuardMiddleware(guard), Slow()])
        run = asyncio.create_task(agent.ainvoke(ASKED))
        await began.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await ended.wait()
        await asyncio.get_running_loop().shutdown_default_executor()
        assert large.calls == []
        assert queue.list() == []


def test_a_users_turn_that_is_no_text_is_refused() -> None:
    picture = {"type": "image", "url": "https://example.org/a.png"}
    agent = create_agent(ScriptedChat(replies=["A cat."]), middleware=[IlisGuardMiddleware(guarding(None))])
    with pytest.raises(RequestError, match=r"a guard takes turns of text, got a user's turn with \['image'\]"):
        agent.invoke({"messages": [HumanMessage([{"type": "text", "text": "What is it?"}, picture])]})


def test_text_in_blocks_is_text() -> None:
    chat, large = ScriptedChat(replies=["Hm."]), FakeModel("Mild.")
    agent = create_agent(chat, middleware=[IlisGuardMiddleware(guarding(None, 0.5, larger={"large": (large, 0.1)}))])
    agent.invoke(
        {"messages": [HumanMessage([{"type": "text", "text": "How is it "}, {"type": "text", "text": "there?"}])]}
    )
    assert large.calls == [(Message(role="user", content="How is it there?"),)]


def test_a_queue_that_takes_no_verdicts_is_refused() -> None:
    class Elsewhere:
        def escalate(self, **_: Any) -> Any:
            """Never comes to it."""

        def close(self) -> None:
            """Nothing to close."""

    with pytest.raises(ConfigError, match="an agent waits for verdicts in a ReviewQueue, got a Elsewhere"):
        IlisGuardMiddleware(guarding(Elsewhere()))


def test_an_agent_with_its_guard_as_model_decides_once_by_the_tiers() -> None:
    with InMemoryQueue() as queue:
        tiers = [
            Tier(name="small", model=(small := FakeModel("Hm.")), scorer=FixedScorer(0.5)),
            Tier(name="large", model=(large := FakeModel("Mild.")), scorer=FixedScorer(0.5)),
        ]
        guard = Guard(tiers=tiers, policy=Policy.parse(POLICY), review=queue)
        chat = ChatIlisGuard(guard=guard, labels={"topic": "weather"})
        agent = create_agent(chat, middleware=[IlisGuardMiddleware(guard)], checkpointer=InMemorySaver())
        told = about(agent.invoke(ASKED, THREAD)["messages"][-1])
        (ticket,) = queue.list()
        assert (told["ticket"], told["tier"]) == (ticket.id, "large")
        assert queue.get(ticket.id).request["labels"] == {"topic": "weather", "thread_id": "one"}
        assert len(small.calls) == len(large.calls) == 1


def test_another_guard_is_a_model_like_any_other() -> None:
    inner = Guard(
        tiers=[Tier(name="inner", model=FakeModel("Mild."), scorer=FixedScorer(0.1))],
        policy=Policy.parse(POLICY),
        review=InMemoryQueue(),
    )
    agent = create_agent(ChatIlisGuard(guard=inner), middleware=[IlisGuardMiddleware(guarding(None))])
    said = agent.invoke(ASKED)["messages"][-1]
    assert (said.content, about(said)["tier"]) == ("Mild.", "small")


def test_a_guards_own_stop_sequences_hold_in_an_agent_too() -> None:
    guard = Guard(
        tiers=[Tier(name="small", model=FakeModel("Mild. And windy."), scorer=FixedScorer(0.1))],
        policy=Policy.parse(POLICY),
        review=InMemoryQueue(),
    )
    agent = create_agent(ChatIlisGuard(guard=guard, stop=[" And"]), middleware=[IlisGuardMiddleware(guard)])
    assert agent.invoke(ASKED)["messages"][-1].content == "Mild."


SHADOW = POLICY.replace("name: agents", "name: agents\nmode: shadow")


def test_a_policy_that_only_looks_on_lets_the_models_errors_out() -> None:
    agent = create_agent(
        ScriptedChat(replies=[ValueError("as it came")]),
        middleware=[IlisGuardMiddleware(guarding(None, policy=SHADOW))],
    )
    with pytest.raises(ValueError, match="as it came"):
        agent.invoke(ASKED)


def test_a_policy_that_only_looks_on_lets_the_models_refusals_out() -> None:
    refusal = AIMessage("I won't.", additional_kwargs={"refusal": "I won't."})
    agent = create_agent(
        ScriptedChat(replies=[refusal]), middleware=[IlisGuardMiddleware(guarding(None, policy=SHADOW))]
    )
    assert agent.invoke(ASKED)["messages"][-1].content == "I won't."


def test_an_agents_model_takes_no_place_of_a_tier_with_a_prompt_bundle() -> None:
    guard = guarding(None, prompt_scorer=FixedScorer(0.1))
    agent = create_agent(ScriptedChat(replies=["Mild."]), middleware=[IlisGuardMiddleware(guard)])
    with pytest.raises(ConfigError, match="the tier 'small' has a prompt bundle"):
        agent.invoke(ASKED)


def test_a_tier_that_fails_again_and_again_is_down_for_the_whole_agent() -> None:
    chat = ScriptedChat(replies=[ConnectionError()] * CALLS_PER_ATTEMPT + ["never asked"])
    guard = guarding(None, breaker=BreakerSettings(failures=CALLS_PER_ATTEMPT, seconds=60))
    agent = create_agent(chat, middleware=[IlisGuardMiddleware(guard)])
    errors = [about(agent.invoke(ASKED)["messages"][-1])["errors"] for _ in range(2)]
    assert [error["kind"] for (error,) in errors] == ["TransientModelError", "CircuitOpenError"]
    assert len(chat.calls) == CALLS_PER_ATTEMPT


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_budget_of_time_leaves_the_agent_at_work(is_async: bool) -> None:
    policy = POLICY.replace("rules:", "budget: {max_seconds: 60}\nrules:")
    chat = ScriptedChat(replies=[tool_call("weather", city="Oslo"), "12 degrees."])
    agent: Any = create_agent(chat, [weather], middleware=[IlisGuardMiddleware(guarding(None, policy=policy))])
    done = await agent.ainvoke(ASKED) if is_async else agent.invoke(ASKED)
    assert [turn.content for turn in done["messages"][2:]] == ["12 degrees in Oslo", "12 degrees."]


def test_logprobs_reach_the_scorer() -> None:
    class ByStatistics:
        def score(self, generation: Generation) -> Score:
            assert generation.statistics is not None
            return Score(uncertainty=1 - math.exp(generation.statistics.logprob_mean), typicality=1.0)

    logprobs = {"content": [{"token": text, "logprob": math.log(0.9)} for text in ("Mil", "d.")]}
    chat = ScriptedChat(replies=[AIMessage("Mild.", response_metadata={"logprobs": logprobs})])
    tier = Tier(name="small", model=FakeModel("its own"), scorer=ByStatistics())
    guard = Guard(tiers=[tier], policy=Policy.parse(POLICY), review=InMemoryQueue())
    said = create_agent(chat, middleware=[IlisGuardMiddleware(guard)]).invoke(ASKED)["messages"][-1]
    assert said.content == "Mild."
    assert about(said)["uncertainty"] == pytest.approx(0.1)


def test_two_agents_of_one_guard_answer_their_own_calls_at_once() -> None:
    guard = guarding(None)
    middleware = IlisGuardMiddleware(guard)
    together = threading.Barrier(2, timeout=60)

    class Meets(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            together.wait()
            return handler(request)

    names = ["left", "right"]
    agents = [create_agent(ScriptedChat(replies=[name]), middleware=[middleware, Meets()]) for name in names]
    with ThreadPoolExecutor() as pool:
        done: list[Any] = list(pool.map(lambda agent: agent.invoke(ASKED), agents))
    assert [state["messages"][-1].content for state in done] == names


async def test_more_agents_at_once_than_the_event_loop_has_threads() -> None:
    pool = ThreadPoolExecutor(max_workers=2)
    asyncio.get_running_loop().set_default_executor(pool)
    agents = [
        create_agent(ScriptedChat(replies=[str(number)]), middleware=[IlisGuardMiddleware(guarding(None))])
        for number in range(8)
    ]
    # Whoever waits in the pool for a model that waits for the pool waits for ever.
    done: list[Any] = await asyncio.wait_for(asyncio.gather(*(agent.ainvoke(ASKED) for agent in agents)), 60)
    assert [state["messages"][-1].content for state in done] == [str(number) for number in range(8)]


@pytest.mark.parametrize("is_async", [False, True])
async def test_tracers_see_a_run_for_each_attempt_and_hear_of_the_decision(is_async: bool) -> None:
    guard = guarding(None, 0.5, larger={"large": (ScriptedChat(replies=["Mild."]), 0.2)})
    agent: Any = create_agent(ScriptedChat(replies=["Hm."]), middleware=[IlisGuardMiddleware(guard)])
    heard = Heard()
    config: Any = {"callbacks": [heard]}
    said = (await agent.ainvoke(ASKED, config) if is_async else agent.invoke(ASKED, config))["messages"][-1]
    assert [(run["tier"], run["attempt"]) for run in heard.attempts] == [("small", 1), ("large", 2)]
    assert heard.decisions == [about(said)]


class Heard(BaseCallbackHandler):
    """Keeps what tracers are told of a guard."""

    def __init__(self) -> None:
        self.attempts: list[Any] = []
        self.decisions: list[Any] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **about: Any) -> None:  # noqa: ARG002 - LangChain's
        if about.get("name") == "ilis_guard.attempt":
            self.attempts.append(inputs)

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        if name == "ilis_guard.decision":
            self.decisions.append(data)
