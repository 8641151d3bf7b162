"""Signatures and statistics of LocalModel against a separate full pass over prompt and answer."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Message

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

Ask = Callable[..., list[Message]]
SPECIAL = {"<tool>", "<pause>"}
# What the script makes of a prompt's last word: every generated token up to the end of the answer.
ANSWERS = {
    "short": "Oslo",
    "long": "one two three four five",
    "tool": "alpha <tool> beta",
    "pause": "zeta <pause> eta",
    "toolfirst": "<tool> beta",
}


def check(
    found: Generation,
    reference: Callable[..., Any],
    model: LocalModel,
    prompt: list[int],
    answer: list[int],
    **kind: Any,
) -> None:
    """The generation shows what a full pass shows at the counted tokens."""
    counted, mapped = kind["counted"], kind["mapped"]
    expected = reference(model, prompt, answer, temperature=model.fingerprint.temperature)
    maps = np.array(expected.maps)[mapped]
    assert {position: signature.dtype for position, signature in found.signatures.items()} == dict.fromkeys(
        ("prompt", "last", "mean"), np.dtype("float32")
    )
    assert_allclose(found.signatures["prompt"], expected.prompt, rtol=1e-4, atol=1e-6)
    assert_allclose(found.signatures["last"], maps[-1], rtol=1e-4, atol=1e-6)
    assert_allclose(found.signatures["mean"], maps.mean(axis=0), rtol=1e-4, atol=1e-6)
    logprobs = np.array(expected.logprobs)[counted]
    assert found.statistics is not None
    assert found.statistics.to_dict() == pytest.approx(
        {
            "logprob_sum": math.fsum(logprobs),
            "logprob_mean": math.fsum(logprobs) / len(counted),
            "entropy_mean": np.array(expected.entropies)[counted].mean(),
            "margin_min": np.array(expected.margins)[counted].min(),
        },
        rel=1e-4,
    )
    assert found.tokens == len(counted)
    assert found.prompt_tokens == len(prompt)


@pytest.mark.parametrize("word", ANSWERS)
def test_ended_answer_equals_the_reference_without_special_tokens(
    word: str, tiny: LocalModel, tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    found = tiny.generate(ask(f"word1 word7 {word}"))
    answer = ANSWERS[word].split()
    counted = [place for place, token in enumerate(answer) if token not in SPECIAL]
    ids = tiny_folder.ids
    prompt = [ids[token] for token in f"<bos> <user> word1 word7 {word}".split()]
    check(found, reference, tiny, prompt, [ids[token] for token in answer], counted=counted, mapped=counted)
    assert found.text == " ".join(token for token in answer if token not in SPECIAL)
    assert found.finish_reason == "stop"


def test_the_last_token_of_a_cut_answer_has_statistics_and_no_map(
    tiny: LocalModel, tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    found = tiny.generate(ask("word1 forever"))
    ids = tiny_folder.ids
    prompt = [ids[token] for token in ("<bos>", "<user>", "word1", "forever")]
    answer = [ids[token] for token in ["again", "twice"] * 4]
    check(found, reference, tiny, prompt, answer, counted=list(range(8)), mapped=list(range(7)))
    assert found.finish_reason == "length"
    assert found.text == "again twice " * 3 + "again twice"


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_the_models_temperature_is_the_maps_temperature(
    temperature: float, tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    model = tiny_folder.load(temperature=temperature)
    ids = tiny_folder.ids
    prompt, answer = [ids["<bos>"], ids["<user>"], ids["long"]], [ids[token] for token in ANSWERS["long"].split()]
    check(model.generate(ask("long")), reference, model, prompt, answer, counted=[*range(5)], mapped=[*range(5)])


def test_an_answer_that_ends_at_once_has_only_the_prompts_map(
    tiny: LocalModel, tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    found = tiny.generate(ask("word1 stop"))
    ids = tiny_folder.ids
    expected = reference(tiny, [ids[token] for token in ("<bos>", "<user>", "word1", "stop")], [])
    assert (found.text, found.tokens, found.finish_reason, found.statistics) == ("", 0, "stop", None)
    assert set(found.signatures) == {"prompt"}
    assert_allclose(found.signatures["prompt"], expected.prompt, rtol=1e-4, atol=1e-6)


def test_one_token_gives_statistics_and_only_the_prompts_map(
    tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    model = tiny_folder.load(max_new_tokens=1)
    found = model.generate(ask("long"))
    ids = tiny_folder.ids
    expected = reference(model, [ids["<bos>"], ids["<user>"], ids["long"]], [ids["one"]])
    assert (found.text, found.tokens, found.finish_reason) == ("one", 1, "length")
    assert set(found.signatures) == {"prompt"}
    assert found.statistics is not None
    assert found.statistics.logprob_sum == pytest.approx(expected.logprobs[0], rel=1e-4)
    assert found.statistics.logprob_mean == found.statistics.logprob_sum
    assert found.statistics.margin_min == pytest.approx(expected.margins[0], rel=1e-4)


def test_an_end_at_the_last_allowed_token_is_a_stop(
    tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    model = tiny_folder.load(max_new_tokens=2)
    ids = tiny_folder.ids
    prompt = [ids["<bos>"], ids["<user>"], ids["short"]]
    found = model.generate(ask("short"))
    check(found, reference, model, prompt, [ids["Oslo"]], counted=[0], mapped=[0])
    assert found.finish_reason == "stop"


def test_a_special_token_alone_is_no_answer(tiny_folder: "TinyFolder", ask: Ask) -> None:
    found = tiny_folder.load(max_new_tokens=1).generate(ask("toolfirst"))
    assert (found.text, found.tokens, found.finish_reason, found.statistics) == ("", 0, "length", None)
    assert set(found.signatures) == {"prompt"}


def test_padded_rows_that_end_at_different_steps_equal_single_runs(
    tiny: LocalModel, ask: Ask, agree: Callable[..., None]
) -> None:
    prompts = [
        "stop",
        "word1 word2 word3 word4 word5 short",
        "word1 forever",
        "word9 word8 word7 tool",
        "long",
        "pause",
    ]
    singles = [tiny.generate(ask(prompt)) for prompt in prompts]
    assert len({single.tokens for single in singles}) == 5
    for found, expected in zip(tiny.generate_batch([ask(prompt) for prompt in prompts]), singles, strict=True):
        agree(found, expected)


def test_a_batch_keeps_its_order(tiny: LocalModel, ask: Ask) -> None:
    words = ["long", "short", "stop", "pause"]
    texts = [found.text for found in tiny.generate_batch([ask(word) for word in words])]
    assert texts == ["one two three four five", "Oslo", "", "zeta eta"]
    backwards = [found.text for found in tiny.generate_batch([ask(word) for word in reversed(words)])]
    assert backwards == texts[::-1]


def test_a_row_of_a_batch_equals_the_reference(
    tiny: LocalModel, tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    found = tiny.generate_batch([ask("word1 word2 word3 word4 forever"), ask("tool"), ask("stop")])[1]
    ids = tiny_folder.ids
    answer = [ids[token] for token in ANSWERS["tool"].split()]
    check(
        found,
        reference,
        tiny,
        [ids[token] for token in ("<bos>", "<user>", "tool")],
        answer,
        counted=[0, 2],
        mapped=[0, 2],
    )


def test_a_base_models_line_break_ends_its_answer_and_doesnt_count(
    make_tiny: Callable[..., "TinyFolder"], reference: Callable[..., Any], ask: Ask
) -> None:
    folder = make_tiny(chat_template=None)
    model = folder.load(prompt="word2 word3 {question}")
    found = model.generate(ask("line"))
    prompt = [folder.ids[token] for token in ("<bos>", "word2", "word3", "line")]
    check(found, reference, model, prompt, [folder.ids["delta"]], counted=[0], mapped=[0])
    assert (found.text, found.finish_reason) == ("delta", "stop")


def test_a_chat_models_line_break_is_part_of_its_answer(tiny: LocalModel, ask: Ask) -> None:
    found = tiny.generate(ask("line"))
    assert (found.text, found.tokens, found.finish_reason) == ("delta \n epsilon", 3, "stop")
