import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.architectures.tiny import tiny
from ilis_guard.errors import ModelError
from ilis_guard.models.checkpoint import weights_digest
from ilis_guard.models.local import LocalModel

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

MakeTiny = Callable[..., "TinyFolder"]


def saved(folder: Path, file: str = "model.safetensors", **changes: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {"a": torch.arange(300.0), "b": torch.ones(4, 75)}
    save_file(tensors | changes, folder / file, metadata={"format": "pt"})
    return folder


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
        ({"precision": "nf4"}, "precision"),
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


def test_the_digest_ignores_metadata_and_the_folders_name(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one"), saved(tmp_path / "other")
    save_file({"a": torch.arange(300.0), "b": torch.ones(4, 75)}, other / "model.safetensors", metadata={"x": "y"})
    assert weights_digest(one) == weights_digest(other)


@pytest.mark.parametrize("place", [0, 150, 299])
def test_a_value_at_the_start_middle_or_end_of_a_tensor_counts(place: int, tmp_path: Path) -> None:
    changed = torch.arange(300.0)
    changed[place] += 1
    assert weights_digest(saved(tmp_path / "one")) != weights_digest(saved(tmp_path / "other", a=changed))


@pytest.mark.parametrize("changed", [torch.ones(75, 4), torch.ones(4, 75, dtype=torch.float64)])
def test_shape_and_type_count(changed: torch.Tensor, tmp_path: Path) -> None:
    assert weights_digest(saved(tmp_path / "one")) != weights_digest(saved(tmp_path / "other", b=changed))


def test_every_file_counts(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    before = weights_digest(folder)
    saved(folder, "model-00002.safetensors", c=torch.zeros(3))
    assert weights_digest(folder) != before


def test_a_folder_without_safetensors_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no safetensors file"):
        weights_digest(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1, -400])
def test_a_truncated_file_is_refused_by_name(cut: int, tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"model.safetensors' isn't a whole safetensors file"):
        weights_digest(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b"7",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"data_offsets": ["x", 2]}}',
        b"\xff\xfe",
    ],
)
def test_a_header_that_isnt_one_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="isn't a whole safetensors file"):
        weights_digest(tmp_path)


def test_absurd_header_length_is_refused_before_reading(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="isn't a whole safetensors file"):
        weights_digest(tmp_path)


@pytest.mark.parametrize("keep", [0.5, 0.02])
def test_loading_a_truncated_checkpoint_is_a_model_error(keep: float, make_tiny: MakeTiny) -> None:
    folder = make_tiny()
    file = folder.path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ModelError, match="can't be loaded"):
        folder.load()


def test_a_checkpoint_that_lacks_its_weights_is_a_model_error(make_tiny: MakeTiny) -> None:
    folder = make_tiny()
    (folder.path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="can't be loaded"):
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
    with pytest.raises(ModelError, match="can't be loaded"):
        folder.load()
