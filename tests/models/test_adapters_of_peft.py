"""Real PEFT: an adapter makes another model, which is refused, or has another fingerprint once it is merged."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from ilis_guard.errors import ModelError
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message
from tests.models.in_memory import fingerprint, in_memory, tapped

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = [
    pytest.mark.usefixtures("real_model"),
    # PEFT reads it.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

Ask = Callable[..., list[Message]]
NO_ADAPTER = r"a PEFT adapter, whose model would be another one with peft installed than without; merge it"


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


@pytest.fixture
def adapted(tiny_folder: "TinyFolder") -> Any:
    torch.manual_seed(1)
    return get_peft_model(in_memory(tiny_folder), lora()).eval()


@pytest.fixture
def adapter(adapted: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    assert (folder / "adapter_config.json").is_file()
    return folder


def test_a_model_with_an_adapter_is_refused(adapted: Any, tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    assert isinstance(adapted, PeftModel)
    with pytest.raises(ModelError, match=NO_ADAPTER):
        fingerprint(adapted, tiny_folder, tiny)


def test_the_model_inside_an_adapted_one_is_refused(adapted: Any, tiny_folder: "TinyFolder", tiny: LocalModel) -> None:
    refused = pytest.raises(ModelError, match=NO_ADAPTER)
    with refused, adapted.disable_adapter():
        fingerprint(adapted.get_base_model(), tiny_folder, tiny)


@pytest.mark.parametrize("way", ["add_adapter", "load_adapter"])
def test_adapters_of_transformers_own_are_refused(
    way: str, adapter: Path, tiny_folder: "TinyFolder", tiny: LocalModel
) -> None:
    model = in_memory(tiny_folder)
    if way == "add_adapter":
        model.add_adapter(lora())
    else:
        model.load_adapter(str(adapter))
    model.eval()
    for _ in range(2):
        with pytest.raises(ModelError, match=NO_ADAPTER):
            fingerprint(model, tiny_folder, tiny)
        model.disable_adapters()


def test_a_merged_adapter_is_another_model_in_memory_and_on_disk(
    adapted: Any, tiny_folder: "TinyFolder", tiny: LocalModel, tmp_path: Path
) -> None:
    merged = adapted.merge_and_unload().eval()
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert merged.name_or_path == str(tiny_folder.path)
    found = fingerprint(merged, tiny_folder, tiny)
    assert found.differences(tiny.fingerprint) == ("weights",)
    merged.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder.path).save_pretrained(tmp_path)
    assert LocalModel.load(str(tmp_path), max_new_tokens=8).fingerprint == found


def test_an_adapter_that_was_merged_and_taken_off_without_effect_is_the_model_itself(
    tiny_folder: "TinyFolder", tiny: LocalModel
) -> None:
    adapted = get_peft_model(in_memory(tiny_folder), lora())
    assert fingerprint(adapted.unload().eval(), tiny_folder, tiny) == tiny.fingerprint


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_an_adapters_folder_is_refused_with_and_without_peft(
    installed: bool,
    whole: bool,
    adapter: Path,
    tiny_folder: "TinyFolder",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "peft", None)
    AutoTokenizer.from_pretrained(tiny_folder.path).save_pretrained(adapter)
    if whole:  # the base model's own files lie beside it: without peft, transformers would load these alone
        in_memory(tiny_folder).save_pretrained(adapter)
    with pytest.raises(ModelError, match=rf"adapter_config.json' makes this {NO_ADAPTER}"):
        LocalModel.load(str(adapter), max_new_tokens=8)


@pytest.mark.parametrize(
    "swap",
    [
        lambda model, _adapter: get_peft_model(model, lora()),
        lambda model, _adapter: get_peft_model(model, lora()).merge_and_unload(),
        lambda model, _adapter: model.add_adapter(lora()),
        lambda model, adapter: model.load_adapter(str(adapter)),
        lambda model, adapter: PeftModel.from_pretrained(model, str(adapter)).disable_adapter().__enter__(),
    ],
    ids=["wrapped", "merged", "added", "loaded", "disabled"],
)
def test_an_adapter_put_in_between_two_requests_is_noticed(
    swap: Callable[[Any, Path], object], adapter: Path, tiny_folder: "TinyFolder", tiny: LocalModel, ask: Ask
) -> None:
    model = tiny_folder.load(proof=False)
    assert model.generate(ask("short")).text == "Oslo"
    swap(model.checkpoint.model, adapter)
    with pytest.raises(ModelError, match="changed in memory after its fingerprint was taken"):
        model.generate(ask("short"))
    network = in_memory(tiny_folder)
    watched = tapped(network, tiny_folder, tiny)
    swap(network, adapter)
    with pytest.raises(ModelError, match="changed in memory"), watched.record():
        pytest.fail("it was changed before")
