"""A chain, an agent or a chat model whose caller is cancelled while its ticket is being stored leaves no ticket."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel

from ilis_guard import Guard
from ilis_guard_langchain import ChatIlisGuard, GuardRunnable, IlisGuardMiddleware, wrap
from tests.adapters.agents import ScriptedChat, guarding
from tests.locks import WatchedQueue, locked


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tickets.db"


@pytest.fixture
def queue(database: str) -> Iterator[WatchedQueue]:
    with WatchedQueue(database) as one:
        yield one


async def read(chat: ChatIlisGuard) -> None:
    async for _ in chat.astream("q"):
        pass


def agent_of(guard: Guard) -> Any:
    return create_agent(ScriptedChat(replies=["yes"]), middleware=[IlisGuardMiddleware(guard)])


CALLERS: dict[str, Callable[[Any], Any]] = {
    "runnable": lambda guard: GuardRunnable(guard).ainvoke("q"),
    "chat": lambda guard: ChatIlisGuard(guard=guard).ainvoke("q"),
    "stream": lambda guard: read(ChatIlisGuard(guard=guard)),
    "chain": lambda guard: wrap(FakeListChatModel(responses=["yes"]), guard).ainvoke("q"),
    "agent": lambda guard: agent_of(guard).ainvoke({"messages": [("user", "q")]}),
}


def ended() -> None:
    for thread in threading.enumerate():
        if thread.name in ("ilis-guard-stream", "ilis-guard-call"):
            thread.join()


@pytest.mark.parametrize("caller", CALLERS)
async def test_who_is_cancelled_before_the_commit_leaves_no_ticket(
    database: str, queue: WatchedQueue, caller: str
) -> None:
    guard = guarding(queue, 0.5)
    with locked(database):
        task = asyncio.ensure_future(CALLERS[caller](guard))
        await asyncio.to_thread(queue.began.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(ended)
    assert queue.list() == []
    await CALLERS[caller](guard)
    assert len(queue.list()) == 1
