from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = [
    pytest.mark.usefixtures("real_model"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="these numbers are a processor's"),
]

Ask = Callable[..., list[Message]]


@pytest.fixture(scope="module")
def model(tiny_folder: "TinyFolder") -> LocalModel:
    return tiny_folder.load(precision="nf4")


@pytest.fixture(scope="module")
def linears(model: LocalModel) -> dict[str, Any]:
    return {name: module for name, module in model._model.named_modules() if isinstance(module, Linear4bit)}


def test_every_projection_of_every_layer_is_held_in_4_bits(linears: dict[str, Any], model: LocalModel) -> None:
    projections = [
        f"model.layers.{layer}.{name}"
        for layer in range(model.fingerprint.layers)
        for name in (
            *(f"self_attn.{letter}_proj" for letter in "qkvo"),
            *(f"mlp.{direction}_proj" for direction in ("gate", "up", "down")),
        )
    ]
    assert sorted(linears) == sorted(projections)
    for linear in linears.values():
        assert linear.weight.dtype == torch.uint8
        assert linear.weight.numel() * 2 == linear.in_features * linear.out_features


def test_linears_are_nf4_with_nested_quantisation_and_float32_compute(linears: dict[str, Any]) -> None:
    for linear in linears.values():
        assert linear.weight.quant_type == "nf4"
        assert linear.weight.quant_state.quant_type == "nf4"
        assert linear.weight.quant_state.nested is True
        assert linear.compute_dtype == torch.float32


def test_no_layer_rounds_to_bfloat16_behind_our_back(linears: dict[str, Any]) -> None:
    assert {linear.support_avx512bf16_for_cpu for linear in linears.values()} == {False}


def test_layer_output_equals_that_of_the_dequantised_weight(linears: dict[str, Any]) -> None:
    from bitsandbytes.functional import dequantize_4bit

    linear = linears["model.layers.1.mlp.up_proj"]
    inputs = torch.randn(2, 5, linear.in_features, generator=torch.Generator().manual_seed(1))
    weight = dequantize_4bit(linear.weight, linear.weight.quant_state).double()
    weight = weight.reshape(linear.out_features, linear.in_features)
    with torch.inference_mode():
        found = linear(inputs).double()
    # bfloat16 would be off by 1e-3 to 1e-2.
    torch.testing.assert_close(found, inputs.double() @ weight.T, rtol=1e-5, atol=1e-5)


def test_signatures_differ_from_full_precisions_and_still_resemble_them(
    model: LocalModel, tiny: LocalModel, ask: Ask
) -> None:
    found, full = model.generate(ask("long")), tiny.generate(ask("long"))
    ratio = (
        found.signatures["prompt"][full.signatures["prompt"] > 0]
        / full.signatures["prompt"][full.signatures["prompt"] > 0]
    )
    assert 0.01 < np.abs(ratio - 1).max() < 3


def test_a_batch_equals_single_runs_at_4_bits(model: LocalModel, ask: Ask, agree: Callable[..., None]) -> None:
    prompts = [ask(words) for words in ("word1 word2 word3 long", "short", "stop", "word4 forever", "tool")]
    for found, prompt in zip(model.generate_batch(prompts), prompts, strict=True):
        agree(found, model.generate(prompt))


def test_signatures_equal_a_second_pass_of_the_same_4_bit_model(
    model: LocalModel, tiny_folder: "TinyFolder", reference: Callable[..., Any], ask: Ask
) -> None:
    found = model.generate(ask("long"))
    assert found.tokens is not None
    assert found.tokens >= 2
    answer = [tiny_folder.ids[word] for word in found.text.split(" ")]
    expected = reference(model, [tiny_folder.ids[word] for word in ("<bos>", "<user>", "long")], answer)
    mapped = np.array(expected.maps)[: found.tokens if found.finish_reason == "stop" else found.tokens - 1]
    np.testing.assert_allclose(found.signatures["prompt"], expected.prompt, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.signatures["mean"], mapped.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_tapping_changes_no_text_at_4_bits(model: LocalModel, ask: Ask) -> None:
    for word in ("long", "short", "forever", "pause"):
        assert model.generate(ask(word)).text == model.generate_bare(ask(word))
