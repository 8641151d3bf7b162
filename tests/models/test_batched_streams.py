"""Streams of a BatchedModel: each is followed at its own pace, and left without harm to others."""

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from tests.models.batches import LONG_ENOUGH, WORDS, Agree, Ask, Gate, together, until

pytestmark = pytest.mark.usefixtures("real_model")


@pytest.mark.parametrize("word", WORDS)
def test_a_streams_tokens_are_its_text_and_its_end_that_of_a_plain_call(
    word: str, tiny: LocalModel, batched: BatchedModel, ask: Ask, agree: Agree
) -> None:
    steps = list(batched.stream(ask(word)))
    expected = tiny.generate(ask(word))
    agree(steps[-1].generation, expected)
    assert "".join(step.token for step in steps) == expected.text
    assert set(steps[0].generation.signatures) == {"prompt"}
    assert all(step.generation.finish_reason is None for step in steps[:-1])


def test_streamed_step_equals_a_reading_of_the_text_so_far(tiny: LocalModel, batched: BatchedModel, ask: Ask) -> None:
    for step in list(batched.stream(ask("long")))[1:-1]:
        read = tiny.read(ask("long"), step.generation.token_ids)
        assert step.generation.token_ids == read.token_ids
        for position, signature in read.signatures.items():
            assert step.generation.signatures[position] == pytest.approx(signature, rel=1e-4, abs=1e-6)


def test_slow_consumer_gets_missed_tokens_in_one_step_and_stops_nobody(
    tiny: LocalModel, batched: BatchedModel, gate: Gate, pool: ThreadPoolExecutor, ask: Ask, agree: Agree
) -> None:
    stream = batched.stream(ask("word1 long"))
    first, other = together(batched, gate, pool, ask, [lambda: next(stream), lambda: batched.generate(ask("forever"))])
    assert first.result(LONG_ENOUGH).token == ""
    agree(other.result(LONG_ENOUGH), tiny.generate(ask("forever")))
    # The other's answer is the longer one, so this one's has come too.
    (rest,) = list(stream)
    assert rest.token == "one two three four five"
    agree(rest.generation, tiny.generate(ask("word1 long")))


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_a_stream_that_is_left_leaves_its_batch_at_the_next_token(
    leave: str, batched: BatchedModel, gate: Gate, ask: Ask
) -> None:
    gate.close(3)
    stream: Any = batched.stream(ask("forever"))
    next(stream)
    gate.wait_for(3)
    if leave == "close":
        stream.close()
    del stream
    gc.collect()
    gate.open(3)
    until(lambda: not batched._is_working)
    assert len(gate.shapes) == 3


def test_a_stream_that_was_never_started_asks_for_nothing(batched: BatchedModel, gate: Gate, ask: Ask) -> None:
    batched.stream(ask("long")).close()
    assert gate.shapes == []


def test_two_streams_in_one_thread_dont_wait_for_one_another(
    tiny: LocalModel, batched: BatchedModel, ask: Ask, agree: Agree
) -> None:
    one, two = batched.stream(ask("long")), batched.stream(ask("word1 word2 forever"))
    next(one)
    next(two)
    agree(list(two)[-1].generation, tiny.generate(ask("word1 word2 forever")))
    agree(list(one)[-1].generation, tiny.generate(ask("long")))
