from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    OPTConfig,
)

from benchmarks.architectures.tiny import tiny
from ilis_guard.errors import SignatureError
from ilis_guard.signature import layout, locate, register_layout

pytestmark = pytest.mark.usefixtures("real_model")

LAYERS = 3
GEMMA4_MOE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}
SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


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


def test_mlps_come_in_the_order_of_the_layers() -> None:
    model = build(LlamaConfig(**SMALL | {"num_hidden_layers": 12}))
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    assert [point.module for point in locate(model, 12)] == [layer.mlp for layer in layers]
    assert [point.path for point in locate(model, 12)][10:] == ["model.layers.10.mlp", "model.layers.11.mlp"]
    assert [point.module for point in locate(model, 12, "residual")] == list(layers)


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
        locate(model, LAYERS)


def test_another_number_of_layers_than_configured_is_refused() -> None:
    with pytest.raises(SignatureError, match=r"one list of 4 layers .* found 0 \[\]; no list is that long\."):
        locate(build(LlamaConfig(**SMALL)), 4)


def test_two_lists_that_could_be_the_decoder_are_refused_with_their_places() -> None:
    with pytest.raises(SignatureError, match=r"found 2 \['blocks0', 'blocks1'\]"):
        locate(decoder(["mlp", "mlp"], ["mlp", "mlp"]), 2)


def test_a_list_of_the_right_length_without_mlps_is_no_rival() -> None:
    model = decoder(["attention", "attention"], ["mlp", "mlp"])
    assert len(locate(model, 2)) == 2


def test_a_list_in_which_one_layer_has_no_mlp_isnt_the_decoder() -> None:
    with pytest.raises(SignatureError, match="found 0"):
        locate(decoder(["mlp", "attention", "mlp"]), 3)


@pytest.mark.parametrize("name", ["mlp", "feed_forward", "block_sparse_moe"])
def test_the_names_that_architectures_use_are_known(name: str) -> None:
    model = decoder([name, name])
    assert all(isinstance(point.module, nn.Linear) for point in locate(model, 2))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block_sparse_moe, self.shared_mlp = nn.Linear(4, 4), nn.Linear(4, 4)


def test_layers_with_two_mlps_are_refused() -> None:
    model = nn.Module()
    model.add_module("layers", nn.ModuleList([Pair(), Pair()]))
    with pytest.raises(
        SignatureError, match=r"found 0 \[\], and layers that have \['block_sparse_moe and shared_mlp'\]"
    ):
        locate(model, 2)


@pytest.mark.parametrize(
    ("architecture", "options", "found"),
    [
        ("gemma4_text", GEMMA4_MOE, "mlp and experts"),
        ("granitemoehybrid", {"num_local_experts": 4, "num_experts_per_tok": 2}, "block_sparse_moe and shared_mlp"),
        ("longcat_flash", {}, "mlp and mlps"),
    ],
)
def test_architectures_with_two_mlps_a_layer_are_refused(
    architecture: str, options: dict[str, Any], found: str
) -> None:
    model = tiny(architecture, options)
    with pytest.raises(SignatureError, match=rf"and layers that have \['{found}'\]"):
        locate(model, LAYERS + 1)


def test_of_two_lists_the_one_in_the_models_own_decoder_is_meant() -> None:
    model = tiny("gemma3", {})
    assert len(model.model.vision_tower.encoder.layers) == len(model.model.language_model.layers)
    assert layout.pattern(locate(model, LAYERS + 1)) == "model.language_model.layers.*.mlp"


def test_error_on_layers_without_a_known_mlp_lists_their_modules() -> None:
    with pytest.raises(
        SignatureError,
        match=r"'bert.encoder.layer' has layers of \(attention, intermediate, output\)\. Where its MLPs have other",
    ):
        locate(tiny("bert", {}), LAYERS + 1)


def test_each_kind_of_layer_is_shown_once() -> None:
    with pytest.raises(SignatureError, match=r"'blocks0' has layers of \(mlp\) or \(attention\)\. Where"):
        locate(decoder(["mlp", "attention", "mlp"]), 3)


@pytest.mark.usefixtures("registry")
def test_misleading_architecture_is_refused_until_registered() -> None:
    model = tiny("reformer", {})
    with pytest.raises(SignatureError, match="ReformerModelWithLMHead can't be tapped: each layer adds to one of two"):
        locate(model, LAYERS + 1)
    register_layout("ReformerModelWithLMHead", layers="reformer.encoder.layers", mlp="feed_forward")
    assert len(locate(model, LAYERS + 1)) == LAYERS + 1


class Peculiar(nn.Module):
    """A user's own architecture: nothing in it has a known name."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.ModuleList([nn.ModuleDict({"wide": nn.Sequential(nn.Linear(4, 4))}) for _ in range(2)])


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_REGISTERED", dict(layout._REGISTERED))


@pytest.mark.usefixtures("registry")
def test_a_registered_layout_is_followed_and_counts_before_structure() -> None:
    with pytest.raises(SignatureError, match=r"register_layout tells where they are"):
        locate(Peculiar(), 2)
    register_layout("Peculiar", layers="tower", mlp="wide.0")
    assert [point.path for point in locate(Peculiar(), 2)] == ["tower.0.wide.0", "tower.1.wide.0"]
    assert [point.path for point in locate(Peculiar(), 2, "residual")] == ["tower.0", "tower.1"]
    assert layout.pattern(locate(Peculiar(), 2)) == "tower.*.wide.0"
    register_layout("LlamaForCausalLM", layers="model.layers", mlp="mlp.down_proj")
    assert locate(build(LlamaConfig(**SMALL)), LAYERS)[1].path == "model.layers.1.mlp.down_proj"


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("layers", "mlp", "why"),
    [
        ("towers", "wide.0", "has no attribute `towers`"),
        ("tower", "wide.1", "has no attribute `1`"),
        ("tower.0", "wide", r"'tower.0' isn't a list of 2 layers"),
    ],
)
def test_a_registered_layout_that_doesnt_fit_is_refused(layers: str, mlp: str, why: str) -> None:
    register_layout("Peculiar", layers=layers, mlp=mlp)
    with pytest.raises(SignatureError, match=rf"the layout registered for it .* doesn't fit: .*{why}"):
        locate(Peculiar(), 2)


@pytest.mark.parametrize("bad", ["", "model..layers", "model layers", "model.layers.*"])
def test_layout_with_invalid_paths_is_refused(bad: str) -> None:
    with pytest.raises(SignatureError, match=r"layers must be a dotted path, such as 'model.layers', got "):
        register_layout("Peculiar", layers=bad, mlp="mlp")
