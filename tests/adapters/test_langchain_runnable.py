import asyncio
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from ilis_guard import Action, Guard, Message, Policy, Tier
from ilis_guard.errors import ModelError, RequestError
from ilis_guard.testing import FakeModel, FixedScorer, fake_guard
from ilis_guard_langchain import GuardRunnable

POLICY = """
version: 1
name: by-topic
rules:
  - {id: sure, when: 'uncertainty < 0.5 && has(labels.topic) && labels.topic == "geography"', do: answer}
  - {id: decline, do: abstain, say: No.}
"""


def with_model(model: FakeModel) -> Guard:
    return Guard(tiers=[Tier(name="only", model=model, scorer=FixedScorer(0.1))], policy=Policy.parse(POLICY))


def test_a_chain_ends_with_a_decision() -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "Capital of {country}?")])
    model = FakeModel("Oslo")
    decision = (prompt | GuardRunnable(with_model(model), labels={"topic": "geography"})).invoke({"country": "Norway"})
    assert (decision.action, decision.text) == (Action.ANSWER, "Oslo")
    assert model.calls == [
        (Message(role="system", content="Be brief."), Message(role="user", content="Capital of Norway?"))
    ]


@pytest.mark.parametrize(
    "given",
    [
        "Capital of Norway?",
        [HumanMessage("Capital of Norway?")],
        [("human", "Capital of Norway?")],
        [SystemMessage("s"), HumanMessage("q"), AIMessage("a"), HumanMessage("Capital of Norway?")],
    ],
)
def test_a_guard_takes_every_input_of_a_chat_model(given: Any) -> None:
    model = FakeModel("Oslo")
    GuardRunnable(with_model(model)).invoke(given)
    assert model.calls[0][-1] == Message(role="user", content="Capital of Norway?")


def test_labels_reach_the_policy() -> None:
    guard = with_model(FakeModel("Oslo"))
    assert GuardRunnable(guard, labels={"topic": "law"}).invoke("Capital of Norway?").rule == "decline"
    assert GuardRunnable(guard, labels={"topic": "geography"}).invoke("Capital of Norway?").rule == "sure"


def test_labels_of_a_call_go_over_those_of_the_runnable() -> None:
    guarded = GuardRunnable(with_model(FakeModel("Oslo")), labels={"topic": "geography"})
    assert guarded.invoke("q").rule == "sure"
    assert guarded.invoke("q", labels={"topic": "law"}).rule == "decline"
    assert guarded.bind(labels={"topic": "law"}).invoke("q").rule == "decline"


async def test_labels_of_an_async_call_count_too() -> None:
    guarded = GuardRunnable(with_model(FakeModel("Oslo")), labels={"topic": "geography"})
    assert (await guarded.ainvoke("q", labels={"topic": "law"})).rule == "decline"


def test_a_keyword_nobody_knows_is_refused() -> None:
    with pytest.raises(TypeError, match="lables"):
        GuardRunnable(with_model(FakeModel("Oslo"))).invoke("q", lables={"topic": "law"})


def swallow(_: Any) -> Any:
    return "swallowed"


def test_an_abstention_is_a_value_that_fallbacks_do_not_swallow() -> None:
    guarded = GuardRunnable(fake_guard("default", {"only": ModelError("down")}))
    decision = guarded.with_fallbacks([RunnableLambda(swallow)]).invoke("Capital of Norway?")
    assert decision.action is Action.ESCALATE


async def test_async_batches_run_and_keep_their_order() -> None:
    model = FakeModel({f"q{number}": f"a{number}" for number in range(8)})
    decisions = await GuardRunnable(with_model(model), labels={"topic": "geography"}).abatch(
        [f"q{number}" for number in range(8)]
    )
    assert [made.text for made in decisions] == [f"a{number}" for number in range(8)]


async def test_the_event_loop_goes_on_while_the_guard_decides() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await GuardRunnable(with_model(FakeModel("Oslo"))).ainvoke("Capital of Norway?")
    ticking.cancel()
    assert ticks > 0


def test_names_tags_and_callbacks_of_the_caller_are_honoured() -> None:
    seen: list[tuple[str, list[str]]] = []

    class Spy(BaseCallbackHandler):
        def on_chain_start(self, *_: Any, run_id: UUID, **told: Any) -> None:  # noqa: ARG002 - LangChain's signature
            seen.append((told["name"], told["tags"]))

    GuardRunnable(with_model(FakeModel("Oslo"))).invoke(
        "Capital of Norway?", {"callbacks": [Spy()], "run_name": "capitals", "tags": ["test"]}
    )
    assert seen == [("capitals", ["test"])]


def test_a_message_that_is_not_text_by_a_known_role_is_refused() -> None:
    guarded = GuardRunnable(with_model(FakeModel("Oslo")))
    with pytest.raises(RequestError, match="'tool'"):
        guarded.invoke([HumanMessage("q"), ToolMessage("r", tool_call_id="1")])
    with pytest.raises(RequestError, match="2 parts"):
        guarded.invoke([HumanMessage([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])])
