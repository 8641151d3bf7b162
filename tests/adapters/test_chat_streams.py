"""How a chat model's stream shows an answer, and takes it back."""

import json
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps, load
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import LLMResult

from ilis_guard import StreamMode
from ilis_guard.errors import RequestError
from ilis_guard_langchain import ChatIlisGuard
from tests.adapters.chat_models import QUESTION, chat

BETA = pytest.mark.filterwarnings("ignore:.* is in beta:langchain_core._api.beta_decorator.LangChainBetaWarning")
MODES: tuple[StreamMode, ...] = ("hold", "optimistic", "early_stop")
WITHDRAWN = [0.1, 0.1, 0.1, 0.92]
"""Of an answer that is shown word for word, and then isn't given."""


def summed(chunks: Sequence[AIMessageChunk]) -> AIMessageChunk:
    total = chunks[0]
    for each in chunks[1:]:
        total = total + each
    return total


async def streamed(model: ChatIlisGuard, how: str) -> list[AIMessageChunk]:
    if how == "astream":
        return [each async for each in model.astream(QUESTION)]
    return list(model.stream(QUESTION))


@pytest.mark.parametrize("how", ["stream", "astream"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_stream_sums_up_to_the_result_of_invoke(mode: StreamMode, how: str) -> None:
    for scores in (0.1, 0.7, 0.92, 0.99):
        whole = summed(await streamed(chat(scores, stream_mode=mode), how))
        expected = chat(scores).invoke(QUESTION)
        assert (whole.content, whole.additional_kwargs) == (expected.content, expected.additional_kwargs)
        assert whole.usage_metadata is not None
        assert whole.usage_metadata["input_tokens"] > 0
        assert whole.chunk_position == "last"
        told = whole.response_metadata["ilis_guard"]
        assert told["action"] == expected.response_metadata["ilis_guard"]["action"]
        assert whole.response_metadata["finish_reason"] == "stop"


@pytest.mark.parametrize("how", ["stream", "astream"])
async def test_the_decision_stands_in_the_last_chunk_only(how: str) -> None:
    chunks = await streamed(chat(0.1, stream_mode="optimistic"), how)
    assert [each.content for each in chunks] == ["It", " is", " Oslo", ""]
    assert [bool(each.response_metadata) for each in chunks] == [False, False, False, True]
    assert [each.usage_metadata is None for each in chunks] == [True, True, True, False]
    assert [each.chunk_position for each in chunks] == [None, None, None, "last"]


def test_held_back_nothing_comes_before_the_decision() -> None:
    assert [each.content for each in chat(0.1).stream(QUESTION)] == ["It is Oslo", ""]
    assert [each.content for each in chat(0.92).stream(QUESTION)] == ["I would rather not say."]


@pytest.mark.parametrize("how", ["stream", "astream"])
async def test_a_retraction_withdraws_all_chunks_before(how: str) -> None:
    chunks = await streamed(chat(WITHDRAWN, stream_mode="optimistic"), how)
    assert [each.content for each in chunks] == ["It", " is", " Oslo", "", "I would rather not say."]
    (marked,) = [each for each in chunks if "retraction" in each.response_metadata.get("ilis_guard", {})]
    assert marked is chunks[-2]
    assert chunks[-1].additional_kwargs == {"refusal": "I would rather not say."}


def two_halves(chunks: Sequence[AIMessageChunk]) -> AIMessageChunk:
    return summed(chunks[:2]) + summed(chunks[2:])


def all_at_once(chunks: Sequence[AIMessageChunk]) -> AIMessageChunk:
    return chunks[0] + list(chunks[1:])


def onto_an_empty_one(chunks: Sequence[AIMessageChunk]) -> AIMessageChunk:
    return summed([AIMessageChunk(content=""), *chunks])


@pytest.mark.parametrize("adding", [summed, two_halves, all_at_once, onto_an_empty_one])
@pytest.mark.parametrize("version", [None, "v1"])
def test_any_sum_of_chunks_drops_withdrawn_text_and_keeps_the_reason(adding: Any, version: str) -> None:
    chunks = list(chat(WITHDRAWN, stream_mode="optimistic", output_version=version).stream(QUESTION))
    whole = adding(chunks)
    assert type(whole) is AIMessageChunk
    assert whole.text == "I would rather not say."
    assert whole.response_metadata["ilis_guard"]["retraction"]
    assert whole.response_metadata["ilis_guard"]["action"] == "abstain"
    assert whole.id == chunks[0].id


def test_a_partial_sum_holds_the_text_that_stands() -> None:
    chunks = list(chat(WITHDRAWN, stream_mode="optimistic").stream(QUESTION))
    halfway = [summed(chunks[:count]).content for count in range(1, 6)]
    assert halfway == ["It", "It is", "It is Oslo", "", "I would rather not say."]


@BETA
def test_chunks_survive_pickling_and_serialization() -> None:
    chunks = list(chat(WITHDRAWN, stream_mode="optimistic").stream(QUESTION))
    pickled = pickle.loads(pickle.dumps(chunks))
    assert summed(pickled).content == "I would rather not say."
    # As JSON they are LangChain's own kind, and only the marker tells what to do.
    loaded = [load(json.loads(dumps(each)), allowed_objects="messages") for each in chunks]
    assert all(type(each) is AIMessageChunk for each in loaded)
    assert loaded[-2].response_metadata["ilis_guard"]["retraction"]


class Ear(BaseCallbackHandler):
    """Hears what callbacks are told."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.end: Any = None

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.end = response.generations[0][0]


def test_callbacks_hear_of_pieces_that_are_shown_and_of_no_others() -> None:
    ear = Ear()
    list(chat(WITHDRAWN, stream_mode="optimistic").stream(QUESTION, {"callbacks": [ear]}))
    assert ear.tokens == ["It", " is", " Oslo", "", "I would rather not say."]
    assert ear.end.text == "I would rather not say."
    held = Ear()
    chat([0.92]).invoke(QUESTION, {"callbacks": [held]})
    assert held.tokens == []


@pytest.mark.parametrize("mode", MODES)
def test_an_invoke_that_goes_by_the_stream_gives_the_message_that_stands(mode: StreamMode) -> None:
    message = chat(WITHDRAWN, stream_mode=mode, streaming=True).invoke(QUESTION)
    assert type(message) is AIMessage
    refused = chat(0.92).invoke(QUESTION)
    assert (message.content, message.additional_kwargs) in [
        (refused.content, refused.additional_kwargs),
        ("It is Oslo", {}),  # where nothing is looked at before the end, whose score is the first
    ]
    assert (message.content == "It is Oslo") == (mode == "hold")


async def test_a_run_that_is_followed_ends_with_the_message_that_stands() -> None:
    model = chat(WITHDRAWN, stream_mode="optimistic")
    events = [event async for event in model.astream_events(QUESTION)]
    assert events[-1]["event"] == "on_chat_model_end"
    assert events[-1]["data"]["output"].content == "I would rather not say."


@BETA
@pytest.mark.parametrize("mode", MODES)
async def test_events_without_retractions_show_only_final_text(mode: StreamMode) -> None:
    # One score: nobody looks at the answer before its end, or the script would have ended.
    stream = chat([0.92], stream_mode=mode if mode != "early_stop" else "hold").stream_events(QUESTION, version="v3")
    shown: list[Any] = list(stream)
    deltas = [event["delta"]["text"] for event in shown if event["event"] == "content-block-delta"]
    assert deltas == ["I would rather not say."]
    assert stream.output.response_metadata["ilis_guard"]["action"] == "abstain"
    assert stream.output.additional_kwargs["refusal"] == "I would rather not say."
    later = await chat([0.92], stream_mode="optimistic").astream_events(QUESTION, version="v3")
    events: list[Any] = [event async for event in later]
    assert [event["delta"]["text"] for event in events if event["event"] == "content-block-delta"] == deltas
    assert events[0]["id"].startswith("lc_run-")


def test_where_streaming_is_disabled_the_whole_message_comes() -> None:
    (only,) = chat(0.1, stream_mode="optimistic", disable_streaming=True).stream(QUESTION)
    assert (type(only), only.content) == (AIMessage, "It is Oslo")


async def test_closing_a_stream_closes_the_guards() -> None:
    model = chat(0.1, stream_mode="optimistic")
    stream: Any = model.stream(QUESTION)
    assert next(stream).content == "It"
    stream.close()
    later: Any = model.astream(QUESTION)
    assert (await anext(later)).content == "It"
    await later.aclose()


async def test_a_request_that_cannot_be_used_raises_as_in_an_invoke() -> None:
    model = chat(0.1, stream_mode="optimistic")
    with pytest.raises(RequestError, match="the prompt is empty"):
        next(model.stream("  "))
    with pytest.raises(RequestError, match="the prompt is empty"):
        await anext(model.astream("  "))


def test_a_stop_sequence_ends_a_stream_unseen() -> None:
    chunks = list(chat(0.1, stream_mode="optimistic").stream(QUESTION, stop=["Os"]))
    assert [each.content for each in chunks] == ["It", " is", ""]
