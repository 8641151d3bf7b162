"""Stop sequences end generation, and the text before them is the answer."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ilis_guard.models.answer_text import before_stop, without_partial_stop
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Message
from tests.watching import watch

pytestmark = pytest.mark.usefixtures("real_model")

Ask = Callable[..., list[Message]]


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("one two", ["three"], None),
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("two", ["two"], ""),
        ("one two", [], None),
    ],
)
def test_a_text_ends_before_the_first_sequence(text: str, stop: list[str], left: str | None) -> None:
    assert before_stop(text, stop) == left


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one", ["two"], "one"),
        ("one t", ["two"], "one "),
        ("one tw", ["two", " two"], "one"),
        ("one two", [], "one two"),
        ("aab", ["abc"], "a"),
        ("two o", ["one" * 1_000_000], "two "),
    ],
)
def test_partial_stop_sequence_is_held_back(text: str, stop: list[str], shown: str) -> None:
    assert without_partial_stop(text, stop) == shown


@pytest.mark.parametrize(
    ("stop", "left"),
    [(["three"], "one two"), (["three four"], "one two"), (["ee f"], "one two"), (["two", "o t"], "one")],
)
def test_an_answer_that_a_sequence_ends_is_as_if_that_answer_were_read(
    stop: list[str], left: str, tiny: LocalModel, ask: Ask, agree: Callable[..., None]
) -> None:
    found = tiny.generate(ask("long"), stop=stop)
    assert (found.text, found.finish_reason) == (left, "stop")
    agree(found, tiny.read(ask("long"), found.token_ids))


def test_a_sequence_that_does_not_come_changes_nothing(tiny: LocalModel, ask: Ask, agree: Callable[..., None]) -> None:
    agree(tiny.generate(ask("long"), stop=["six"]), tiny.generate(ask("long")))


def test_generation_ends_at_the_stop_sequence(tiny: LocalModel, ask: Ask) -> None:
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    hook = watch(tiny._model.model.layers[0], count)
    try:
        tiny.generate(ask("long"), stop=["two"])
    finally:
        hook.remove()
    # The prompt's, `one`'s, and the one in which `one` is read anew.
    assert passes == 3


def test_answer_that_begins_with_a_stop_sequence_is_empty_and_unscored(tiny: LocalModel, ask: Ask) -> None:
    found = tiny.generate(ask("long"), stop=["one"])
    assert (found.text, found.tokens, found.finish_reason, found.signatures) == ("", 0, "stop", {})
    assert found.prompt_tokens == tiny.generate(ask("long")).prompt_tokens


def test_a_stream_shows_nothing_of_a_sequence_and_ends_as_the_whole_answer(
    tiny: LocalModel, ask: Ask, agree: Callable[..., None]
) -> None:
    steps = list(tiny.stream(ask("long"), stop=["three four"]))
    assert "".join(step.token for step in steps) == "one two"
    assert all("three" not in step.generation.text for step in steps)
    agree(steps[-1].generation, tiny.generate(ask("long"), stop=["three four"]))


def test_rows_of_a_batch_stop_each_by_its_own(tiny: LocalModel, ask: Ask, agree: Callable[..., None]) -> None:
    batched = BatchedModel(tiny, 3)
    asked: list[tuple[str, tuple[str, ...]]] = [("long", ("three",)), ("long", ()), ("short", ("Os",))] * 2

    def answer(of: tuple[str, tuple[str, ...]]) -> Any:
        return batched.generate(ask(of[0]), stop=of[1])

    with ThreadPoolExecutor(len(asked)) as callers:
        found = list(callers.map(answer, asked))
    for of, generation in zip(asked, found, strict=True):
        agree(generation, tiny.generate(ask(of[0]), stop=of[1]))


def test_a_token_in_which_a_sequence_begins_is_cut_in_two(
    smollm2_full: LocalModel, ask: Ask, answer_once: Callable[[LocalModel, str], Generation]
) -> None:
    question = ask("What is the capital of Norway?")
    whole = answer_once(smollm2_full, "What is the capital of Norway?")
    assert "Oslo" in whole.text
    found = smollm2_full.generate(question, stop=["lo"])
    assert found.text == whole.text[: whole.text.index("lo")]
    assert smollm2_full._codec.decode_answer(found.token_ids) == found.text
    assert set(found.signatures) == {"prompt", "last", "mean"}


def test_a_text_has_its_tokens_without_special_ones(smollm2_full: LocalModel) -> None:
    tokens = smollm2_full.text_tokens("The capital of Norway")
    assert smollm2_full._tokenizer.decode(tokens) == "The capital of Norway"
