"""LangChain's ChatOpenAI on our server: as a chat model, and as a tier of another guard, whose upstream we are."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import tenacity
from langchain_openai import ChatOpenAI

from ilis_guard import Decision, Guard, Policy, Tier
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.models.remote import RemoteModel
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from tests.server.servers import KEY, Endless, ServedGuard, guard_of, serve_on_socket, shop

UPSTREAM = """
version: 1
name: upstream
rules:
  - {id: try-upstream, when: 'tier == "small"', do: retry}
  - {id: failed, when: 'error.contains("ModelError") || error == "UnfinishedAnswerError"', do: abstain, say: Down.}
  - {id: unscored, do: escalate, to: support}
"""


@pytest.fixture
def queue() -> Iterator[ReviewQueue]:
    with InMemoryQueue() as one:
        yield one


@pytest.fixture
def served(queue: ReviewQueue) -> Iterator[ServedGuard]:
    with serve_on_socket(shop(queue), modes=("optimistic",)) as one:
        yield one


def chat(served: ServedGuard, **changes: Any) -> ChatOpenAI:
    # As somebody would write it, with LangChain's own names.
    arguments: dict[str, Any] = {"model": "ilis-guard", "base_url": f"{served.url}/v1", "api_key": KEY}
    return ChatOpenAI(**arguments | {"max_retries": 0} | changes)


def test_chat_openai_gets_answers_refusals_and_usage(served: ServedGuard) -> None:
    answer = chat(served).invoke("sure?")
    assert (answer.content, answer.usage_metadata["output_tokens"]) == ("Oslo it is.", 3)  # type: ignore[index]
    refusal = chat(served).invoke("hopeless?")
    assert refusal.content == ""
    assert refusal.additional_kwargs["refusal"] == "I can't answer this reliably."
    assert chat(served).batch(["sure?", "larger?"])[1].content == "Oslo, says the larger."


async def test_chat_openai_streams(served: ServedGuard) -> None:
    whole = None
    for chunk in chat(served, stream_usage=True, extra_body={"ilis_guard": {"mode": "optimistic"}}).stream("sure?"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert (whole.content, whole.response_metadata["finish_reason"]) == ("Oslo it is.", "stop")
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 3
    coming = [chunk.content async for chunk in chat(served).astream("larger?")]
    assert "".join(map(str, coming)) == "Oslo, says the larger."


def test_a_retraction_is_marked_for_clients_without_retractions(served: ServedGuard) -> None:
    chunks = chat(served, extra_body={"ilis_guard": {"mode": "optimistic"}}).stream("withdrawn?")
    reasons = {one.response_metadata.get("finish_reason") for one in chunks}
    assert reasons == {None, "content_filter"}


# Upstream: a second instance of our own server as a guard's second tier.


def guarded(upstream: RemoteModel, queue: ReviewQueue, **tier: Any) -> Guard:
    small = FakeModel("Bergen?", fingerprint=None)
    return Guard(
        tiers=[
            Tier(name="small", model=small, scorer=FixedScorer(0.9)),
            Tier(name="upstream", model=upstream, **tier),
        ],
        policy=Policy.parse(UPSTREAM),
        review=queue,
        backoff=tenacity.wait_none(),
    )


def upstream_at(url: str, key: str = KEY, **changes: Any) -> RemoteModel:
    arguments = {"model": "ilis-guard", "base_url": f"{url}/v1", "api_key": key, "max_retries": 0}
    return RemoteModel.load("langchain_openai:ChatOpenAI", arguments | changes)


def asked_upstream(url: str, queue: ReviewQueue, question: str = "sure?", **changes: Any) -> Decision:
    return guarded(upstream_at(url, **changes), queue).decide(question)


def error_of(decision: Decision) -> tuple[str, str]:
    """Kind and detail of the last attempt's error."""
    error = decision.attempts[-1].error
    assert error is not None
    return error.kind, error.detail


def test_an_upstreams_answer_is_proposed_to_a_person(served: ServedGuard, queue: ReviewQueue) -> None:
    decision = asked_upstream(served.url, queue, "larger?")
    attempt = decision.attempts[-1]
    assert (attempt.tier, attempt.text, attempt.tokens) == ("upstream", "Oslo, says the larger.", 6)
    assert attempt.error is not None
    assert attempt.error.kind == "ScoringError"
    assert attempt.error.detail.startswith("the tier 'upstream' has no bundle")
    assert decision.ticket is not None
    assert queue.get(decision.ticket.id).proposed == "Oslo, says the larger."


def test_a_stop_sequence_goes_upstream(served: ServedGuard, queue: ReviewQueue) -> None:
    assert chat(served).invoke("sure?", stop=["it"]).content == "Oslo"
    decision = guarded(upstream_at(served.url), queue).decide("larger?", stop=[" the"])
    assert decision.attempts[-1].text == "Oslo, says"


@pytest.mark.parametrize("question", ["hopeless?", "person?", "broken?"])
def test_an_upstreams_refusal_is_no_answer(served: ServedGuard, queue: ReviewQueue, question: str) -> None:
    decision = asked_upstream(served.url, queue, question)
    assert (decision.action.value, decision.rule) == ("abstain", "failed")
    assert error_of(decision) == ("UnfinishedAnswerError", "the model refused to answer")
    assert decision.attempts[-1].text == ""


def test_a_wrong_key_fails_for_good(served: ServedGuard, queue: ReviewQueue) -> None:
    decision = asked_upstream(served.url, queue, key="ilis-wrong")
    kind, detail = error_of(decision)
    assert kind == "ModelError"
    assert "(status 401)" in detail
    assert "ilis-wrong" not in detail


def test_an_upstream_that_is_down_is_tried_again_and_then_given_up(queue: ReviewQueue) -> None:
    with serve_on_socket(shop(queue)) as gone:
        url = gone.url
    guard = guarded(upstream_at(url), queue, breaker=BreakerSettings(failures=3, seconds=60))
    kind, detail = error_of(guard.decide("sure?"))
    assert kind == "TransientModelError"
    assert detail.startswith("ChatOpenAI didn't answer")
    assert error_of(guard.decide("sure?"))[0] == "CircuitOpenError"


def test_an_upstream_without_a_free_place_is_asked_again(queue: ReviewQueue) -> None:
    endless = Endless()
    busy = guard_of({"small": (endless, FixedScorer(0.1))}, queue)
    with serve_on_socket(busy, max_concurrent=1, max_waiting=0) as served:
        waiting = threading.Thread(target=lambda: asked_upstream(served.url, queue, "taken"))
        waiting.start()
        assert endless.began.wait(20)
        decision = asked_upstream(served.url, queue)
        endless.is_tired = True
        waiting.join()
    kind, detail = error_of(decision)
    assert kind == "TransientModelError"
    assert "(status 429)" in detail


def test_a_slow_upstream_is_left_and_stops_working(queue: ReviewQueue) -> None:
    endless = Endless()
    slow = guard_of({"small": (endless, FixedScorer(0.1))}, queue)
    with serve_on_socket(slow) as served:
        decision = asked_upstream(served.url, queue, timeout=0.5)
        kind, detail = error_of(decision)
        assert kind == "TransientModelError"
        assert detail.startswith("ChatOpenAI didn't answer")
        assert endless.stopped.wait(20)
