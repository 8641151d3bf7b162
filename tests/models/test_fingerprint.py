import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.architectures.tiny import tiny
from ilis_guard.errors import ModelError
from ilis_guard.models.local import LocalModel

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

MakeTiny = Callable[..., "TinyFolder"]


def test_two_loads_have_equal_fingerprints(tiny: LocalModel, tiny_folder: "TinyFolder") -> None:
    assert tiny_folder.load().fingerprint == tiny.fingerprint


def test_fingerprint_describes_the_loaded_model(tiny: LocalModel) -> None:
    found = tiny.fingerprint
    assert (found.layers, found.hidden, found.precision, found.site, found.temperature) == (3, 64, "full", "mlp", 1.0)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.2.input_layernorm",
        "model.embed_tokens",
    ],
)
def test_a_changed_matrix_changes_the_weights_digest_alone(name: str, make_tiny: MakeTiny, tiny: LocalModel) -> None:
    def change(network: Any) -> None:
        network.get_submodule(name).weight.data *= 1.0001

    found = make_tiny(change=change).load().fingerprint
    assert found.differences(tiny.fingerprint) == ("weights",)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"prompt": "so: {question}"}, "prompt"),
        ({"temperature": 2.0}, "temperature"),
    ],
)
def test_another_way_of_loading_differs_in_that_alone(
    options: dict[str, Any], difference: str, tiny: LocalModel, tiny_folder: "TinyFolder"
) -> None:
    assert tiny_folder.load(**options).fingerprint.differences(tiny.fingerprint) == (difference,)


def test_another_chat_template_is_another_prompt(make_tiny: MakeTiny, tiny: LocalModel) -> None:
    found = make_tiny(chat_template="{{ messages[-1].content }}").load().fingerprint
    assert found.differences(tiny.fingerprint) == ("prompt",)


@pytest.mark.parametrize("keep", [0.5, 0.02])
def test_loading_a_truncated_checkpoint_is_a_model_error(keep: float, make_tiny: MakeTiny) -> None:
    folder = make_tiny()
    file = folder.path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ModelError, match=r"model.safetensors' isn't a whole safetensors file"):
        folder.load()


def test_a_checkpoint_that_lacks_its_weights_is_a_model_error(make_tiny: MakeTiny) -> None:
    folder = make_tiny()
    (folder.path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds neither 'model.safetensors' nor"):
        folder.load()


def test_a_checkpoint_of_other_shapes_than_configured_is_a_model_error(make_tiny: MakeTiny) -> None:
    folder = make_tiny()
    config = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps(config | {"intermediate_size": 52}))
    with pytest.raises(ModelError, match="can't be loaded"):
        folder.load()


def test_model_without_num_hidden_layers_is_a_model_error(make_tiny: MakeTiny) -> None:
    folder = make_tiny()
    tiny("blt", {}).to(torch.float32).save_pretrained(folder.path)  # bytes in patches, through three stacks of layers
    with pytest.raises(
        ModelError, match="can't be tapped: its configuration has no num_hidden_layers and no hidden_size"
    ):
        folder.load()


def test_a_pickled_checkpoint_is_refused_and_never_unpickled(
    make_tiny: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny(safe=False)
    assert (folder.path / "pytorch_model.bin").is_file()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(ModelError, match=r"pickled weights, which can run code, are never read"):
        folder.load()
