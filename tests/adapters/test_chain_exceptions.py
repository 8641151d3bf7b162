"""What a chain, a chat model, an agent or a callback raises ends as a decision, and never as the event loop's end."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from ilis_guard.models.remote import RemoteModel
from ilis_guard.testing import InMemoryQueue
from ilis_guard.types import Action
from ilis_guard_langchain import IlisGuardMiddleware, wrap
from tests.adapters.agents import ScriptedChat, guarding

POLICY: Final = """
version: 1
name: p
rules:
  - {id: failed, when: error != "", do: escalate, say: A person will look at it.}
  - {id: any, when: uncertainty <= 1.0, do: answer}
"""
SAID: Final = "A person will look at it."
RAISED: Final[dict[str, Callable[[], BaseException]]] = {
    "exit": lambda: SystemExit(3),
    "closed generator": GeneratorExit,
    "end of iteration": lambda: StopIteration("x"),
    "end of async iteration": StopAsyncIteration,
    "cancelled": asyncio.CancelledError,
    "bare": BaseException,
    "group": lambda: BaseExceptionGroup("many", [SystemExit(1), ValueError("x")]),
}


AWAITED: Final = {*RAISED, "error"} - {"exit"}
"""asyncio lets a task that exits end the event loop, and LangChain makes tasks of what is awaited inside a chain."""


class Raising(FakeListChatModel):
    """A chat model that raises."""

    make: Callable[[], BaseException]

    def _call(self, *_: Any, **__: Any) -> str:
        raise self.make()


def check(queue: InMemoryQueue) -> None:
    (ticket,) = queue.list()
    assert queue.get(ticket.id).attempts[0]["error"]["kind"] in ("ModelError", "UnexpectedError")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("raised", RAISED)
async def test_a_chat_model_as_a_tier(raised: str, is_async: bool) -> None:
    with InMemoryQueue() as queue:
        own = guarding(queue, policy=POLICY).with_model(
            "small", RemoteModel(Raising(responses=[], make=RAISED[raised]))
        )
        made = await own.adecide("q") if is_async else own.decide("q")
        assert made.action is Action.ESCALATE
        check(queue)


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("shape", ["chat", "opaque", "tail"])
async def test_a_wrapped_chain(raised: str, shape: str) -> None:
    def fail(_: Any) -> str:
        error = RAISED[raised]()
        raise error

    async def afail(_: Any) -> str:
        await asyncio.sleep(0)
        error = RAISED[raised]()
        raise error

    chain: Any = {
        "chat": Raising(responses=[], make=RAISED[raised]),
        "opaque": RunnableLambda(fail, afail),
        "tail": ScriptedChat(replies=["yes"] * 2) | RunnableLambda(fail, afail),
    }[shape]
    with InMemoryQueue() as queue:
        wrapped = wrap(chain.with_types(output_type=str), guarding(queue, policy=POLICY))
        said = [wrapped.invoke("q"), *([await wrapped.ainvoke("q")] if raised in AWAITED else [])]
        assert {getattr(one, "content", one) for one in said} == {SAID}
        assert len(queue.list()) == len(said)


@pytest.mark.parametrize("raised", RAISED)
async def test_an_agents_model(raised: str) -> None:
    with InMemoryQueue() as queue:
        chat = ScriptedChat(replies=[RAISED[raised]()] * 2)
        agent: Any = create_agent(chat, middleware=[IlisGuardMiddleware(guarding(queue, policy=POLICY))])
        asked = {"messages": [("user", "q")]}
        done = [agent.invoke(asked), *([await agent.ainvoke(asked)] if raised in AWAITED else [])]
        assert {state["messages"][-1].content for state in done} == {SAID}
        assert len(queue.list()) == len(done)


class Fussy(BaseCallbackHandler):
    """A callback that ends what it watches."""

    run_inline = True
    raise_error = True

    def __init__(self, make: Callable[[], BaseException]) -> None:
        self.make = make

    def on_llm_end(self, *_: Any, **__: Any) -> None:
        raise self.make()


@pytest.mark.parametrize("raised", [*RAISED, "error"])
async def test_a_models_callback(raised: str) -> None:
    make = RAISED.get(raised, lambda: ValueError("x"))
    with InMemoryQueue() as queue:
        chat = ScriptedChat(replies=[AIMessage("yes")] * 2, callbacks=[Fussy(make)])
        wrapped = wrap(chat, guarding(queue, policy=POLICY))
        said = [wrapped.invoke("q"), *([await wrapped.ainvoke("q")] if raised in AWAITED else [])]
        assert {one.content for one in said} == {SAID}
        assert len(queue.list()) == len(said)
