"""A guard where LangChain and LangGraph take a chat model."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langgraph.checkpoint.memory import InMemorySaver

from ilis_guard.errors import ModelError, RequestError
from ilis_guard.testing import FakeModel
from ilis_guard_langchain import ChatIlisGuard
from tests.adapters.chat_models import QUESTION, chat, chat_of

PROMPT = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "What is the capital of {country}?")])
COUNTRIES = {"Norway": "Oslo", "France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}
CAPITALS = {f"What is the capital of {country}?": f"It is {city}" for country, city in COUNTRIES.items()}


async def test_a_chain_gives_the_answer_or_the_policys_message() -> None:
    chain = PROMPT | chat([0.1, 0.92, 0.1, 0.92], says=CAPITALS) | StrOutputParser()
    said = [chain.invoke({"country": "Norway"}), chain.invoke({"country": "Norway"})]
    later = [await chain.ainvoke({"country": "Norway"}), await chain.ainvoke({"country": "Norway"})]
    assert said == later == ["It is Oslo", "I would rather not say."]


async def test_a_chain_streams_through_to_its_end() -> None:
    chain = PROMPT | chat(0.1, says=CAPITALS, stream_mode="optimistic") | StrOutputParser()
    assert [piece for piece in chain.stream({"country": "Norway"}) if piece] == ["It", " is", " Oslo"]
    assert [piece async for piece in chain.astream({"country": "Norway"}) if piece] == ["It", " is", " Oslo"]


async def test_the_events_of_a_chain_name_the_run_and_end_with_the_decision() -> None:
    chain = PROMPT | chat(0.1, says=CAPITALS).with_config(run_name="capitals", tags=["guarded"]) | StrOutputParser()
    events = [event async for event in chain.astream_events({"country": "Norway"}, {"metadata": {"user": "ada"}})]
    ours = [event for event in events if event["event"].startswith("on_chat_model")]
    assert {event["name"] for event in ours} == {"capitals"}
    assert all("guarded" in event["tags"] for event in ours)
    assert ours[0]["metadata"]["user"] == "ada"
    assert ours[0]["metadata"]["ls_provider"] == "ilis_guard"
    assert ours[-1]["data"]["output"].response_metadata["ilis_guard"]["action"] == "answer"


@pytest.mark.parametrize("scores", [0.92, 0.7, ModelError("down")])
async def test_fallbacks_do_not_swallow_refusals(scores: Any) -> None:
    says = scores if isinstance(scores, Exception) else "It is Oslo"
    guarded = chat(0.99 if isinstance(scores, Exception) else scores, says=says)
    chain = guarded.with_fallbacks([RunnableLambda(lambda _: AIMessage("swallowed"))])
    for message in (chain.invoke(QUESTION), await chain.ainvoke(QUESTION)):
        assert message.content != "swallowed"
        assert message.additional_kwargs["refusal"]


def test_fallbacks_take_over_where_the_request_is_wrong() -> None:
    chain = chat(0.1).with_fallbacks(
        [RunnableLambda(lambda _: AIMessage("fallback"))], exceptions_to_handle=(RequestError,)
    )
    assert chain.invoke("   ").content == "fallback"


def test_with_retry_does_not_repeat_refusals() -> None:
    guarded = chat(0.92)
    guarded.with_retry(stop_after_attempt=3).invoke(QUESTION)
    (tier,) = guarded.guard.tiers
    assert isinstance(tier.model, FakeModel)
    assert len(tier.model.calls) == 1


def test_a_guard_may_be_the_fallback_of_another_model() -> None:
    def broken(_: Any) -> AIMessage:
        raise ConnectionError("no route")

    assert RunnableLambda(broken).with_fallbacks([chat(0.1)]).invoke(QUESTION).content == "It is Oslo"


async def test_branches_side_by_side_do_not_mix() -> None:
    guarded = chat(0.1, says=CAPITALS)
    branches = {
        country: (lambda _, country=country: {"country": country}) | PROMPT | guarded | StrOutputParser()
        for country in COUNTRIES
    }
    expected = {country: f"It is {city}" for country, city in COUNTRIES.items()}
    side_by_side = RunnableParallel(**branches)  # type: ignore[arg-type]  # a lambda becomes a runnable
    assert side_by_side.invoke({}) == expected
    assert await side_by_side.ainvoke({}) == expected


async def test_batches_keep_their_order_and_their_bounds() -> None:
    under_way = highest = 0
    counting = threading.Lock()

    class Counting(FakeModel):
        def generate(self, messages: Any, **options: Any) -> Any:
            nonlocal under_way, highest
            with counting:
                under_way += 1
                highest = max(highest, under_way)
            try:
                return super().generate(messages, **options)
            finally:
                with counting:
                    under_way -= 1

    guarded = chat(0.1, says=Counting(CAPITALS))
    asked: list[Any] = list(CAPITALS) * 5
    for found in (
        guarded.batch(asked, {"max_concurrency": 2}),
        await guarded.abatch(asked, {"max_concurrency": 2}),
    ):
        assert [message.content for message in found] == [CAPITALS[question] for question in asked]
    assert highest <= 2


def test_batches_give_back_errors_where_asked() -> None:
    found = chat(0.1).batch([QUESTION, "  "], return_exceptions=True)
    assert found[0].content == "It is Oslo"
    assert isinstance(found[1], RequestError)


def test_names_tags_and_parents_of_runs_are_honoured() -> None:
    seen: list[tuple[str, list[str], UUID | None]] = []

    class Spy(BaseCallbackHandler):
        def on_chat_model_start(self, serialized: Any, messages: Any, **told: Any) -> None:  # noqa: ARG002 - theirs
            seen.append((told["name"] or serialized["id"][-1], told["tags"], told["parent_run_id"]))

    chat(0.1).invoke(QUESTION, {"callbacks": [Spy()], "run_name": "capitals", "tags": ["test"]})
    (PROMPT | chat(0.1)).invoke({"country": "Norway"}, {"callbacks": [Spy()]})
    assert seen[0] == ("capitals", ["test"], None)
    assert seen[1][0] == "ChatIlisGuard"
    assert seen[1][2] is not None


async def test_each_attempt_is_a_child_run_and_the_decision_an_event() -> None:
    class Spy(BaseCallbackHandler):
        def __init__(self) -> None:
            self.model: UUID | None = None
            self.attempts: list[tuple[str, UUID | None]] = []
            self.found: list[Any] = []
            self.events: list[tuple[str, Any, UUID | None]] = []

        def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **_: Any) -> None:  # noqa: ARG002 - theirs
            self.model = run_id

        def on_chain_start(self, serialized: Any, inputs: Any, **told: Any) -> None:  # noqa: ARG002 - theirs
            self.attempts.append((inputs["tier"], told["parent_run_id"]))

        def on_chain_end(self, outputs: Any, **_: Any) -> None:
            self.found.append(outputs["uncertainty"])

        def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **_: Any) -> None:
            self.events.append((name, data["action"], run_id))

    guarded = chat_of({"small": ("It is Oslo", 0.8), "large": ("Oslo", 0.1)})
    for how in ("invoke", "ainvoke"):
        spy = Spy()
        config: Any = {"callbacks": [spy]}
        await guarded.ainvoke(QUESTION, config) if how == "ainvoke" else guarded.invoke(QUESTION, config)
        assert spy.attempts == [("small", spy.model), ("large", spy.model)]
        assert spy.found == [0.8, 0.1]
        assert spy.events == [("ilis_guard.decision", "answer", spy.model)]


async def test_the_event_loop_goes_on_meanwhile() -> None:
    released = threading.Event()

    class Waiting(FakeModel):
        def generate(self, messages: Any, **options: Any) -> Any:
            assert released.wait(10)
            return super().generate(messages, **options)

    guarded = chat(0.1, says=Waiting("It is Oslo"))
    asking = asyncio.create_task(guarded.ainvoke(QUESTION))
    await asyncio.sleep(0)
    # Where the loop stood still, nobody would come to say so.
    released.set()
    assert (await asking).content == "It is Oslo"


def asked_of(agent: Any, question: str, thread: str) -> Any:
    return agent.invoke({"messages": [HumanMessage(question)]}, {"configurable": {"thread_id": thread}})["messages"]


@pytest.mark.parametrize("mode", ["hold", "optimistic"])
def test_an_agent_without_tools_holds_a_conversation(mode: Any) -> None:
    guarded = chat_of({"only": (["It is Oslo", "Yes."], 0.1)}, stream_mode=mode)
    agent = create_agent(model=guarded, system_prompt="Be brief.", checkpointer=InMemorySaver())
    assert asked_of(agent, QUESTION, "a")[-1].content == "It is Oslo"
    messages = asked_of(agent, "Sure?", "a")
    assert [turn.content for turn in messages] == [QUESTION, "It is Oslo", "Sure?", "Yes."]
    assert messages[-1].response_metadata["ilis_guard"]["rule"] == "sure"
    (tier,) = guarded.guard.tiers
    assert isinstance(tier.model, FakeModel)
    assert [turn.content for turn in tier.model.calls[1]] == ["Be brief.", QUESTION, "It is Oslo", "Sure?"]


async def test_an_agents_history_holds_nothing_of_a_withdrawn_answer() -> None:
    guarded = chat([0.1, 0.1, 0.1, 0.92], stream_mode="optimistic")
    agent: Any = create_agent(model=guarded, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "a"}}
    shown, marked = "", False
    async for chunk, _ in agent.astream({"messages": [HumanMessage(QUESTION)]}, config, stream_mode="messages"):
        if "retraction" in chunk.response_metadata.get("ilis_guard", {}):
            assert shown == "It is Oslo"
            shown, marked = "", True
        shown += chunk.content
    assert (shown, marked) == ("I would rather not say.", True)
    history = (await agent.aget_state(config)).values["messages"]
    assert [turn.content for turn in history] == [QUESTION, "I would rather not say."]
    assert type(history[-1]) is AIMessage


def test_an_agent_with_tools_is_refused_with_advice() -> None:
    def look_up(country: str) -> str:
        """Look up a capital."""
        return COUNTRIES[country]

    agent: Any = create_agent(model=chat(0.1), tools=[look_up])
    with pytest.raises(NotImplementedError, match="IlisGuardMiddleware"):
        agent.invoke({"messages": [HumanMessage(QUESTION)]})


def test_a_chat_model_is_built_from_guard_yaml(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        'version: 1\nname: p\nrules:\n  - {id: none, when: error != "", do: abstain, say: Not now.}\n'
        "  - {id: rest, do: abstain, say: No.}\n"
    )
    (tmp_path / "guard.yaml").write_text(
        "version: 1\npolicy: policy.yaml\ntiers:\n"
        "  - name: remote\n    remote:\n      chat_model: langchain_core.language_models:FakeListChatModel\n"
        "      arguments: {responses: [It is Oslo]}\n      reports_endings: false\n"
    )
    guarded = ChatIlisGuard.from_config(tmp_path / "guard.yaml", labels={"topic": "geography"})
    with guarded.guard:
        message = guarded.invoke(QUESTION)
    # A remote model's answer has no score, which the policy sees as an error.
    assert message.content == "Not now."
    assert guarded.labels == {"topic": "geography"}


def test_threads_may_share_a_chat_model() -> None:
    guarded = chat(0.1, says=CAPITALS)
    asked = list(CAPITALS) * 8
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda question: guarded.invoke(question).content, asked))
    assert found == [CAPITALS[question] for question in asked]
