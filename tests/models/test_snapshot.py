"""A model that is changed after its fingerprint was taken gives no answer any more."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import normalizers
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from ilis_guard.errors import ModelError
from ilis_guard.models.batching import BatchedModel
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Generation, Message
from tests.models.in_memory import GREEDY, four_bits, in_memory, tapped

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

Ask = Callable[..., list[Message]]
Change = Callable[[Any], object]


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0].mul_(1.01)


def behind_the_counter(model: Any) -> None:
    """As PEFT merges: ``.data`` has no counter, and the storage stays."""
    model.model.layers[1].mlp.down_proj.weight.data.mul_(1.01)


def put_elsewhere(model: Any) -> None:
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.data = weight.data.clone()


def replaced(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def module_replaced(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = nn.ReLU()


def layer_dropped(model: Any) -> None:
    model.model.layers = model.model.layers[:2]


def trained(model: Any) -> None:
    model.model.layers[1].train()


def hooked(model: Any) -> None:
    model.model.layers[1].register_forward_hook(lambda _module, _inputs, output: output)


def patched(model: Any) -> None:
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda given: given


def configured(model: Any) -> None:
    model.config.sliding_window = 4


def turned(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(2)


def embedding_of_a_token(model: Any) -> None:
    """Behind the counter, too."""
    model.model.embed_tokens.weight.data[5] *= -1


def neuron_cut(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.data[:, 3] = 0


class SteeredMLP(modeling_llama.LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1  # type: ignore[no-any-return, no-untyped-call]


def of_another_class(model: Any) -> None:
    model.model.layers[1].mlp.__class__ = SteeredMLP


def generates_otherwise(model: Any) -> None:
    generate = model.generate
    model.generate = functools.partial(generate)


CHANGES: dict[Change, str] = {
    in_place: "its weights",
    behind_the_counter: "its weights",
    put_elsewhere: "its weights",
    replaced: "its weights",
    module_replaced: "its modules",
    layer_dropped: "its modules",
    trained: "its modules",
    hooked: "'model.layers.1' got the hook 'test_snapshot.hooked",
    patched: "its modules",
    configured: "its configuration",
    turned: "its weights",
    embedding_of_a_token: "its weights",
    neuron_cut: "its weights",
    of_another_class: "its modules",
    generates_otherwise: "its generate was replaced",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_changed_after_loading_gives_no_answer(change: Change, tiny_folder: "TinyFolder", ask: Ask) -> None:
    model = tiny_folder.load(proof=False)
    assert model.generate(ask("short")).text == "Oslo"
    change(model.checkpoint.model)
    with pytest.raises(ModelError, match=f"changed in memory after its fingerprint was taken: {CHANGES[change]}"):
        model.generate(ask("short"))


def other_template(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ bos_token }} short"


def other_words(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("long", "short")


def a_word_as_a_special_token(tokenizer: Any) -> None:
    tokenizer.add_tokens(["long"], special_tokens=True)


def spelled_control_tokens(tokenizer: Any) -> None:
    tokenizer.split_special_tokens = True


def other_rendering(tokenizer: Any) -> None:
    tokenizer.apply_chat_template = lambda *_, **__: "short"


@pytest.mark.parametrize(
    "change", [other_template, other_words, a_word_as_a_special_token, spelled_control_tokens, other_rendering]
)
def test_a_tokenizer_changed_after_loading_gives_no_answer(change: Change, tiny_folder: "TinyFolder", ask: Ask) -> None:
    model = tiny_folder.load(proof=False)
    assert model.generate(ask("short")).text == "Oslo"
    change(model.checkpoint.tokenizer)
    with pytest.raises(ModelError, match="changed in memory after its fingerprint was taken: its tokenizer"):
        model.generate(ask("long"))


@pytest.mark.parametrize("name", ["suppress_tokens", "bad_words_ids"])
def test_options_that_a_generation_config_fills_in_later_give_no_answer(
    name: str, tiny_folder: "TinyFolder", ask: Ask
) -> None:
    model = tiny_folder.load(proof=False)
    ids = [tiny_folder.ids["Oslo"]]
    setattr(model.checkpoint.model.generation_config, name, ids if name == "suppress_tokens" else [ids])
    with pytest.raises(ModelError, match=rf"generation_config was changed after it was loaded \({name}\)"):
        model.generate(ask("short"))


class Steering(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        return found * 1.5 if function is nn.functional.silu else found


class Dispatching(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types it partly
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Steering, Dispatching])
def test_a_mode_of_torch_that_changes_what_passes_gives_no_answer(
    mode: Callable[[], Any], tiny_folder: "TinyFolder", ask: Ask
) -> None:
    model = tiny_folder.load(proof=False)
    with mode(), pytest.raises(ModelError, match=f"called under the mode test_snapshot.{mode.__name__}"):
        model.generate(ask("short"))
    with torch.device("cpu"):  # a mode of torch's own
        assert model.generate(ask("short")).text == "Oslo"


def test_a_hook_on_all_modules_gives_no_answer(tiny_folder: "TinyFolder", ask: Ask) -> None:
    model = tiny_folder.load(proof=False)
    for register in (register_module_forward_hook, register_module_forward_pre_hook):
        hook = register(lambda *_: None)
        try:
            with pytest.raises(ModelError, match="all modules got the hook 'test_snapshot"):
                model.generate(ask("short"))
        finally:
            hook.remove()
    assert model.generate(ask("short")).text == "Oslo"


def test_functions_that_the_model_calls_are_watched(
    tiny_folder: "TinyFolder", ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_folder.load(proof=False)
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    places: list[tuple[Any, str, str]] = [
        (modeling_llama, "apply_rotary_pos_emb", "modeling_llama.apply_rotary_pos_emb was replaced"),
        (nn.functional, "silu", "torch.nn.functional.silu was replaced"),
        (modeling_llama.LlamaMLP, "forward", "LlamaMLP.forward was replaced"),
    ]
    for place, name, said in places:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *given, **_: given[-1])
            with pytest.raises(ModelError, match=f"changed in memory after its fingerprint was taken: .*{said}"):
                model.generate(ask("short"))
    try:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = functools.partial(attend)
        with pytest.raises(ModelError, match="its attention 'sdpa' was replaced"):
            model.generate(ask("short"))
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    assert model.generate(ask("short")).text == "Oslo"


@pytest.mark.parametrize(
    "call",
    [
        lambda model, ask: list(model.stream(ask("short"))),
        lambda model, ask: model.generate_batch([ask("short"), ask("long")]),
        lambda model, ask: model.read(ask("short"), "Oslo"),
        lambda model, ask: model.generate(ask("short"), stop=["slo"]),
        lambda model, ask: BatchedModel(model, 2).generate(ask("short")),
    ],
)
def test_no_entrance_answers_with_a_changed_model(
    call: Callable[[LocalModel, Ask], object], tiny_folder: "TinyFolder", ask: Ask
) -> None:
    model = tiny_folder.load(proof=False)
    call(model, ask)
    behind_the_counter(model.checkpoint.model)
    with pytest.raises(ModelError, match="changed in memory"):
        call(model, ask)


def test_an_answer_during_which_the_model_changes_is_none(tiny_folder: "TinyFolder", ask: Ask) -> None:
    model = tiny_folder.load(proof=False)

    def proceed(_so_far: Generation) -> bool:
        in_place(model.checkpoint.model)
        return True

    with pytest.raises(ModelError, match="changed in memory"):
        model.generate(ask("long"), proceed=proceed)


def test_autocast_is_another_dtype(tiny_folder: "TinyFolder", ask: Ask) -> None:
    model = tiny_folder.load(proof=False)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ModelError, match=r"under torch.autocast"):
        model.generate(ask("short"))
    assert model.generate(ask("short")).text == "Oslo"


def scales(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.quant_state.absmax.add_(1)


def packed(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.data.bitwise_not_()


@pytest.mark.parametrize("change", [scales, packed])
def test_four_bit_weights_are_watched_too(change: Change, tiny_folder: "TinyFolder", ask: Ask) -> None:
    model = tiny_folder.load(precision="nf4", proof=False)
    model.generate(ask("short"))
    change(model.checkpoint.model)
    with pytest.raises(ModelError, match="changed in memory after its fingerprint was taken: its weights"):
        model.generate(ask("short"))


def test_a_pipelines_model_is_watched_before_and_after_its_call(tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    network = in_memory(tiny_folder)
    model = tapped(network, tiny_folder, tiny)
    ids = torch.tensor([[tiny_folder.ids["<bos>"], tiny_folder.ids["<user>"], tiny_folder.ids["short"]]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **GREEDY}
    with model.record() as recorder:
        network.generate(**given, **recorder.options)
        assert recorder.generation("Oslo").finish_reason == "stop"
    with model.record() as recorder:
        network.generate(**given, **recorder.options)
        in_place(network)
        with pytest.raises(ModelError, match="changed in memory"):
            recorder.generation("Oslo")
    with pytest.raises(ModelError, match="changed in memory"), model.record():
        pytest.fail("it was changed before")


def test_four_bits_of_another_compute_dtype_are_watched(tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    quantisation = four_bits(bnb_4bit_compute_dtype=torch.bfloat16)
    network = in_memory(tiny_folder, quantization_config=quantisation, device_map="cpu")
    model = tapped(network, tiny_folder, tiny)
    network.model.layers[1].mlp.down_proj.compute_dtype = torch.float16
    with pytest.raises(ModelError, match="changed in memory"), model.record():
        pytest.fail("it was changed before")
