"""The real SmolLM2-135M-Instruct, from its package, at both precisions."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Message

pytestmark = pytest.mark.usefixtures("real_model")

Ask = Callable[..., list[Message]]
Answer = Callable[[LocalModel, str], Generation]
QUESTIONS = [
    "What is the capital of Norway?",
    "Name the city in which one finds the Eiffel Tower, which was built for the World's Fair of 1889.",
    "What is 2 + 2?",
]


@pytest.fixture(params=["full", "nf4"])
def smollm2(request: pytest.FixtureRequest) -> LocalModel:
    model: LocalModel = request.getfixturevalue(f"smollm2_{request.param}")
    return model


@pytest.mark.parametrize(
    ("question", "answer"), [("What is the capital of Norway?", "Oslo"), ("What is the capital of France?", "Paris")]
)
def test_full_precision_names_capitals(
    question: str, answer: str, smollm2_full: LocalModel, answer_once: Answer
) -> None:
    found = answer_once(smollm2_full, question)
    assert re.search(rf"\b{answer}\b", found.text)
    assert found.finish_reason == "stop"


def test_shape_is_that_of_the_model_card(smollm2: LocalModel) -> None:
    assert (smollm2.fingerprint.layers, smollm2.fingerprint.hidden) == (30, 576)


def test_the_precisions_differ_in_their_weights_alone(smollm2_full: LocalModel, smollm2_nf4: LocalModel) -> None:
    assert smollm2_full.fingerprint.differences(smollm2_nf4.fingerprint) == ("weights", "precision")
    kinds = [{type(module) for module in model._model.modules()} for model in (smollm2_full, smollm2_nf4)]
    assert [Linear4bit in modules for modules in kinds] == [False, True]


@pytest.mark.parametrize("question", QUESTIONS)
def test_signatures_are_finite_maps_of_all_layers(question: str, smollm2: LocalModel, answer_once: Answer) -> None:
    found = answer_once(smollm2, question)
    assert set(found.signatures) == {"prompt", "last", "mean"}
    for signature in found.signatures.values():
        assert signature.shape == (30, 30)
        assert signature.dtype == np.float32
        assert np.isfinite(signature).all()
        assert (signature.diagonal() == 0).all()
        assert (signature[~np.eye(30, dtype=bool)] > 0).all()
    assert found.statistics is not None
    assert found.tokens is not None
    assert found.statistics.logprob_sum < 0
    assert found.statistics.logprob_mean == pytest.approx(found.statistics.logprob_sum / found.tokens)
    assert found.statistics.entropy_mean > 0
    assert 0 <= found.statistics.margin_min <= 1


@pytest.mark.parametrize("question", QUESTIONS)
def test_signatures_equal_a_second_pass_and_taps_change_no_text(
    question: str, smollm2: LocalModel, reference: Callable[..., Any], ask: Ask, answer_once: Answer
) -> None:
    found = answer_once(smollm2, question)
    asked = [{"role": "user", "content": f"{question} Answer in a few words only."}]
    prompt = smollm2._tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert found.prompt_tokens == len(prompt)
    bare = generated(smollm2, ask(question))
    assert smollm2._codec.decode_answer(bare) == found.text
    assert found.tokens is not None
    answer = bare[: found.tokens]
    expected = reference(smollm2, prompt, answer)
    maps = np.array(expected.maps)[: found.tokens if found.finish_reason == "stop" else found.tokens - 1]
    wanted = {"prompt": expected.prompt, "last": maps[-1], "mean": maps.mean(axis=0)}
    for position, signature in found.signatures.items():
        np.testing.assert_allclose(signature, wanted[position], rtol=5e-4, atol=1e-5)
    assert found.statistics is not None
    assert found.statistics.logprob_sum == pytest.approx(sum(expected.logprobs), rel=1e-3, abs=1e-4)
    assert found.statistics.entropy_mean == pytest.approx(np.mean(expected.entropies), rel=1e-3, abs=1e-4)
    assert found.statistics.margin_min == pytest.approx(min(expected.margins), rel=1e-3, abs=1e-4)


def test_a_batch_equals_single_runs(
    smollm2: LocalModel, ask: Ask, agree: Callable[..., None], answer_once: Answer
) -> None:
    found = smollm2.generate_batch([ask(question) for question in QUESTIONS])
    for row, question in zip(found, QUESTIONS, strict=True):
        agree(row, answer_once(smollm2, question), rel=1e-3)


def generated(model: LocalModel, messages: list[Message]) -> list[int]:
    """The tokens of a bare, greedy answer."""
    prompt = model.prompt_tokens(messages)
    inputs = torch.tensor([prompt])
    sequence = model._model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs))[0].tolist()
    return list(sequence[len(prompt) :])
