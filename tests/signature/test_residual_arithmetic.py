"""The tapped tensor is the addition to each architecture's residual stream, checked by the model's own arithmetic."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
    XGLMConfig,
)

from ilis_guard.signature import locate

pytestmark = pytest.mark.usefixtures("real_model")

LAYERS = 3
SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
SINGLE = ("mixtral", "olmoe", "xglm")
"""They don't run in float64."""
ATTENTION = ("self_attn", "attn", "self_attention.dense", "self_attention", "attention")


def as_it_is(_layer: Any, tensor: Tensor) -> Tensor:
    return tensor


def multiplied(layer: Any, tensor: Tensor) -> Tensor:
    assert layer.residual_multiplier == 0.3
    return tensor * 0.3


def attention_normed(layer: Any, tensor: Tensor) -> Tensor:
    normed: Tensor = layer.post_attention_layernorm(tensor)
    return normed


def normed(layer: Any, tensor: Tensor) -> Tensor:
    result: Tensor = layer.post_feedforward_layernorm(tensor)
    return result


PLAIN = [
    LlamaConfig(**SMALL),
    Qwen2Config(**SMALL, num_key_value_heads=2),
    Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    MistralConfig(**SMALL, num_key_value_heads=2),
    Phi3Config(**SMALL),
    MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4),
    OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2),
    StableLmConfig(**SMALL, num_key_value_heads=4),
    GPT2Config(vocab_size=99, n_embd=32, n_layer=LAYERS, n_head=4),
    BloomConfig(vocab_size=99, hidden_size=32, n_layer=LAYERS, n_head=4),
    MptConfig(vocab_size=99, d_model=32, n_layers=LAYERS, n_heads=4),
    XGLMConfig(vocab_size=99, d_model=32, ffn_dim=40, num_layers=LAYERS, attention_heads=4),
    BioGptConfig(**SMALL),
    # In parallel with attention: the sum is the same.
    GPTNeoXConfig(**SMALL),
    PhiConfig(**SMALL),
    CohereConfig(**SMALL),
    FalconConfig(vocab_size=99, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4),
]
SANDWICH = [
    Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
    Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=8),
    Olmo2Config(**SMALL),
]
Change = Callable[[Any, Tensor], Tensor]
CASES: list[tuple[Any, Change, Change]] = [
    *((config, as_it_is, as_it_is) for config in PLAIN),
    *((config, attention_normed, normed) for config in SANDWICH),
    (GraniteConfig(**SMALL, residual_multiplier=0.3), multiplied, multiplied),
]


def attention_of(layer: nn.Module) -> nn.Module:
    for path in ATTENTION:
        try:
            return layer.get_submodule(path)
        except AttributeError:
            continue
    raise AssertionError(f"no attention in {type(layer).__name__}")


@pytest.mark.parametrize(
    ("config", "attended", "added"), [pytest.param(*case, id=case[0].model_type) for case in CASES]
)
def test_input_and_attention_and_tapped_tensor_add_up_to_the_layers_output(
    config: Any, attended: Change, added: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if config.model_type in SINGLE else torch.float64
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    layers = [point.module for point in locate(model, LAYERS, "residual")]
    mlps = [point.module for point in locate(model, LAYERS, "mlp")]
    seen: dict[nn.Module, Tensor] = {}
    for module in [*layers, *mlps, *map(attention_of, layers)]:

        def forward(*args: Any, module: nn.Module = module, own: Any = module.forward, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            seen[module] = (output[0] if isinstance(output, tuple) else output).clone()
            return output

        monkeypatch.setattr(module, "forward", forward)
    with torch.inference_mode():
        model(input_ids=torch.tensor([[5, 17, 40, 3]]), use_cache=False)
        streams = [seen[layer] for layer in layers]
        attentions = [attended(layer, seen[attention_of(layer)]) for layer in layers]
        outputs = [added(layer, seen[mlp]) for layer, mlp in zip(layers, mlps, strict=True)]
    for at in range(1, LAYERS):
        assert outputs[at].abs().max() > 1e-3
        expected = streams[at - 1] + attentions[at] + outputs[at]
        np.testing.assert_allclose(streams[at].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
