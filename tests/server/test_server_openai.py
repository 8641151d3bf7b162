"""Chat completions, as OpenAI's own client sees them: answers, refusals, streams, and what is withdrawn in them."""

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from tests.server.servers import CLIENT, ServedGuard, guard_of, serve, serve_on_socket, shop

PERSON = "A person will look at it."
MODES = ("optimistic", "early_stop")


@pytest.fixture(scope="module")
def queue() -> Iterator[ReviewQueue]:
    with InMemoryQueue() as one:
        yield one


@pytest.fixture(scope="module")
def served(queue: ReviewQueue) -> Iterator[ServedGuard]:
    with serve_on_socket(shop(queue), review=queue, modes=MODES, client_label="client") as one:
        yield one


@pytest.fixture
def client(served: ServedGuard) -> Iterator[openai.OpenAI]:
    with served.client() as one:
        yield one


def ask(client: openai.OpenAI, question: str, **more: Any) -> Any:
    messages: Any = more.pop("messages", [{"role": "user", "content": question}])
    return client.chat.completions.create(model="ilis-guard", messages=messages, **more)


def test_an_answer_is_content_beside_the_decision(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="ilis-guard", messages=[{"role": "user", "content": "sure?"}]
    )
    completion: Any = raw.parse()
    (choice,) = completion.choices
    assert (choice.message.content, choice.message.refusal, choice.finish_reason) == ("Oslo it is.", None, "stop")
    told = completion.ilis_guard
    assert (told["action"], told["rule"], told["uncertainty"], told["tier"]) == ("answer", "sure", 0.1, "small")
    assert raw.headers["x-ilis-guard-decision"] == f"{told['id']}; answer"
    assert completion.id == f"chatcmpl-{raw.headers['x-request-id']}"
    assert completion.model == "ilis-guard"


def test_the_tokens_of_all_attempts_are_counted(client: openai.OpenAI) -> None:
    completion = ask(client, "larger?")
    assert completion.choices[0].message.content == "Oslo, says the larger."
    assert [attempt["tier"] for attempt in completion.ilis_guard["attempts"]] == ["small", "large"]
    assert completion.ilis_guard["tier"] == "large"
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 2 + 4, 8)


@pytest.mark.parametrize(
    ("question", "refusal", "action"),
    [
        ("person?", PERSON, "escalate"),
        ("hopeless?", "I can't answer this reliably.", "abstain"),
        ("broken?", PERSON, "escalate"),
    ],
)
def test_other_actions_are_refusals_in_the_policys_words(
    client: openai.OpenAI, queue: ReviewQueue, question: str, refusal: str, action: str
) -> None:
    completion = ask(client, question)
    (choice,) = completion.choices
    assert (choice.message.content, choice.message.refusal, choice.finish_reason) == (None, refusal, "stop")
    assert completion.ilis_guard["action"] == action
    ticket = completion.ilis_guard["ticket"]
    assert (ticket is not None) is (action == "escalate")
    if ticket is not None:
        assert queue.get(ticket["id"]).ticket.queue == ticket["queue"] == "support"


def test_a_policy_without_a_message_has_a_default_refusal(client: openai.OpenAI) -> None:
    completion = ask(client, "sure?", extra_body={"ilis_guard": {"labels": {"topic": "silent"}}})
    assert completion.choices[0].message.refusal == "No answer can be given."
    assert completion.ilis_guard["rule"] == "silent"


def test_the_policy_sees_the_name_of_the_key(served: ServedGuard) -> None:
    with served.http() as client:
        decision = client.post("/v1/decisions", json={"messages": [{"role": "user", "content": "sure?"}]}).json()
    assert decision["labels"] == {"client": CLIENT}


def test_conversations_may_have_parts_developers_and_refusals(client: openai.OpenAI) -> None:
    refused = ask(client, "hopeless?").choices[0].message
    part = {"type": "text", "text": "su"}
    turns = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "hopeless?"},
        refused,
        {"role": "user", "content": [part, {"type": "text", "text": "re?"}]},
    ]
    assert ask(client, "", messages=turns).choices[0].message.content == "Oslo it is."


# Streams.


def stream(client: openai.OpenAI, question: str, **more: Any) -> list[Any]:
    return list(ask(client, question, stream=True, **more))


def joined(chunks: list[Any], name: str) -> str:
    return "".join(getattr(choice.delta, name, None) or "" for chunk in chunks for choice in chunk.choices)


def mode(name: str) -> dict[str, Any]:
    return {"extra_body": {"ilis_guard": {"mode": name}}}


def test_a_held_stream_shows_the_answer_and_then_the_decision(client: openai.OpenAI) -> None:
    chunks = stream(client, "larger?")
    assert joined(chunks, "content") == "Oslo, says the larger."
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "stop"]
    assert [hasattr(chunk, "ilis_guard") for chunk in chunks] == [False, False, True]
    assert chunks[-1].ilis_guard["action"] == "answer"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {(chunk.id, chunk.object, chunk.choices[0].index) for chunk in chunks} == {
        (chunks[0].id, "chat.completion.chunk", 0)
    }
    assert all(chunk.usage is None for chunk in chunks)


def test_a_refusal_streams_as_one_and_content_stays_empty(client: openai.OpenAI) -> None:
    chunks = stream(client, "person?")
    assert (joined(chunks, "content"), joined(chunks, "refusal")) == ("", PERSON)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].ilis_guard["ticket"]["queue"] == "support"


def test_usage_has_a_chunk_of_its_own_on_request(client: openai.OpenAI) -> None:
    *chunks, last = stream(client, "sure?", stream_options={"include_usage": True})
    assert (last.choices, last.usage.completion_tokens) == ([], 3)
    assert not hasattr(last, "ilis_guard")
    assert chunks[-1].ilis_guard["action"] == "answer"


def test_an_optimistic_answer_comes_in_pieces(client: openai.OpenAI) -> None:
    chunks = stream(client, "sure?", **mode("optimistic"))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert pieces == ["Oslo", " it", " is."]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].ilis_guard["retracted"] is False


def test_a_retraction_ends_in_a_refusal_and_content_stops(client: openai.OpenAI) -> None:
    chunks = stream(client, "withdrawn?", **mode("optimistic"))
    (withdrawal,) = [chunk for chunk in chunks[:-1] if hasattr(chunk, "ilis_guard")]
    assert withdrawal.ilis_guard["retracted"] is True
    assert withdrawal.ilis_guard["reason"]
    after = chunks[chunks.index(withdrawal) :]
    assert joined(after, "content") == ""
    assert joined(chunks, "content") == "The capital of"
    assert joined(chunks, "refusal") == "The text so far was withdrawn. I can't answer this reliably."
    # What clients that know nothing of us understand: the content is not to be used.
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert (chunks[-1].ilis_guard["retracted"], chunks[-1].ilis_guard["text"]) == (True, None)


def test_a_larger_tiers_answer_replaces_retracted_text(client: openai.OpenAI) -> None:
    chunks = stream(client, "replaced?", **mode("optimistic"))
    assert joined(chunks, "content") == "In Norway it is surely Bergen again"
    assert joined(chunks, "refusal") == "The text so far was withdrawn. Instead: Oslo, after all."
    last = chunks[-1]
    assert (last.choices[0].finish_reason, last.ilis_guard["action"]) == ("content_filter", "answer")
    assert (last.ilis_guard["retracted"], last.ilis_guard["text"]) == (True, "Oslo, after all.")


def test_early_stop_spares_tokens_and_shows_nothing(client: openai.OpenAI) -> None:
    chunks = stream(client, "withdrawn?", stream_options={"include_usage": True}, **mode("early_stop"))
    assert joined(chunks, "content") == ""
    assert chunks[-1].usage.completion_tokens == 7
    assert joined(chunks, "refusal") == "I can't answer this reliably."


def test_the_clients_own_stream_helper_collects_the_whole(client: openai.OpenAI) -> None:
    asked: Any = {"model": "ilis-guard", "messages": [{"role": "user", "content": "sure?"}]}
    with client.chat.completions.stream(**asked) as streaming:
        kinds = [event.type for event in streaming]
        final: Any = streaming.get_final_completion()
    assert final.choices[0].message.content == "Oslo it is."
    assert "content.done" in kinds
    asked["messages"][0]["content"] = "hopeless?"
    with client.chat.completions.stream(**asked) as streaming:
        kinds = [event.type for event in streaming]
        final = streaming.get_final_completion()
    assert (final.choices[0].message.content or None, final.choices[0].message.refusal) == (
        None,
        "I can't answer this reliably.",
    )
    assert "refusal.done" in kinds


async def test_the_async_client_does_the_same(served: ServedGuard) -> None:
    async with served.async_client() as client:
        turns: Any = [{"role": "user", "content": "larger?"}]
        whole = await client.chat.completions.create(model="ilis-guard", messages=turns)
        assert whole.choices[0].message.content == "Oslo, says the larger."
        coming = await client.chat.completions.create(model="ilis-guard", messages=turns, stream=True)
        chunks = [chunk async for chunk in coming]
    assert joined(chunks, "content") == "Oslo, says the larger."


# The other endpoints.


def test_the_guard_is_the_only_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["ilis-guard"]
    assert client.models.retrieve("ilis-guard").owned_by == "ilis_guard"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_the_guards_name_may_look_like_a_path(queue: ReviewQueue) -> None:
    with serve(shop(queue), model="shop/guard") as served, served.client() as client:
        assert client.models.retrieve("shop/guard").id == "shop/guard"


def test_legacy_completions_answer_and_refuse(client: openai.OpenAI) -> None:
    answered: Any = client.completions.create(model="ilis-guard", prompt="sure?")
    assert (answered.choices[0].text, answered.choices[0].finish_reason) == ("Oslo it is.", "stop")
    refused: Any = client.completions.create(model="ilis-guard", prompt=["hopeless?"])
    (choice,) = refused.choices
    assert (choice.text, choice.finish_reason) == ("", "content_filter")
    assert (choice.refusal, refused.ilis_guard["action"]) == ("I can't answer this reliably.", "abstain")
    chunks: Any = list(
        client.completions.create(
            model="ilis-guard",
            prompt="withdrawn?",
            stream=True,
            stream_options={"include_usage": True},
            **mode("optimistic"),
        )
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "The capital of"
    assert chunks[-2].choices[0].refusal == "The text so far was withdrawn. I can't answer this reliably."
    assert (chunks[-2].choices[0].finish_reason, chunks[-2].ilis_guard["retracted"]) == ("content_filter", True)
    assert chunks[-1].usage.completion_tokens == 7


STOPS = [
    ("it", "Oslo"),
    (["perhaps", " it is"], "Oslo"),
    (["4", "3", "slo it", "Oslo it"], ""),
    (["\n\n", "Question:"], "Oslo it is."),
    ("?" * 10_000, "Oslo it is."),
]
"""Stop sequences, and what is left of the answer before the first of them."""


@pytest.fixture(scope="module")
def sure(queue: ReviewQueue) -> Iterator[ServedGuard]:
    """A server whose guard gives any answer that isn't empty."""
    guard = guard_of({"small": (FakeModel("Oslo it is."), FixedScorer(0.1))}, queue)
    with serve(guard, review=queue, modes=MODES) as one:
        yield one


@pytest.mark.parametrize(("stop", "left"), STOPS)
def test_an_answer_ends_before_the_first_stop_sequence(sure: ServedGuard, stop: str | list[str], left: str) -> None:
    with sure.client() as client:
        (choice,) = ask(client, "?", stop=stop).choices
        legacy: Any = client.completions.create(model="ilis-guard", prompt="?", stop=stop).choices[0]
    # Nothing is left to score where it begins with one: that is an error, which is the policy's to rule on.
    assert (choice.message.content, choice.message.refusal) == (left or None, None if left else PERSON)
    assert (legacy.text, legacy.finish_reason) == (left, "stop" if left else "content_filter")


@pytest.mark.parametrize("mode_", ["hold", *MODES])
@pytest.mark.parametrize(("stop", "left"), STOPS)
def test_nothing_of_a_stop_sequence_is_streamed(
    sure: ServedGuard, stop: str | list[str], left: str, mode_: str
) -> None:
    with sure.client() as client:
        chunks = stream(client, "?", stop=stop, **mode(mode_))
        legacy: Any = list(
            client.completions.create(model="ilis-guard", prompt="?", stream=True, stop=stop, **mode(mode_))
        )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == left
    assert "".join(chunk.choices[0].text for chunk in legacy) == left
    assert chunks[-1].ilis_guard["retracted"] is False


def test_stop_sequences_reach_larger_tiers_and_the_ticket(
    client: openai.OpenAI, served: ServedGuard, queue: ReviewQueue
) -> None:
    assert ask(client, "larger?", stop=" the").choices[0].message.content == "Oslo, says"
    told = ask(client, "person?", stop=["never", "said"]).ilis_guard
    assert queue.get(told["ticket"]["id"]).request["stop"] == ["never", "said"]
    with served.http() as http:
        messages = [{"role": "user", "content": "sure?"}]
        whole = http.post("/v1/decisions", json={"messages": messages, "stop": "it"}).json()
    assert (whole["text"], whole["attempts"][0]["text"]) == ("Oslo", "Oslo")


def test_a_tier_that_cannot_stop_is_named(queue: ReviewQueue) -> None:
    class Deaf:
        fingerprint = None

        def generate(self, messages: Any) -> Any:
            return FakeModel("Oslo it is.").generate(messages)

    guard = guard_of({"small": (FakeModel("x"), FixedScorer(0.9)), "own": (Deaf(), FixedScorer(0.1))}, queue)
    with serve(guard, review=queue) as one, one.client() as client:
        with pytest.raises(
            openai.BadRequestError, match=r"tiers \['own'\] can't end an answer at stop sequences"
        ) as caught:
            ask(client, "?", stop="it")
        assert (caught.value.param, caught.value.code) == ("stop", "unsupported_value")
        assert ask(client, "?").choices[0].message.refusal == "I can't answer this reliably."


def test_a_whole_decision_has_texts_scores_and_signatures(served: ServedGuard, queue: ReviewQueue) -> None:
    with served.http() as client:
        response = client.post("/v1/decisions", json={"messages": [{"role": "user", "content": "person?"}]})
    decision = response.json()
    assert response.headers["x-ilis-guard-decision"] == f"{decision['id']}; escalate"
    (attempt,) = decision["attempts"]
    assert (attempt["text"], attempt["uncertainty"]) == ("Trondheim perhaps.", 0.6)
    assert len(attempt["signatures"]["mean"]) == 4
    assert queue.get(decision["ticket"]["id"]).decision == decision["id"]


# What is refused.


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_value"),
        ({"logit_bias": {"50256": -100}}, "logit_bias", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"temperature": 0.7}, "temperature", "unsupported_value"),
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        *(({"stop": stop}, "stop", "unsupported_value") for stop in ("", [], [""], ["a"] * 5, 7, ["a", 7], [["a"]])),
        ({"seed": 7}, "seed", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "unsupported_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "unsupported_value"),
        ({"extra_body": {"surprise": 1}}, "surprise", "unknown_parameter"),
        ({"extra_body": {"ilis_guard": {"labels": {"vip": True}}}}, "ilis_guard.labels.vip", "unsupported_value"),
        ({"extra_body": {"ilis_guard": {"labels": {"client": "me"}}}}, "ilis_guard.labels.client", "unsupported_value"),
        ({"extra_body": {"ilis_guard": {"labels": {"topic": "x" * 3000}}}}, "ilis_guard.labels", "unsupported_value"),
        (mode("optimistic"), "ilis_guard.mode", "unsupported_value"),
        (mode("eager"), "ilis_guard.mode", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0", "invalid_value"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_parameter"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "unsupported_value"),
        ({"messages": [{"role": "assistant", "content": "hm"}]}, "messages", "unsupported_value"),
    ],
)
def test_unsupported_parameters_are_refused_by_name(
    client: openai.OpenAI, more: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "sure?", **more)
    error = caught.value
    assert (error.status_code, error.param, error.code, error.type) == (400, param, code, "invalid_request_error")
    assert param.split(".", maxsplit=1)[0] in error.message
    # One shape for both: OpenAI's clients look into `error`, others at the problem details.
    told = error.response.json()
    assert error.response.headers["content-type"] == "application/problem+json"
    assert (told["status"], told["title"]) == (400, "Bad Request")
    assert told["request_id"] == error.request_id
    assert told["detail"] in error.message


@pytest.mark.parametrize(
    "more",
    [
        {"n": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0.0},
        {"user": "u1", "metadata": {"a": "b"}, "store": False},
        {"response_format": {"type": "text"}, "stream": False, "temperature": None},
        {"safety_identifier": "s", "prompt_cache_key": "k"},
    ],
)
def test_parameters_without_effect_are_accepted(client: openai.OpenAI, more: dict[str, Any]) -> None:
    assert ask(client, "sure?", **more).choices[0].message.content == "Oslo it is."


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="ask for 'ilis-guard'") as caught:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "sure?"}])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"model": "\\ud800"}', b"[" * 100_000, b"\xff"])
def test_malformed_json_is_a_bad_request(served: ServedGuard, body: bytes) -> None:
    with served.http() as client:
        response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_body")


def test_a_body_that_isnt_announced_as_json_is_refused(served: ServedGuard) -> None:
    with served.http() as client:
        response = client.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 415


def test_a_stream_on_the_wire(served: ServedGuard) -> None:
    asked = {"model": "ilis-guard", "messages": [{"role": "user", "content": "sure?"}], "stream": True}
    with served.http() as client:
        response: httpx2.Response = client.post("/v1/chat/completions", json=asked)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "x-ilis-guard-decision" not in response.headers
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
