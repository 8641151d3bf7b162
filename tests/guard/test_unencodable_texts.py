"""What no encoding, database or JSON can hold is replaced or refused where it enters: nothing fails after a commit."""

import json
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, strategies as st

from ilis_guard import Guard, Message, Policy, Tier
from ilis_guard.config.tiers import TierCost
from ilis_guard.errors import ModelError, RequestError
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.text import REPLACEMENT, has_half_characters, whole_characters
from ilis_guard.types import Action, Decision, Generation

QUESTION: Final = "What is the boiling point of gallium?"
POLICY: Final = """
version: 1
name: p
audit: {fraction: 1.0, queue: audits}
rules:
  - {id: failed, when: error != "", do: escalate}
  - {id: sure, when: uncertainty < 0.5, do: answer}
  - {id: ask, do: escalate}
"""
SIGNATURE: Final = np.ones((4, 4), dtype=np.float32)


def generation(**changes: Any) -> Generation:
    plain: dict[str, Any] = {
        "text": "2403 °C",
        "tokens": 3,
        "prompt_tokens": 9,
        "finish_reason": "stop",
        "seconds": 0.0,
    }
    return Generation(**plain | changes)


def guard_of(model: Any, uncertainty: float = 0.6, **options: Any) -> Guard:
    tier = Tier(name="small", model=model, scorer=FixedScorer(uncertainty), **options)
    return Guard(tiers=[tier], policy=Policy.parse(POLICY), review=InMemoryQueue())


def check_writable(guard: Guard, made: Decision) -> None:
    """It has a ticket, and can be written as a response is: strict JSON in UTF-8."""
    assert made.ticket is not None
    assert made.ticket_error is None
    assert isinstance(guard.review, InMemoryQueue)
    record = guard.review.get(made.ticket.id)
    for values in (made.to_dict(), made.for_callers(), record.to_dict()):
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("uncertainty", [0.1, 0.6], ids=["answered", "escalated"])
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("\ud800", REPLACEMENT),
        ("a\udfffb\ud800", f"a{REPLACEMENT}b{REPLACEMENT}"),
        ("\ud83d\ude00", REPLACEMENT * 2),  # halves that were decoded one by one
        ("é\ud800", f"é{REPLACEMENT}"),
        ("a\0b", "a\0b"),
        ("😀", "😀"),
    ],
)
def test_half_characters_of_an_answer_are_replaced(said: str, kept: str, uncertainty: float) -> None:
    guard = guard_of(FakeModel(generation(text=said)), uncertainty)
    made = guard.decide(QUESTION)
    check_writable(guard, made)
    assert made.attempts[0].text == kept
    assert made.text == (kept if made.action is Action.ANSWER else "")


@pytest.mark.parametrize("mode", ["hold", "optimistic"])
def test_those_of_a_stream_as_well(mode: Any) -> None:
    guard = guard_of(FakeModel("one \ud800 two"), 0.1)
    *pieces, made = guard.stream(QUESTION, mode=mode)
    assert isinstance(made, Decision)
    check_writable(guard, made)
    assert "".join(piece.text for piece in pieces) == made.text == f"one {REPLACEMENT} two"  # type: ignore[union-attr]


def test_those_of_the_conversation_that_a_chain_sent() -> None:
    sent = (Message(role="user", content="He said \ud800: why?"),)
    guard = guard_of(FakeModel(generation(sent=sent)))
    made = guard.decide(QUESTION)
    check_writable(guard, made)
    assert isinstance(guard.review, InMemoryQueue)
    assert guard.review.get(made.ticket.id).request["messages"][0]["content"] == f"He said {REPLACEMENT}: why?"  # type: ignore[union-attr]


def test_an_answers_text_may_be_of_a_subclass() -> None:
    class Text(str):
        __slots__ = ()

        def __len__(self) -> int:
            raise RuntimeError("no length")

    guard = guard_of(FakeModel(generation(text=Text("2403 \ud800"))))
    check_writable(guard, guard.decide(QUESTION))


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "a\ud800"},
        {"prompt": [{"role": "system", "content": "\udfff"}, {"role": "user", "content": "a"}]},
        {"prompt": "a", "labels": {"topic": "\ud800"}},
        {"prompt": "a", "stop": ["\ud800"]},
        {"prompt": "a", "id": "\ud800"},
        {"prompt": "a", "id": "a\0"},
        {"prompt": "a", "id": ""},
        {"prompt": "a", "id": "x" * 256},
        {"prompt": "a", "id": 17},
    ],
)
def test_a_caller_may_send_whole_characters_only(given: dict[str, Any]) -> None:
    model = FakeModel("never")
    with pytest.raises(RequestError):
        guard_of(model).decide(given.pop("prompt"), **given)
    assert model.calls == []


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": -(10**5000)},
        {"signatures": {"mean": np.ones(4)}},
        {"signatures": {"mean": np.ones((4, 4), dtype=object)}},
        {"signatures": {"mean": np.full((4, 4), "x")}},
        {"signatures": {"nowhere": SIGNATURE}},
        {"signatures": {7: SIGNATURE}},
    ],
    ids=["tokens", "flat", "objects", "words", "nowhere", "number"],
)
def test_a_generation_that_nothing_could_hold_is_an_error(changes: dict[str, Any]) -> None:
    guard = guard_of(
        FakeModel(generation(**changes)), cost=TierCost(per_million_tokens=0.5, per_million_prompt_tokens=0.5)
    )
    made = guard.decide(QUESTION)
    check_writable(guard, made)
    assert made.attempts[0].error is not None
    assert made.attempts[0].error.kind == ModelError.__name__


@pytest.mark.parametrize("tokens", [2**63, 10**400, 10**5000], ids=["64 bits", "no float", "unwritable"])
def test_counts_end_where_nothing_counts_on(tokens: int) -> None:
    prices = TierCost(per_million_tokens=0.5, per_million_prompt_tokens=0.5)
    guard = guard_of(FakeModel(generation(tokens=tokens, prompt_tokens=tokens)), cost=prices)
    made = guard.decide(QUESTION)
    check_writable(guard, made)
    assert (made.attempts[0].error, made.attempts[0].tokens) == (None, 2**63 - 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_do_not_reach_a_ticket(value: float) -> None:
    signature = SIGNATURE.copy()
    signature[1, 2] = value
    guard = guard_of(FakeModel(generation(signatures={"mean": signature, "last": SIGNATURE})))
    made = guard.decide(QUESTION)
    check_writable(guard, made)
    assert set(made.attempts[0].signatures) == {"last"}


@given(st.text(st.characters(), max_size=20))
def test_whole_characters_are_whole_and_the_rest_is_kept(text: str) -> None:
    whole = whole_characters(text)
    whole.encode()
    assert not has_half_characters(whole)
    assert len(whole) == len(text)
    assert (whole == text) is not has_half_characters(text)


def test_a_request_has_a_digest_of_all_that_is_asked() -> None:
    request = guard_of(FakeModel("x"))._request("a", {"n": 1}, ["s"])
    others = [
        replace(request, stop=()),
        replace(request, labels={"n": True}),
        replace(request, labels={"n": 1.0}),
        replace(request, messages=(Message(role="user", content="b"),)),
        replace(request, messages=(Message(role="system", content="a"), *request.messages)),
    ]
    assert len({one.digest for one in (request, *others)}) == 6
    assert replace(request).digest == request.digest
