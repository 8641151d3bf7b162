"""A fingerprint says which weights are in memory, whatever files they came from."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import dispatch_model
from tokenizers import normalizers, processors
from torch import nn
from transformers import AttentionInterface, AutoTokenizer, LlamaForCausalLM

from benchmarks.architectures.tiny import tiny as tiny_of
from ilis_guard.errors import ModelError
from ilis_guard.models.local import LocalModel
from ilis_guard.models.structure import check_structure
from ilis_guard.models.weights_digest import weights_digest
from tests.models.in_memory import fingerprint, four_bits, in_memory, tapped

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

Change = Callable[[Any], object]


def scaled(name: str, by: float = 1.01) -> Change:
    def change(model: Any) -> None:
        with torch.no_grad():
            model.get_submodule(name).weight.mul_(by)

    return change


def last_value(model: Any) -> None:
    model.model.layers[2].mlp.up_proj.weight.data[-1, -1] += 1e-6


def rows_swapped(model: Any) -> None:
    weight = model.model.layers[0].self_attn.q_proj.weight.data
    weight[[3, 5]] = weight[[5, 3]]


def layers_exchanged(model: Any) -> None:
    one, other = (model.model.layers[layer].mlp.down_proj for layer in (0, 2))
    one.weight, other.weight = other.weight, one.weight


def signs_turned(model: Any) -> None:
    model.model.layers[1].mlp.gate_proj.weight.data.neg_()


def head_replaced(model: Any) -> None:
    model.lm_head = nn.Linear(64, 64, bias=False).eval()


def tied(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def one_matrix_rounded(model: Any) -> None:
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.data = weight.data.bfloat16().float()


def computed_otherwise(model: Any) -> None:
    """Read from the configuration in each pass: no module and no weight differs."""
    model.config.sliding_window = 4


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(scaled("model.layers.1.mlp.down_proj"), id="a matrix scaled in place"),
        pytest.param(scaled("model.norm", 1.0001), id="a norm scaled in place"),
        pytest.param(scaled("model.embed_tokens"), id="embeddings scaled in place"),
        last_value,
        rows_swapped,
        layers_exchanged,
        signs_turned,
        head_replaced,
        tied,
        one_matrix_rounded,
        computed_otherwise,
    ],
)
def test_what_was_changed_in_memory_has_other_weights_than_its_files(
    change: Change, tiny_folder: "TinyFolder", tiny: LocalModel
) -> None:
    model = in_memory(tiny_folder)
    assert fingerprint(model, tiny_folder, tiny) == tiny.fingerprint
    change(model)
    assert fingerprint(model, tiny_folder, tiny).differences(tiny.fingerprint) == ("weights",)


def test_a_change_that_is_undone_leaves_the_same_weights(tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    model = in_memory(tiny_folder)
    rows_swapped(model)
    rows_swapped(model)
    assert fingerprint(model, tiny_folder, tiny) == tiny.fingerprint


def test_saved_and_loaded_weights_are_the_same(tiny_folder: "TinyFolder", tiny: LocalModel, tmp_path: Path) -> None:
    model = in_memory(tiny_folder)
    scaled("model.layers.1.mlp.down_proj")(model)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    AutoTokenizer.from_pretrained(tiny_folder.path).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = LocalModel.load(str(tmp_path), max_new_tokens=8)
    assert loaded.fingerprint == fingerprint(model, tiny_folder, tiny)
    assert loaded.fingerprint.differences(tiny.fingerprint) == ("weights",)


def test_a_model_that_was_never_saved_has_a_fingerprint(tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    model = in_memory(tiny_folder)
    model.name_or_path = model.config._name_or_path = "somebody/else"
    assert fingerprint(model, tiny_folder, tiny) == tiny.fingerprint


class OwnLlama(LlamaForCausalLM):  # type: ignore[no-untyped-call]  # transformers types it partly
    """Of the same name and the same weights, and who knows what it computes."""

    def forward(self, *given: Any, **options: Any) -> Any:
        return super().forward(*given, **options)


def test_a_class_of_ones_own_is_another_model(tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    model: Any = OwnLlama.from_pretrained(tiny_folder.path, dtype=torch.float32)
    assert fingerprint(model.eval(), tiny_folder, tiny).differences(tiny.fingerprint) == ("weights",)


def test_an_attention_that_somebody_registered_is_another_model() -> None:
    model = tiny_of("llama", {}).eval()
    before = weights_digest(model)
    for same in ("eager", "sdpa"):
        model.set_attn_implementation(same)
        assert weights_digest(model) == before
    AttentionInterface.register("own", lambda _module, query, *_rest, **_options: (query, None))
    model.set_attn_implementation("own")
    assert weights_digest(model) != before


def test_another_dtype_has_other_weights(tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    found = fingerprint(in_memory(tiny_folder, dtype=torch.bfloat16), tiny_folder, tiny)
    assert found.differences(tiny.fingerprint) == ("weights", "dtype")
    assert found.dtype == "bfloat16"


def test_tied_weights_are_those_of_two_equal_matrices() -> None:
    model = tiny_of("llama", {"tie_word_embeddings": True}).eval()
    before = weights_digest(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    assert weights_digest(model) == before
    model.lm_head.weight.data[0, 0] += 1
    assert weights_digest(model) != before


def test_weights_that_lie_on_disk_are_read_from_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_of("llama", {}).eval()
    before = weights_digest(model)
    places = {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(4)}
    places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    dispatched = dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert str(dispatched.model.layers[1].mlp.down_proj.weight.device) == "meta"
    assert weights_digest(dispatched) == before
    check_structure(dispatched)
    dispatched.model.layers[1].mlp._old_forward = lambda given: given
    with pytest.raises(ModelError, match=r"'model.layers.1.mlp': its _old_forward was replaced"):
        check_structure(dispatched)


def test_weights_that_are_nowhere_are_refused() -> None:
    model = tiny_of("llama", {}).eval()
    model.model.layers[0].mlp.to(torch.device("meta"))
    with pytest.raises(ModelError, match=r"'model.layers.0.mlp.\w+.weight' of the model can't be read"):
        weights_digest(model)


@pytest.mark.parametrize("threads", [1, 2])
def test_four_bits_are_the_same_however_they_were_packed(
    threads: int, tiny_folder: "TinyFolder", tiny: LocalModel
) -> None:
    expected = tiny_folder.load(precision="nf4").fingerprint
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = in_memory(tiny_folder, quantization_config=four_bits(), device_map="cpu")
    finally:
        torch.set_num_threads(before)
    assert fingerprint(model, tiny_folder, tiny) == expected
    assert expected.differences(tiny.fingerprint) == ("weights", "precision")


def packed_value(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.data[7] ^= 1


def scales_doubled(model: Any) -> None:
    state = model.model.layers[1].mlp.down_proj.weight.quant_state
    state.state2.absmax *= 2
    state.offset *= 2


@pytest.mark.parametrize("change", [packed_value, scales_doubled, scaled("model.norm")])
def test_four_bits_changed_in_memory_are_other_weights(
    change: Change, tiny_folder: "TinyFolder", tiny: LocalModel
) -> None:
    model = in_memory(tiny_folder, quantization_config=four_bits(), device_map="cpu")
    before = fingerprint(model, tiny_folder, tiny)
    change(model)
    assert fingerprint(model, tiny_folder, tiny).differences(before) == ("weights",)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bnb_4bit_quant_type": "fp4"}, "'fp4'"),
        ({"bnb_4bit_use_double_quant": False}, r"'nf4', 64, None"),
        ({"load_in_4bit": False, "load_in_8bit": True}, "Linear8bitLt"),
    ],
)
def test_other_quantisations_are_refused(
    options: dict[str, Any], named: str, tiny_folder: "TinyFolder", tiny: LocalModel
) -> None:
    quantisation = four_bits(**{name: value for name, value in options.items() if name.startswith("bnb")})
    quantisation.load_in_4bit = options.get("load_in_4bit", True)
    quantisation.load_in_8bit = options.get("load_in_8bit", False)
    model = in_memory(tiny_folder, quantization_config=quantisation, device_map="cpu")
    with pytest.raises(ModelError, match=rf"quantised otherwise than NF4 .*{named}"):
        fingerprint(model, tiny_folder, tiny)


def test_the_compute_dtype_is_that_of_the_layers(tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    quantisation = four_bits(bnb_4bit_compute_dtype=torch.bfloat16)
    model = in_memory(tiny_folder, quantization_config=quantisation, device_map="cpu")
    assert fingerprint(model, tiny_folder, tiny).dtype == "bfloat16"
    model.model.layers[1].mlp.down_proj.compute_dtype = torch.float16
    with pytest.raises(ModelError, match="computes in bfloat16 and float16"):
        fingerprint(model, tiny_folder, tiny)


def word_added(tokenizer: Any) -> None:
    tokenizer.add_tokens(["fresh"])


def words_changed(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("quick", "word")


def no_beginning(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])


@pytest.mark.parametrize("change", [word_added, words_changed, no_beginning])
def test_another_tokenizer_is_another_prompt(change: Change, tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder.path)
    change(tokenizer)
    found = tapped(in_memory(tiny_folder), tiny_folder, tiny, tokenizer=tokenizer).fingerprint
    assert found.differences(tiny.fingerprint) == ("prompt",)


def test_another_end_of_answers_is_another_prompt(make_tiny: Callable[..., "TinyFolder"], tiny: LocalModel) -> None:
    ends = [tiny._model.generation_config.eos_token_id[0], 4]
    assert make_tiny(generation={"eos_token_id": ends}).load().fingerprint.differences(tiny.fingerprint) == ("prompt",)
