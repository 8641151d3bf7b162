"""Model folders that aren't whole: each is a `ModelError` that names the file, at every entrance."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ilis_guard.cascade.loading import load_tier
from ilis_guard.cli import main
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.errors import ModelError
from ilis_guard.models import model_files
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message
from tests.models.in_memory import four_bits, in_memory

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

Damage = Callable[[Path], object]


@pytest.fixture
def folder(tiny_folder: "TinyFolder", tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder.path, tmp_path / "model"))


def written(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def removed(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def edited(name: str, **values: Any) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(content | values))

    return damage


def sharded(weight_map: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


def large(name: str) -> Damage:
    """Sparse: it takes no room on the disk."""

    def damage(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(model_files.SIZES[name] + 1)

    return damage


DAMAGES: list[tuple[Damage, str]] = [
    (removed("config.json"), "has no 'config.json'"),
    (written("config.json", "[]"), r"config.json' must hold a JSON object, got a list"),
    (written("config.json", "{}"), r"config.json'"),
    (written("config.json", "null"), r"config.json' must hold a JSON object, got a NoneType"),
    (written("config.json", "not json"), r"config.json' is no JSON file"),
    (written("config.json", ""), r"config.json' is no JSON file"),
    (written("config.json", b"\xff\xfe\x00"), r"config.json' is no JSON file"),
    (written("config.json", "[" * 100_000), r"config.json' is no JSON file"),
    (large("config.json"), r"config.json' has \d+ bytes; more than \d+ aren't read"),
    (edited("config.json", num_hidden_layers=0), r"config.json': 'num_hidden_layers' must be a whole number .* got 0"),
    (edited("config.json", num_hidden_layers=-3), r"config.json': 'num_hidden_layers' .* got -3"),
    (edited("config.json", num_hidden_layers=10**9), r"config.json': 'num_hidden_layers' .* to 4096, got 1000000000"),
    (edited("config.json", num_hidden_layers="3"), r"config.json': 'num_hidden_layers' .* got '3'"),
    (edited("config.json", num_hidden_layers=True), r"config.json': 'num_hidden_layers' .* got True"),
    (edited("config.json", num_hidden_layers=2.0), r"config.json': 'num_hidden_layers' .* got 2.0"),
    (edited("config.json", num_attention_heads=0), r"config.json': 'num_attention_heads' .* got 0"),
    (edited("config.json", num_key_value_heads=-1), r"config.json': 'num_key_value_heads' .* got -1"),
    (edited("config.json", hidden_size=-64), r"config.json': 'hidden_size' .* got -64"),
    (edited("config.json", vocab_size=0), r"config.json': 'vocab_size' .* got 0"),
    (edited("config.json", max_position_embeddings=0), r"config.json': 'max_position_embeddings' .* got 0"),
    (edited("config.json", num_key_value_heads=3), r"config.json'"),
    (edited("config.json", intermediate_size=-1), r"config.json'"),
    (edited("config.json", hidden_act="no_such"), r"config.json'"),
    (edited("config.json", rope_parameters={"rope_type": "no_such"}), r"config.json'"),
    (edited("config.json", model_type="no_such"), r"config.json'.*no_such"),
    (edited("config.json", model_type=["llama"]), r"config.json'"),
    (edited("config.json", vocab_size=32), r"config.json'"),
    (
        edited("config.json", num_hidden_layers=4),
        r"lack 9 of the weights that its config.json wants, such as",
    ),
    (removed("model.safetensors"), r"neither 'model.safetensors' nor 'model.safetensors.index.json'"),
    (written("model.safetensors", ""), r"model.safetensors' isn't a whole safetensors file"),
    (written("model.safetensors", b"\xff" * 64), r"model.safetensors' isn't a whole safetensors file"),
    (written("model.safetensors", b"\x02" + bytes(7) + b"{}"), r"model.safetensors' .*: it holds no tensor"),
    (sharded({}), r"model.safetensors.index.json': its 'weight_map' must say"),
    (sharded([]), r"model.safetensors.index.json': its 'weight_map' must say"),
    (sharded(None), r"model.safetensors.index.json': its 'weight_map' must say"),
    (sharded({"a": "two.safetensors"}), r"index.json': 'a' should be in 'two.safetensors', which isn't in the folder"),
    (sharded({"a": "../one.safetensors"}), r"index.json': 'a' must be in a file of the same folder"),
    (sharded({"a": "/etc/passwd"}), r"index.json': 'a' must be in a file of the same folder"),
    (sharded({"a": 7}), r"index.json': 'a' must be in a file of the same folder, got 7"),
    (sharded({"a": "config.json"}), r"config.json' isn't a whole safetensors file"),
    (removed("tokenizer.json"), r"tokenizer"),
    (written("tokenizer.json", "{}"), r"/tokenizer.json'"),
    (written("tokenizer.json", "[]"), r"/tokenizer.json' must hold a JSON object, got a list"),
    (written("tokenizer.json", "no json"), r"/tokenizer.json' is no JSON file"),
    (edited("tokenizer.json", model={"type": "no_such"}), r"/tokenizer.json'"),
    (large("tokenizer.json"), r"tokenizer.json' has \d+ bytes"),
    (written("tokenizer_config.json", "[]"), r"tokenizer_config.json' must hold a JSON object, got a list"),
    (written("tokenizer_config.json", "no json"), r"tokenizer_config.json' is no JSON file"),
    (written("chat_template.jinja", "{% if %}"), r"chat_template.jinja .*: TemplateSyntaxError"),
    (written("chat_template.jinja", "{{ messages[7].content.x }}"), r"chat_template.jinja .*: UndefinedError"),
    (written("generation_config.json", "[]"), r"generation_config.json' must hold a JSON object, got a list"),
    (written("generation_config.json", "no json"), r"generation_config.json' is no JSON file"),
    (edited("generation_config.json", eos_token_id="x"), r"generation_config.json"),
    (edited("generation_config.json", eos_token_id=-1), r"generation_config.json"),
    (written("adapter_config.json", "{}"), r"adapter_config.json' makes this a PEFT adapter"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[said for _, said in DAMAGES])
def test_a_damaged_folder_is_a_model_error_that_names_the_file(damage: Damage, said: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=said):
        LocalModel.load(str(folder), max_new_tokens=8)


def test_a_tokenizer_of_a_larger_model_is_refused(folder: Path, tiny_folder: "TinyFolder") -> None:
    model = in_memory(tiny_folder)
    model.resize_token_embeddings(32)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"has 64 words and the model knows 32 \(vocab_size in config.json\)"):
        LocalModel.load(str(folder), max_new_tokens=8)


def test_a_token_that_the_model_does_not_know_is_a_model_error_at_its_prompt(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["picture"])
    tokenizer.save_pretrained(folder)
    model = LocalModel.load(str(folder), max_new_tokens=8)
    assert model.generate([Message(role="user", content="short")]).text == "Oslo"
    with pytest.raises(ModelError, match="token 64, and the model knows 64"):
        model.generate([Message(role="user", content="picture")])


@pytest.mark.parametrize("precision", ["full", "nf4"])
def test_weights_that_are_quantised_already_fit_one_precision(
    precision: str, folder: Path, tiny_folder: "TinyFolder"
) -> None:
    in_memory(tiny_folder, quantization_config=four_bits(), device_map="cpu").save_pretrained(folder)
    if precision == "full":
        with pytest.raises(ModelError, match=r"config.json': the weights in this folder are quantised already \('bits"):
            LocalModel.load(str(folder), max_new_tokens=8)
        return
    found = LocalModel.load(str(folder), precision="nf4", max_new_tokens=8).fingerprint
    assert found == tiny_folder.load(precision="nf4").fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bnb_4bit_quant_type": "fp4"}, "quantised otherwise than NF4 .*'fp4'"),
        ({"bnb_4bit_use_double_quant": False}, "quantised otherwise than NF4 .*None"),
    ],
)
def test_a_quantisation_that_the_configuration_overrides_is_refused(
    options: dict[str, Any], said: str, folder: Path, tiny_folder: "TinyFolder"
) -> None:
    in_memory(tiny_folder, quantization_config=four_bits(**options), device_map="cpu").save_pretrained(folder)
    with pytest.raises(ModelError, match=said):
        LocalModel.load(str(folder), precision="nf4", max_new_tokens=8)


def test_a_compute_dtype_that_the_configuration_overrides_is_in_the_fingerprint(
    folder: Path, tiny_folder: "TinyFolder"
) -> None:
    quantisation = four_bits(bnb_4bit_compute_dtype=torch.bfloat16)
    in_memory(tiny_folder, quantization_config=quantisation, device_map="cpu").save_pretrained(folder)
    assert LocalModel.load(str(folder), precision="nf4", max_new_tokens=8).fingerprint.dtype == "bfloat16"
    with pytest.raises(ModelError, match=r"computes in bfloat16, as its config.json says, and the tier wants"):
        LocalModel.load(str(folder), precision="nf4", dtype="float32", max_new_tokens=8)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "no_such", 7])
def test_other_quantisers_are_refused(method: Any, folder: Path) -> None:
    edited("config.json", quantization_config={"quant_method": method, "bits": 4})(folder)
    for precision in ("full", "nf4"):
        with pytest.raises(ModelError, match=rf"config.json': the weights .* quantised already .* is '{precision}'"):
            LocalModel.load(str(folder), precision=precision, max_new_tokens=8)


QUANTISED = edited("config.json", quantization_config={"quant_method": "gptq", "bits": 4})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (written("config.json", "[]"), "config.json' must hold a JSON object, got a list"),
        (
            QUANTISED,
            "config.json': the weights in this folder are quantised already ('gptq'), and the tier's precision",
        ),
    ],
)
def test_the_commands_and_guard_yaml_say_the_same(
    damage: Damage,
    said: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage(folder)
    config = tmp_path / "guard.yaml"
    config.write_text(
        "version: 1\npolicy: default\ntiers: [{name: small, model: ./model}]\nreview: {storage: 'sqlite:///q.db'}\n"
    )
    with pytest.raises(ModelError, match=re.escape(said)):
        load_tier(read_config(config).tier("small"))
    for command in (["models", "inspect", str(folder)], ["policy", "check", "default", "-c", str(config)]):
        monkeypatch.setattr("sys.argv", ["ilis-guard", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = " ".join(capsys.readouterr().err.split())
        assert ended.value.code not in (0, None)
        assert said in shown
        assert "Traceback" not in shown


def test_transformers_own_loading_still_reads_the_undamaged_folder(folder: Path) -> None:
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 3
