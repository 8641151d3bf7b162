from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3Config,
)

from ilis_guard.errors import SignatureError
from ilis_guard.signature import Tap, locate_mlps

LAYERS = 3
SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
TAPPABLE = [
    LlamaConfig(**SMALL),
    Qwen3Config(**SMALL),
    Gemma3TextConfig(**SMALL),
    MixtralConfig(**SMALL, num_local_experts=2),
    GPT2Config(vocab_size=99, n_embd=32, n_layer=LAYERS, n_head=4),
    GPTNeoXConfig(vocab_size=99, hidden_size=32, intermediate_size=40, num_hidden_layers=LAYERS, num_attention_heads=4),
    FalconConfig(vocab_size=99, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4),
]


def build(config: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # as transformers has it
    return model.eval()


class Block(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(4, 4))


def decoder(*lists: list[str]) -> nn.Module:
    model = nn.Module()
    for place, names in enumerate(lists):
        model.add_module(f"blocks{place}", nn.ModuleList([Block(name) for name in names]))
    return model


@pytest.mark.parametrize("config", TAPPABLE, ids=lambda config: config.model_type)
def test_each_layers_mlp_is_found_and_lies_in_the_path_of_the_answer(config: Any) -> None:
    model = build(config)
    mlps = locate_mlps(model, LAYERS)
    assert len({id(mlp) for mlp in mlps}) == LAYERS
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(tokens).logits
        with Tap(mlps) as tap:
            model(tokens)
            activations = tap.take()
        assert activations.shape == (1, LAYERS, 32)
        for mlp in mlps:
            hook = mlp.register_forward_hook(
                lambda _module, _inputs, output: (
                    (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5
                )
            )
            assert not torch.equal(model(tokens).logits, before)
            hook.remove()


def test_mlps_come_in_the_order_of_the_layers() -> None:
    model = build(LlamaConfig(**SMALL | {"num_hidden_layers": 12}))
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    assert locate_mlps(model, 12) == [layer.mlp for layer in layers]


def test_an_architecture_without_mlp_modules_is_refused_by_name() -> None:
    model = build(
        OPTConfig(
            vocab_size=99,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=40,
            num_hidden_layers=3,
            num_attention_heads=4,
        )
    )
    with pytest.raises(SignatureError, match=r"OPTForCausalLM can't be tapped: looked for one list of 3 layers.*'mlp'"):
        locate_mlps(model, LAYERS)


def test_another_number_of_layers_than_configured_is_refused() -> None:
    with pytest.raises(SignatureError, match=r"one list of 4 layers .* found 0"):
        locate_mlps(build(LlamaConfig(**SMALL)), 4)


def test_two_lists_that_could_be_the_decoder_are_refused_with_their_places() -> None:
    with pytest.raises(SignatureError, match=r"found 2 \['blocks0', 'blocks1'\]"):
        locate_mlps(decoder(["mlp", "mlp"], ["mlp", "mlp"]), 2)


def test_a_list_of_the_right_length_without_mlps_is_no_rival() -> None:
    model = decoder(["attention", "attention"], ["mlp", "mlp"])
    assert len(locate_mlps(model, 2)) == 2


def test_a_list_in_which_one_layer_has_no_mlp_isnt_the_decoder() -> None:
    with pytest.raises(SignatureError, match="found 0"):
        locate_mlps(decoder(["mlp", "attention", "mlp"]), 3)


@pytest.mark.parametrize("name", ["mlp", "feed_forward", "block_sparse_moe"])
def test_the_names_that_architectures_use_are_known(name: str) -> None:
    model = decoder([name, name])
    assert all(isinstance(mlp, nn.Linear) for mlp in locate_mlps(model, 2))
