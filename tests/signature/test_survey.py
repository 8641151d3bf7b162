"""The survey of architectures distinguishes right taps from wrong ones."""

from typing import Any

import pytest

from benchmarks.architectures.arithmetic import Arithmetic, arithmetic
from benchmarks.architectures.survey import survey
from benchmarks.architectures.tiny import tiny
from ilis_guard.signature import layout, locate, register_layout

pytestmark = pytest.mark.usefixtures("real_model")

GEMMA4_MOE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_REGISTERED", dict(layout._REGISTERED))


def of_layers(architecture: str, mlp: str = "", **options: Any) -> list[Arithmetic]:
    model = tiny(architecture, options)
    if mlp:
        register_layout(type(model).__name__, layers="model.layers", mlp=mlp)
    layers = model.config.num_hidden_layers
    return arithmetic(model, locate(model, layers, "residual"), locate(model, layers))


@pytest.mark.parametrize(
    ("architecture", "added", "mixers"),
    [
        ("llama", {"as it is"}, {("self_attn",)}),
        ("gpt_neox", {"as it is"}, {("attention",)}),
        ("minicpm3", {"times 0.7"}, {("self_attn",)}),
        ("gemma2", {"through post_feedforward_layernorm"}, {("self_attn",)}),
        ("bloom", {"as it is"}, {("self_attention",)}),
        ("openai-gpt", {"as it is"}, {("attn",)}),
        ("falcon_h1", {"as it is"}, {("mamba", "self_attn")}),
        ("lfm2", {"as it is"}, {("conv",), ("self_attn",)}),
        ("jamba", {"as it is"}, {("mamba",), ("self_attn",)}),
        ("hy_v4", {"into 4 streams"}, {("self_attn",)}),
    ],
)
def test_how_the_tapped_tensor_is_added(architecture: str, added: set[str], mixers: set[tuple[str, ...]]) -> None:
    found = of_layers(architecture)
    assert all(layer.holds for layer in found)
    assert {layer.added for layer in found} == added
    assert {layer.mixers for layer in found} == mixers


@pytest.mark.parametrize(
    ("architecture", "options", "mlp", "unexplained"),
    [
        ("granitemoeshared", {"shared_intermediate_size": 24}, "shared_mlp", ("block_sparse_moe",)),
        ("granitemoeshared", {"shared_intermediate_size": 24}, "block_sparse_moe", ("shared_mlp",)),
        ("llama", {}, "self_attn", ("mlp",)),
    ],
)
def test_part_of_the_addition_is_not_accepted(
    architecture: str, options: dict[str, Any], mlp: str, unexplained: tuple[str, ...]
) -> None:
    found = of_layers(architecture, mlp, **options)
    assert not any(layer.holds for layer in found)
    assert {layer.unexplained for layer in found} == {unexplained}


@pytest.mark.parametrize(
    ("architecture", "options", "mlp"),
    [
        ("gemma4_text", GEMMA4_MOE, "mlp"),
        ("llama", {}, "post_attention_layernorm"),
        ("llama", {}, "self_attn.o_proj"),
    ],
)
def test_tensor_outside_the_addition_is_not_accepted(architecture: str, options: dict[str, Any], mlp: str) -> None:
    assert not any(layer.holds for layer in of_layers(architecture, mlp, **options))


def test_a_row_of_each_verdict() -> None:
    register_layout("MistralForCausalLM", layers="model.layers", mlp="post_attention_layernorm")
    rows = {architecture: survey(architecture, architecture, {}) for architecture in ("qwen3", "bert", "musicgen")}
    rows["mistral"] = survey("mistral", "mistral", {})
    rows["deepseek_v4"] = survey("deepseek_v4", "deepseek_v4", {})
    assert {name: (row.mlp, row.residual) for name, row in rows.items()} == {
        "qwen3": ("holds", "holds"),
        "bert": ("refused", "refused"),
        "musicgen": ("not built", "not built"),
        "mistral": ("wrong", "holds"),
        "deepseek_v4": ("holds", "refused"),
    }
    assert rows["qwen3"].taps == "model.layers.*.mlp"
    assert rows["bert"].why.startswith("BertLMHeadModel can't be tapped: looked for one list of 4 layers")
    assert "expected [batch, sequence, hidden]" in rows["deepseek_v4"].why
