"""What clients see of models that think: OpenAI's client, whole answers and streams."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from tests.server.servers import ServedGuard, guard_of, serve

ANSWER = "Oslo it is."
MODEL = FakeModel(
    {
        "sure?": f"<think>\nBergen perhaps?\n</think>\n\n{ANSWER}",
        "thinking?": "<think>\nBergen perhaps?",
        "and now?": ANSWER,
    }
)
SCORES = {ANSWER[:end]: 0.1 for end in range(1, len(ANSWER) + 1)}


@pytest.fixture(scope="module")
def queue() -> Iterator[ReviewQueue]:
    with InMemoryQueue() as one:
        yield one


@pytest.fixture(scope="module")
def served(queue: ReviewQueue) -> Iterator[ServedGuard]:
    guard = guard_of({"small": (MODEL, FixedScorer(SCORES))}, queue)
    with serve(guard, review=queue, modes=("optimistic",)) as one:
        yield one


@pytest.fixture
def client(served: ServedGuard) -> Iterator[openai.OpenAI]:
    with served.client() as one:
        yield one


def ask(client: openai.OpenAI, *turns: str, **more: Any) -> Any:
    roles = ["user", "assistant"] * len(turns)
    messages: Any = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return client.chat.completions.create(model="ilis-guard", messages=messages, **more)


def test_a_completion_holds_the_answer_alone(client: openai.OpenAI) -> None:
    completion = ask(client, "sure?")
    assert completion.choices[0].message.content == ANSWER
    assert "Bergen" not in completion.model_dump_json()


@pytest.mark.parametrize("mode", ["hold", "optimistic"])
def test_a_stream_holds_the_answer_alone(client: openai.OpenAI, mode: str) -> None:
    chunks = list(ask(client, "sure?", stream=True, extra_body={"ilis_guard": {"mode": mode}}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ANSWER
    assert not any("Bergen" in chunk.model_dump_json() for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_alone_is_a_refusal_and_an_escalation(client: openai.OpenAI, queue: ReviewQueue, stream: bool) -> None:
    sent = ask(client, "thinking?", stream=stream)
    last: Any = [chunk for chunk in sent if chunk.choices][-1] if stream else sent
    told = last.ilis_guard
    assert (told["action"], told["rule"]) == ("escalate", "broken")
    assert "Bergen" not in last.model_dump_json()
    assert not queue.get(told["ticket"]["id"]).proposed


def test_an_earlier_answer_may_come_back_with_its_thinking(client: openai.OpenAI) -> None:
    completion = ask(client, "sure?", f"<think>\nBergen perhaps?\n</think>\n\n{ANSWER}", "and now?")
    assert completion.choices[0].message.content == ANSWER
    assert [turn.content for turn in MODEL.calls[-1]] == ["sure?", ANSWER, "and now?"]
