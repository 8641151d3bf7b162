"""Rows of a batch: padded, sampled and mixed in any way, each is what it is alone."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Message
from tests.models.batches import WORDS, Agree, Ask, until

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")


KINDS = ["generate", "proceed", "refuse", "stream", "leave", "deadline"]


def test_logits_processors_ignore_the_padding(make_tiny: Callable[..., "TinyFolder"], ask: Ask, agree: Agree) -> None:
    # Without a padding token of its own a tokenizer would pad with the end token, which would then be penalised.
    model = make_tiny(pad_token=None).load(decoding={"repetition_penalty": 1.8, "min_new_tokens": 2})
    prompts = [ask("word1 word2 word3 word4 long"), ask("short"), ask("word1 tool")]
    for found, prompt in zip(model.generate_batch(prompts), prompts, strict=True):
        agree(found, model.generate(prompt))


def test_rows_are_sampled_each_for_itself(
    tiny: LocalModel, tiny_folder: "TinyFolder", pool: ThreadPoolExecutor, ask: Ask
) -> None:
    model = BatchedModel(tiny_folder.load(decoding={"do_sample": True, "temperature": 30.0, "min_new_tokens": 2}), 8)
    found = list(pool.map(model.generate, [ask("long")] * 8))
    assert len({generation.token_ids for generation in found}) > 1
    for generation in found:
        # Each one's numbers are those of its own tokens.
        assert generation.finish_reason is not None
        read = tiny.read(ask("long"), generation.token_ids, finish_reason=generation.finish_reason)
        assert read.signatures["mean"] == pytest.approx(generation.signatures["mean"], rel=1e-4, abs=1e-6)


REQUESTS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(WORDS), st.sampled_from(KINDS)), min_size=1, max_size=24
)


@pytest.fixture(scope="module")
def alone(tiny: LocalModel) -> Callable[[str], Generation]:
    found: dict[str, Generation] = {}

    def generate(prompt: str) -> Generation:
        if prompt not in found:
            found[prompt] = tiny.generate([Message(role="user", content=prompt)])
        return found[prompt]

    return generate


@given(requests=REQUESTS, size=st.integers(1, 9), threads=st.integers(1, 12))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_never_mix(
    requests: list[tuple[int, str, str]],
    size: int,
    threads: int,
    tiny: LocalModel,
    alone: Callable[[str], Generation],
    ask: Ask,
    agree: Agree,
) -> None:
    model = BatchedModel(tiny, size)

    def call(request: tuple[int, str, str]) -> None:
        words, word, kind = request
        prompt = "word5 " * words + word
        expected = alone(prompt)
        if kind == "refuse":
            stopped = model.generate(ask(prompt), proceed=lambda _: False)
            assert (stopped.text, stopped.prompt_tokens) == ("", expected.prompt_tokens)
            assert stopped.signatures["prompt"] == pytest.approx(expected.signatures["prompt"], rel=1e-4, abs=1e-6)
        elif kind == "leave":
            stream = model.stream(ask(prompt))
            shown = "".join(step.token for step in islice(stream, words % 5))
            stream.close()
            assert expected.text.startswith(shown)
        elif kind == "stream":
            steps = list(model.stream(ask(prompt)))
            assert "".join(step.token for step in steps) == expected.text
            agree(steps[-1].generation, expected)
        elif kind == "proceed":
            agree(model.generate(ask(prompt), proceed=lambda _: True), expected)
        else:
            deadline = Deadline.after(3600, since=time.monotonic()) if kind == "deadline" else None
            agree(model.generate(ask(prompt), deadline=deadline), expected)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, requests))
    until(lambda: not model._is_working)
    assert (model._waiting, model._under_way) == ([], 0)


@pytest.mark.parametrize("precision", ["full", "nf4"])
def test_batched_rows_of_a_real_model_equal_single_runs(
    precision: str,
    request: pytest.FixtureRequest,
    pool: ThreadPoolExecutor,
    ask: Ask,
    agree: Agree,
    answer_once: Callable[[LocalModel, str], Generation],
) -> None:
    local: LocalModel = request.getfixturevalue(f"smollm2_{precision}")
    model = BatchedModel(local, 8)
    questions = [
        "What is the capital of Norway?",
        "What is the capital of Kenya?",
        "What is 2 + 2?",
        "Name the city in which one finds the Eiffel Tower, which was built for the World's Fair of 1889.",
    ]
    expected = [answer_once(local, question) for question in questions]
    for found, alone in zip(pool.map(model.generate, map(ask, questions)), expected, strict=True):
        agree(found, alone, rel=1e-3)
