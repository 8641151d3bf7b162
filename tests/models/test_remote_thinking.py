"""Replies of remote models that think: their answers, and the log-probabilities of these."""

import math
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from ilis_guard.models.logprobs import logprobs_of_answer
from ilis_guard.models.reasoning import without_thinking
from ilis_guard.models.remote import RemoteModel, generation_of
from ilis_guard.types import Generation, Message

THINKING = {"type": "thinking", "thinking": "Bergen?", "signature": "s"}
REDACTED = {"type": "redacted_thinking", "data": "x"}
TEXT = {"type": "text", "text": "Oslo"}


def generation(*given: Any, **metadata: Any) -> Generation:
    reply = given[0] if isinstance(given[0], AIMessage) else AIMessage(*given)
    if metadata:
        reply = reply.model_copy(update={"response_metadata": metadata})
    model = RemoteModel(GenericFakeChatModel(messages=iter([reply])))
    return model.generate([Message(role="user", content="q")])


def entries(*tokens: str) -> list[dict[str, Any]]:
    """One a token, the later the less likely."""
    return [
        {"token": token, "bytes": list(token.encode()), "logprob": -0.1 * (place + 1)}
        for place, token in enumerate(tokens)
    ]


@pytest.mark.parametrize(
    "reply",
    [
        AIMessage("<think>\nBergen?\n</think>\n\nOslo"),
        AIMessage("Bergen?\n</think>\n\nOslo"),
        AIMessage("analysisThe user asks.assistantfinalOslo"),
        AIMessage([THINKING, TEXT]),
        AIMessage([REDACTED, TEXT]),
        AIMessage([{"type": "reasoning", "reasoning": "Bergen?"}, TEXT]),
        AIMessage([{"type": "reasoning_content", "reasoning_content": {"text": "Bergen?"}}, TEXT]),
        AIMessage([{"type": "thinking", "thinking": [{"type": "text", "text": "Bergen?"}]}, TEXT]),
        AIMessage([{"type": "text", "text": "Bergen?", "thought": True}, TEXT]),
        AIMessage([{"type": "text", "text": "<think>Bergen?</think>"}, TEXT]),
        AIMessage("Oslo", additional_kwargs={"reasoning_content": "Bergen?"}),
        AIMessage([THINKING, TEXT], response_metadata={"model_provider": "anthropic"}),
    ],
)
def test_the_answer_is_what_is_no_thinking(reply: AIMessage) -> None:
    found = generation(reply)
    assert (found.text, found.thinking_problem) == ("Oslo", "")
    shown = without_thinking(reply)
    assert shown.text == "Oslo"
    assert "Bergen" not in str(shown.model_dump())
    assert without_thinking(shown) == shown


@pytest.mark.parametrize(
    "reply",
    [
        AIMessage("<think>\nBergen?"),
        AIMessage("<|channel|>analysis<|message|>Bergen?"),
        AIMessage([THINKING]),
        AIMessage([REDACTED, {"type": "text", "text": ""}]),
        AIMessage("", additional_kwargs={"reasoning_content": "Bergen?"}),
        AIMessage("", additional_kwargs={"reasoning": {"summary": [], "id": "rs_1"}}),
    ],
)
def test_a_reply_of_thinking_alone_is_unfinished(reply: AIMessage) -> None:
    found = generation(reply, finish_reason="stop", logprobs={"content": entries("Bergen?")})
    assert (found.text, found.thinking_problem, found.statistics) == ("", "unfinished", None)


def test_a_reply_without_thinking_is_the_same_object() -> None:
    for reply in (AIMessage("Oslo"), AIMessage([TEXT]), AIMessage("Use `<think>`.", additional_kwargs={"x": 1})):
        assert without_thinking(reply) is reply


def test_a_block_loses_the_id_by_which_its_provider_knows_it_with_its_thinking() -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
    reply = AIMessage([reasoning, {**TEXT, "id": "msg_1", "annotations": []}])
    assert without_thinking(reply).content == [{**TEXT, "annotations": []}]


@pytest.mark.parametrize(
    ("tokens", "text", "spelled"),
    [
        (["Os", "lo"], "Oslo", ["Os", "lo"]),
        ([" Os", "lo", "\n"], " Oslo\n", [" Os", "lo", "\n"]),
        # The server's parser has taken the thinking out of the text, and not out of these.
        (["<think>", "Bergen?", "</think>", "\n\n", "Os", "lo"], "Oslo", ["Os", "lo"]),
        (["Bergen?", "</think>", "\n\nOs", "lo"], "Oslo", ["\n\nOs", "lo"]),
        (
            [
                "<|channel|>",
                "analysis",
                "<|message|>",
                "B",
                "<|channel|>",
                "final",
                "<|message|>",
                "Oslo",
                "<|return|>",
            ],
            "Oslo",
            ["Oslo"],
        ),
        # So has nobody.
        (["<think>", "Bergen?", "</think>", "Oslo"], "<think>Bergen?</think>Oslo", ["Oslo"]),
        (["Oslo", "<|im_end|>"], "Oslo", ["Oslo"]),
        (["Oslo", "</s>"], "Oslo", ["Oslo"]),
    ],
)
def test_statistics_are_those_of_the_tokens_that_spell_the_answer(
    tokens: list[str], text: str, spelled: list[str]
) -> None:
    given = entries(*tokens)
    found = generation(text, logprobs={"content": given})
    assert found.text == "Oslo"
    kept = logprobs_of_answer({"content": given}, "Oslo")
    assert kept is not None
    assert [entry["token"] for entry in kept["content"]] == spelled
    assert found.statistics is not None
    assert found.statistics.logprob_sum == pytest.approx(math.fsum(entry["logprob"] for entry in kept["content"]))


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["Ber", "gen"], "Oslo"),
        (["Os"], "Oslo"),
        (["Oslo", "."], "Oslo"),
        (["Oslo", "Oslo"], "Oslo"),
        (["oslo"], "Oslo"),
        (["token_id:5"], "Oslo"),
        (["<think>", "Bergen?", "</think>"], "Oslo"),
        # Of the thinking alone.
        (["Bergen?"], "<think>Bergen?</think>Oslo"),
    ],
)
def test_logprobs_that_spell_another_text_are_not_used(tokens: list[str], text: str) -> None:
    found = generation(text, logprobs={"content": entries(*tokens)})
    assert (found.text, found.statistics) == ("Oslo", None)


def test_a_token_spells_its_bytes_which_may_be_part_of_a_character() -> None:
    halves = [
        {"token": "\\xc3", "bytes": [0xC3], "logprob": -0.5},
        {"token": "\\xa5", "bytes": [0xA5], "logprob": -0.25},
    ]
    found = generation("å", logprobs={"content": halves})
    assert found.statistics is not None
    assert found.statistics.logprob_sum == -0.75
    assert generation("å", logprobs={"content": halves[:1]}).statistics is None


@pytest.mark.parametrize(
    "entry", [{"logprob": -0.1}, {"token": None, "logprob": -0.1}, {"bytes": [300], "logprob": -0.1}, "Oslo", None, 7]
)
def test_entries_without_a_token_are_not_used(entry: Any) -> None:
    assert (
        generation_of(AIMessage("Oslo", response_metadata={"logprobs": {"content": [entry]}}), seconds=0.1).statistics
        is None
    )
