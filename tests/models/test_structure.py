"""What computes with the weights is compared with what a model's class builds from its configuration."""

import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP

from benchmarks.architectures.tiny import tiny as tiny_of
from ilis_guard.errors import ModelError
from ilis_guard.models.checkpoint import Checkpoint
from ilis_guard.models.local import LocalModel
from ilis_guard.models.structure import check_structure
from tests.models.in_memory import fingerprint, in_memory

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = [
    pytest.mark.usefixtures("real_model"),
    # torch.compile imports it.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


class Own(nn.Module):
    """A module of somebody else's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        return 1.1 * self.inner(*inputs)  # type: ignore[no-any-return]


def another_activation(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def wrapped_module(model: Any) -> None:
    model.model.layers[1].mlp = Own(model.model.layers[1].mlp)


def layers_cut(model: Any) -> None:
    model.model.layers = model.model.layers[:2]


def layers_reordered(model: Any) -> None:
    first, second, third = model.model.layers
    model.model.layers = nn.ModuleList([second, first, third])


def another_epsilon(model: Any) -> None:
    model.model.layers[0].input_layernorm.variance_epsilon = 0.1


def another_scaling(model: Any) -> None:
    model.model.layers[2].self_attn.scaling *= 2


def other_positions(model: Any) -> None:
    model.model.rotary_emb.inv_freq *= 0.5


def rounded_positions(model: Any) -> None:
    model.model.rotary_emb.to(torch.bfloat16)


def other_positions_in_the_configuration(model: Any) -> None:
    model.config.rope_parameters["rope_theta"] = 1e6


def fewer_layers_in_the_configuration(model: Any) -> None:
    model.config.num_hidden_layers = 2


def steered(model: Any) -> None:
    model.model.layers[1].register_forward_hook(lambda _module, _inputs, output: output)


def watched_before(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_pre_hook(lambda _module, inputs: inputs)


def own_forward(model: Any) -> None:
    mlp, forward = model.model.layers[1].mlp, cast("Any", LlamaMLP).forward
    mlp.forward = types.MethodType(lambda self, given: 2 * forward(self, given), mlp)


def compiled_in_place(model: Any) -> None:
    model.model.layers[1].mlp.compile()


def weights_normed(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.model.layers[1].mlp.down_proj)


def head_of_two(model: Any) -> None:
    model.lm_head = nn.Sequential(model.lm_head, nn.Identity())


CHANGES: dict[Callable[[Any], object], str] = {
    another_activation: "'model.layers.1.mlp.act_fn': is a torch.nn.modules.activation.ReLU",
    wrapped_module: "its modules aren't those of its configuration, such as 'model.layers.1.mlp.act_fn'",
    layers_cut: "such as 'model.layers.2'",
    layers_reordered: "'model.layers.0.self_attn': its layer_idx is 1, and was built as 0",
    another_epsilon: "'model.layers.0.input_layernorm': its variance_epsilon is 0.1",
    another_scaling: "'model.layers.2.self_attn': its scaling",
    other_positions: "'model.rotary_emb': its buffer inv_freq has other values",
    rounded_positions: r"'model.rotary_emb': its buffer inv_freq is \[8\] of torch.bfloat16",
    other_positions_in_the_configuration: "'model.rotary_emb': its buffer inv_freq has other values",
    fewer_layers_in_the_configuration: "such as 'model.layers.2'",
    steered: "'model.layers.1': has the hook 'test_structure.steered",
    watched_before: "'model.layers.1.mlp': has the hook 'test_structure.watched_before",
    own_forward: "'model.layers.1.mlp': its forward was replaced by one of 'test_structure'",
    compiled_in_place: "'model.layers.1.mlp': is compiled into a graph",
    weights_normed: "such as 'model.layers.1.mlp.down_proj.parametrizations'",
    head_of_two: "such as 'lm_head.0'",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_computation_is_refused_and_named(
    change: Callable[[Any], object], tiny_folder: "TinyFolder", tiny: LocalModel
) -> None:
    model = in_memory(tiny_folder)
    change(model)
    model.eval()
    with pytest.raises(ModelError, match=CHANGES[change]):
        fingerprint(model, tiny_folder, tiny)


def test_a_class_that_was_patched_is_refused(
    tiny_folder: "TinyFolder", tiny: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before = in_memory(tiny_folder), cast("Any", LlamaMLP).forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, given: 2 * before(self, given))
    with pytest.raises(ModelError, match="its class's forward was replaced by one of 'test_structure'"):
        fingerprint(model, tiny_folder, tiny)


@pytest.mark.parametrize("wrapper", [torch.compile, nn.DataParallel])
def test_a_wrapped_model_is_refused(wrapper: Callable[[Any], Any], tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    with pytest.raises(ModelError, match="is no causal language model of transformers"):
        fingerprint(wrapper(in_memory(tiny_folder)), tiny_folder, tiny)


def test_a_part_in_training_mode_is_refused(tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    model = in_memory(tiny_folder)
    model.model.layers[1].train()
    with pytest.raises(ModelError, match=r"training mode.* call model.eval\(\)"):
        fingerprint(model, tiny_folder, tiny)


def test_a_model_that_encodes_its_prompt_apart_is_refused(tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    config = T5Config(vocab_size=64, d_model=64, d_kv=8, d_ff=48, num_layers=3, num_heads=4)
    model: Any = T5ForConditionalGeneration(config)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration encodes its prompt apart"):
        fingerprint(model.eval(), tiny_folder, tiny)


def test_a_model_without_a_tokenizer_is_refused(tiny_folder: "TinyFolder") -> None:
    with pytest.raises(ModelError, match="has no tokenizer, got a NoneType"):
        Checkpoint.of(in_memory(tiny_folder), None)


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "mamba2", "mixtral", "falcon_h1", "qwen3_next", "bloom"])
def test_models_as_they_are_built_are_accepted_before_and_after_their_first_pass(name: str) -> None:
    model = tiny_of(name, {}).eval()
    check_structure(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 17, 3, 8]]))
    check_structure(model)


def test_positions_that_grow_with_the_prompt_are_no_change() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = tiny_of("llama", {"rope_parameters": rope, "max_position_embeddings": 16}).eval()
    before = model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        model(input_ids=torch.arange(40)[None])
    assert not torch.equal(model.model.rotary_emb.inv_freq, before)
    check_structure(model)


def test_the_structure_is_read_without_touching_the_weights() -> None:
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=32))
    model.eval()
    before = {name: (value.data_ptr(), value._version) for name, value in model.named_parameters()}
    check_structure(model)
    assert {name: (value.data_ptr(), value._version) for name, value in model.named_parameters()} == before
    assert torch.get_default_dtype() is torch.float32


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Somebody's own, under the name of the function that it takes the place of."""

    @functools.wraps(function)
    def replacement(*given: Any, **options: Any) -> Any:
        return function(*given, **options)

    return replacement


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        (modeling_llama, "apply_rotary_pos_emb", "modeling_llama.apply_rotary_pos_emb was replaced by one of 'test"),
        (nn.functional, "silu", "torch.nn.functional.silu was replaced by one of 'test"),
        (modeling_llama, "LlamaMLP", "modeling_llama.LlamaMLP was replaced by one of 'test"),
        (LlamaMLP, "forward", "its class's forward was replaced"),
    ],
)
def test_a_library_whose_functions_were_replaced_before_loading_is_refused(
    place: Any, name: str, said: str, tiny_folder: "TinyFolder", monkeypatch: pytest.MonkeyPatch
) -> None:
    own = type("OwnMLP", (LlamaMLP,), {"__module__": __name__})
    monkeypatch.setattr(place, name, own if name == "LlamaMLP" else decorated(getattr(place, name)))
    with pytest.raises(ModelError, match=said):
        tiny_folder.load(proof=False)


def test_an_attention_under_the_librarys_name_is_refused(tiny_folder: "TinyFolder") -> None:
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    try:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = decorated(attend)
        with pytest.raises(ModelError, match="its attention 'sdpa' was replaced by one of 'test"):
            tiny_folder.load(proof=False)
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
