"""Whatever a model raises, the server answers with a decision, and goes on; a real server on a real socket."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from langchain_core.language_models import FakeListChatModel

from ilis_guard.models.remote import RemoteModel
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from tests.server.servers import guard_of, serve_on_socket

ASKED: Any = {"model": "ilis-guard", "messages": [{"role": "user", "content": "sure?"}]}
RAISED: Final[list[Callable[[], BaseException]]] = [
    lambda: SystemExit(3),
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
    MemoryError,
    RecursionError,
    lambda: BaseExceptionGroup("many", [SystemExit(1), ValueError("x")]),
    lambda: ValueError("\ud800" * 1000),
]


class Raising(FakeListChatModel):
    """A chat model that raises."""

    make: Callable[[], BaseException]

    def _call(self, *_: Any, **__: Any) -> str:
        raise self.make()


@pytest.fixture
def queue() -> Iterator[ReviewQueue]:
    with InMemoryQueue() as one:
        yield one


@pytest.mark.parametrize("is_remote", [False, True], ids=["a model", "a chat model"])
def test_nothing_that_a_model_raises_ends_the_server(queue: ReviewQueue, is_remote: bool) -> None:
    errors = [make() for make in RAISED for _ in range(3)]
    model: Any = FakeModel(errors)
    if is_remote:
        left = iter(errors)
        model = RemoteModel(Raising(responses=[], make=lambda: next(left)))
    guard = guard_of({"small": (model, FixedScorer(0.1))}, queue)
    with serve_on_socket(guard, modes=("optimistic",)) as served, served.client() as client:
        for _ in RAISED:
            whole: Any = client.chat.completions.create(**ASKED)
            assert (whole.ilis_guard["action"], whole.ilis_guard["rule"]) == ("escalate", "broken")
            for mode in ("hold", "optimistic"):
                chunks: list[Any] = list(
                    client.chat.completions.create(**ASKED, stream=True, extra_body={"ilis_guard": {"mode": mode}})
                )
                assert chunks[-1].ilis_guard["action"] == "escalate"
    assert len(queue.list(limit=100)) == len(errors)
