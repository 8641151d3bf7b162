"""Streams, decisions at the prompt, readings and batches agree with a plain call of LocalModel."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.errors import BudgetError, ModelError, PromptTooLongError
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Message, Step
from tests.watching import watch

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

Ask = Callable[..., list[Message]]
PROMPTS = ["stop", "word1 word2 short", "long", "tool", "toolfirst", "line", "pause", "word1 forever"]


def near(found: Generation, expected: Generation) -> None:
    assert (found.text, found.tokens, found.token_ids) == (expected.text, expected.tokens, expected.token_ids)
    assert set(found.signatures) == set(expected.signatures)
    for position, signature in expected.signatures.items():
        np.testing.assert_allclose(found.signatures[position], signature, rtol=1e-4, atol=1e-6)
    if expected.statistics is None:
        assert found.statistics is None
    else:
        assert found.statistics is not None
        assert found.statistics.to_dict() == pytest.approx(expected.statistics.to_dict(), rel=1e-4)


def hooks(model: LocalModel) -> int:
    return sum(len(point.module._forward_hooks) for point in model._points)


@pytest.fixture
def passes(tiny: LocalModel) -> Iterator[list[int]]:
    """Tokens that went through the model, pass by pass."""
    seen: list[int] = []
    embedding = tiny._model.get_input_embeddings()
    handle = watch(embedding, lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    yield seen
    handle.remove()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_ends_as_a_plain_call_does_and_its_tokens_are_its_text(
    prompt: str, tiny: LocalModel, ask: Ask
) -> None:
    steps = list(tiny.stream(ask(prompt)))
    expected = tiny.generate(ask(prompt))
    near(steps[-1].generation, expected)
    assert steps[-1].generation.finish_reason == expected.finish_reason
    assert "".join(step.token for step in steps) == expected.text
    assert set(steps[0].generation.signatures) == {"prompt"}
    assert all(step.generation.finish_reason is None for step in steps[:-1])
    assert hooks(tiny) == 0


def test_streamed_step_equals_a_reading_of_the_text_so_far(tiny: LocalModel, ask: Ask) -> None:
    steps = list(tiny.stream(ask("long")))
    assert [step.token for step in steps] == ["", "one", " two", " three", " four", " five", ""]
    for step in steps[1:]:
        near(step.generation, tiny.read(ask("long"), step.generation.token_ids))


def test_nothing_is_computed_that_isnt_asked_for(tiny: LocalModel, ask: Ask, passes: list[int]) -> None:
    stream = tiny.stream(ask("long"))
    time.sleep(0.05)
    assert passes == []
    next(stream)
    next(stream)
    time.sleep(0.05)
    assert passes == [3, 1]


@pytest.mark.parametrize("leave", ["close", "drop"])
def test_a_stream_that_is_left_ends_its_thread_and_takes_its_hooks_away(leave: str, tiny: LocalModel, ask: Ask) -> None:
    before = threading.active_count()
    stream: Any = tiny.stream(ask("word1 forever"))
    next(stream)
    next(stream)
    if leave == "close":
        stream.close()
    del stream
    gc.collect()
    assert (threading.active_count(), hooks(tiny)) == (before, 0)


def test_a_stream_that_was_never_started_leaves_nothing(tiny: LocalModel, ask: Ask) -> None:
    before = threading.active_count()
    stream = tiny.stream(ask("long"))
    del stream
    gc.collect()
    assert threading.active_count() == before


def test_an_error_inside_comes_out_at_the_consumer(tiny: LocalModel, ask: Ask) -> None:
    with pytest.raises(PromptTooLongError, match="the model's context holds 64"):
        list(tiny.stream(ask("word1 " * 80)))


def test_two_streams_in_one_thread_dont_mix(tiny: LocalModel, ask: Ask) -> None:
    both: list[tuple[Step, Step]] = list(
        zip(tiny.stream(ask("long")), tiny.stream(ask("word1 word2 forever")), strict=False)
    )
    for place, prompt in enumerate(("long", "word1 word2 forever")):
        alone = list(tiny.stream(ask(prompt)))
        for steps, expected in zip(both, alone, strict=False):
            near(steps[place].generation, expected.generation)


def test_a_decision_at_the_prompt_costs_one_pass_and_going_on_none_more(
    tiny: LocalModel, ask: Ask, passes: list[int]
) -> None:
    asked: list[Generation] = []

    def stop(so_far: Generation) -> bool:
        asked.append(so_far)
        return False

    expected = tiny.generate(ask("word1 long"))
    plain = passes.copy()
    passes.clear()
    stopped = tiny.generate(ask("word1 long"), proceed=stop)
    assert asked == [stopped]
    assert passes == [4]
    assert (stopped.text, stopped.tokens, stopped.finish_reason, stopped.statistics) == ("", 0, None, None)
    assert set(stopped.signatures) == {"prompt"}
    np.testing.assert_array_equal(stopped.signatures["prompt"], expected.signatures["prompt"])
    passes.clear()
    near(tiny.generate(ask("word1 long"), proceed=lambda _so_far: True), expected)
    assert passes == plain
    with pytest.raises(ZeroDivisionError):
        tiny.generate(ask("long"), proceed=lambda _so_far: bool(1 / 0))
    assert hooks(tiny) == 0


@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if prompt != "stop"])
def test_reading_a_generated_answer_gives_the_same_numbers(
    prompt: str, tiny: LocalModel, ask: Ask, passes: list[int]
) -> None:
    expected = tiny.generate(ask(prompt))
    assert expected.finish_reason is not None
    passes.clear()
    near(tiny.read(ask(prompt), expected.token_ids, finish_reason=expected.finish_reason), expected)
    assert len(passes) == 1


def test_a_text_is_read_as_well_as_its_tokens(
    tiny: LocalModel, make_tiny: Callable[..., "TinyFolder"], ask: Ask
) -> None:
    near(tiny.read(ask("long"), "one two three four five"), tiny.generate(ask("long")))
    base = make_tiny(chat_template=None).load(prompt="word2 word3 {question}")
    near(base.read(ask("line"), "delta"), base.generate(ask("line")))


def test_an_answer_is_read_up_to_its_end_and_no_further(
    tiny: LocalModel, make_tiny: Callable[..., "TinyFolder"], ask: Ask
) -> None:
    folder = make_tiny(chat_template=None)
    base = folder.load(prompt="word2 word3 {question}")
    two_lines = [folder.ids[token] for token in ("delta", "\n", "epsilon")]
    near(base.read(ask("line"), two_lines), base.generate(ask("line")))
    answer = [folder.ids[token] for token in ("one", "two", "three", "four", "five", "<eos>", "word9")]
    ended = tiny.read(ask("long"), answer, finish_reason="length")
    near(ended, tiny.generate(ask("long")))
    assert ended.finish_reason == "stop"
    with pytest.raises(ModelError, match="there is nothing to read"):
        tiny.read(ask("long"), [folder.ids["<eos>"]])


def test_unlikely_answer_has_a_lower_log_probability(tiny: LocalModel, ask: Ask) -> None:
    said, unsaid = tiny.read(ask("short"), "Oslo").statistics, tiny.read(ask("short"), "word9").statistics
    assert said is not None
    assert unsaid is not None
    assert unsaid.logprob_sum < said.logprob_sum - 1


def test_unreadable_answers_are_refused(tiny: LocalModel, ask: Ask) -> None:
    with pytest.raises(ModelError, match=r"there is nothing to read: the answer has no token"):
        tiny.read(ask("long"), "")
    with pytest.raises(PromptTooLongError):
        tiny.read(ask("long"), "one " * 80)


def test_the_answer_position_is_the_mean_over_its_tokens(
    tiny: LocalModel, tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    whole = "one two three four five"
    found = tiny.generate(ask("long"), span=lambda text: (text.index("two"), text.index("two") + len("two three")))
    prompt = [tiny_folder.ids[token] for token in ("<bos>", "<user>", "long")]
    maps = reference(tiny, prompt, [tiny_folder.ids[token] for token in whole.split()]).maps
    np.testing.assert_allclose(found.signatures["answer"], np.mean(maps[1:3], axis=0), rtol=1e-4, atol=1e-6)
    near(tiny.read(ask("long"), whole, span=(4, 13)), found)
    assert "answer" not in tiny.generate(ask("long"), span=lambda _text: None).signatures
    with pytest.raises(ModelError, match=r"the span \(3, 99\) doesn't lie in the answer, which has 23 characters"):
        tiny.generate(ask("long"), span=(3, 99))


def test_special_tokens_in_a_span_dont_count(
    tiny: LocalModel, tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    found = tiny.generate(ask("tool"), span=lambda text: (0, len(text)))
    prompt = [tiny_folder.ids[token] for token in ("<bos>", "<user>", "tool")]
    maps = reference(tiny, prompt, [tiny_folder.ids[token] for token in ("alpha", "<tool>", "beta")]).maps
    np.testing.assert_allclose(found.signatures["answer"], np.mean([maps[0], maps[2]], axis=0), rtol=1e-4, atol=1e-6)


def test_threads_on_one_model_never_mix(tiny: LocalModel, ask: Ask) -> None:
    prompts = [f"{'word5 ' * (place % 4)}{PROMPTS[place % len(PROMPTS)]}" for place in range(64)]
    expected = {prompt: tiny.generate(ask(prompt)) for prompt in set(prompts)}

    def answer(place: int, prompt: str) -> list[Generation]:
        kind = place % 3
        if kind == 0:
            return [tiny.generate(ask(prompt))]
        if kind == 1:
            return [list(tiny.stream(ask(prompt)))[-1].generation]
        return tiny.generate_batch([ask(prompt), ask("word1 word2 word3 forever")])[:1]

    with ThreadPoolExecutor(8) as pool:
        for prompt, found in zip(prompts, pool.map(answer, range(64), prompts), strict=True):
            near(found[0], expected[prompt])
    assert hooks(tiny) == 0


async def test_tasks_on_one_model_never_mix(tiny: LocalModel, ask: Ask) -> None:
    expected = {prompt: tiny.generate(ask(prompt)) for prompt in PROMPTS}
    found = await asyncio.gather(*(asyncio.to_thread(tiny.generate, ask(prompt)) for prompt in PROMPTS * 4))
    for prompt, generation in zip(PROMPTS * 4, found, strict=True):
        near(generation, expected[prompt])


@pytest.fixture
def slow_at_the_third_pass(tiny: LocalModel) -> Iterator[Deadline]:
    """A deadline that passes while the model is busy with its third pass."""
    deadline = Deadline.after(0.3, since=time.monotonic())
    number = count(1)

    def dawdle(*_: object) -> None:
        if next(number) == 3:
            time.sleep(deadline.remaining + 0.01)

    handle = watch(tiny._model.get_input_embeddings(), dawdle)
    yield deadline
    handle.remove()


def test_a_model_stops_at_the_next_token_once_the_deadline_has_passed(
    tiny: LocalModel, ask: Ask, passes: list[int], slow_at_the_third_pass: Deadline
) -> None:
    with pytest.raises(BudgetError, match=r"the request's 0\.3 seconds are over$"):
        tiny.generate(ask("long"), deadline=slow_at_the_third_pass)
    assert (passes, hooks(tiny)) == ([3, 1, 1], 0)


def test_a_model_that_was_given_up_leaves_its_thread_at_the_next_token(
    tiny: LocalModel, ask: Ask, passes: list[int], slow_at_the_third_pass: Deadline
) -> None:
    deadline = slow_at_the_third_pass
    with pytest.raises(BudgetError, match="the model was given up"):
        ModelCaller("tiny").call(lambda: tiny.generate(ask("long"), deadline=deadline), deadline=deadline)
    for thread in threading.enumerate():
        if thread.name == "ilis-guard-call":
            thread.join()
    assert (passes, hooks(tiny)) == ([3, 1, 1], 0)


def test_a_deadline_that_is_kept_changes_nothing(tiny: LocalModel, ask: Ask, passes: list[int]) -> None:
    expected = tiny.generate(ask("long"))
    plain = passes.copy()
    passes.clear()
    near(tiny.generate(ask("long"), deadline=Deadline.after(3600, since=time.monotonic())), expected)
    assert passes == plain


def test_an_empty_batch_is_no_answer(tiny: LocalModel) -> None:
    assert tiny.generate_batch([]) == []


@pytest.mark.parametrize("decoding", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_the_cache_changes_nothing(
    decoding: dict[str, Any], tiny: LocalModel, tiny_folder: "TinyFolder", ask: Ask
) -> None:
    near(tiny_folder.load(decoding=decoding).generate(ask("word1 long")), tiny.generate(ask("word1 long")))


def test_a_shortest_length_is_tried_out_without_a_warning_and_kept(tiny_folder: "TinyFolder", ask: Ask) -> None:
    model = tiny_folder.load(decoding={"min_new_tokens": 7})
    assert len(model.generate(ask("word1 word2 short")).token_ids) >= 7


def test_sampling_is_reproducible_and_told_apart(tiny: LocalModel, tiny_folder: "TinyFolder", ask: Ask) -> None:
    model = tiny_folder.load(decoding={"do_sample": True, "temperature": 30.0})
    assert model.fingerprint.differences(tiny.fingerprint) == ("decoding",)
    torch.manual_seed(3)
    found = model.generate(ask("long"))
    torch.manual_seed(3)
    near(model.generate(ask("long")), found)
    assert found.token_ids != tiny.generate(ask("long")).token_ids
    assert found.finish_reason is not None
    near(tiny.read(ask("long"), found.token_ids, finish_reason=found.finish_reason), found)


@pytest.mark.parametrize(
    ("decoding", "why"),
    [
        ({"num_beams": 4}, r"decoding can't have \['num_beams'\]: with beam search"),
        ({"num_return_sequences": 2, "do_sample": True}, r"with beam search, assisted decoding and their like"),
        ({"max_length": 5}, r"can't have \['max_length'\]: known are .*; the length is the tier's max_new_tokens"),
        ({"do_sample": "no"}, r"decoding's 'do_sample' must be true or false, got 'no'"),
        ({"use_cache": 0}, r"decoding's 'use_cache' must be true or false, got 0"),
        ({"cache_implementation": "attic"}, r"transformers refuses the decoding"),
        ({"cache_implementation": "quantized"}, r"transformers refuses the decoding .*optimum-quanto"),
        ({"do_sample": True, "temperature": -1.0}, r"transformers refuses the decoding .*strictly positive float"),
        ({"do_sample": True, "top_k": -3}, r"transformers refuses the decoding .*'top_k': -3"),
    ],
)
def test_other_decodings_are_refused(decoding: dict[str, Any], why: str, tiny_folder: "TinyFolder") -> None:
    with pytest.raises(ModelError, match=why):
        tiny_folder.load(decoding=decoding)


def test_the_residual_stream_is_another_site(tiny: LocalModel, tiny_folder: "TinyFolder", ask: Ask) -> None:
    model = tiny_folder.load(site="residual")
    assert model.fingerprint.differences(tiny.fingerprint) == ("site", "taps")
    assert model.fingerprint.taps == "model.layers.*"
    assert not np.allclose(
        model.generate(ask("long")).signatures["mean"], tiny.generate(ask("long")).signatures["mean"]
    )


def test_layers_spread_by_accelerate_give_the_same_maps(tiny: LocalModel, tiny_folder: "TinyFolder", ask: Ask) -> None:
    near(tiny_folder.load(device_map="auto").generate(ask("long")), tiny.generate(ask("long")))
