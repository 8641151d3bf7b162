"""Code that comes with a model is never run, and nobody is asked at the terminal whether it may be."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ilis_guard.errors import ModelError
from ilis_guard.models.local import LocalModel

if TYPE_CHECKING:
    from tests.models.conftest import TinyFolder

pytestmark = pytest.mark.usefixtures("real_model")

OWN = """
from pathlib import Path
(Path(__file__).parent / "was_run").touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Own(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM): ...
class OwnTokenizer(PreTrainedTokenizerFast): ...
def generate(model, **arguments): ...
"""


@pytest.fixture
def folder(tiny_folder: "TinyFolder", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model with code of its own, which leaves a file where it is run."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    copied = Path(shutil.copytree(tiny_folder.path, tmp_path / "model"))
    (copied / "own.py").write_text(OWN)
    yield copied
    assert not list(tmp_path.rglob("was_run"))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Somebody at the terminal who says yes to whatever is asked."""
    master, slave = pty.openpty()
    os.write(master, b"y\n" * 8)
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert sys.stdin.isatty()
        yield master
    os.close(master)


def edited(folder: Path, name: str, **values: object) -> None:
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def own_model(folder: Path) -> None:
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    edited(folder, "config.json", model_type="own", architectures=["OwnModel"], auto_map=own)


def somebody_elses(folder: Path) -> None:
    own = {"AutoConfig": "some/body--own.Own", "AutoModelForCausalLM": "some/body--own.OwnModel"}
    edited(folder, "config.json", model_type="own", auto_map=own)


def own_tokenizer(folder: Path) -> None:
    own = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    edited(folder, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)


def own_generate(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(OWN)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (own_model, "config.json': wants code of its own to be run"),
        (somebody_elses, "config.json': wants code of its own to be run"),
        (own_tokenizer, "tokenizer_config.json': wants code of its own to be run"),
        (own_generate, r"custom_generate/generate.py' is code by which this model wants to generate"),
    ],
)
def test_a_model_that_needs_its_own_code_is_refused_without_a_question(
    change: Callable[[Path], object], named: str, folder: Path, terminal: int, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder)
    with pytest.raises(ModelError, match=named):
        LocalModel.load(str(folder), max_new_tokens=8)
    os.set_blocking(terminal, False)
    assert sys.stdin.read(2) == "y\n"  # nobody took the answer
    assert "[y/N]" not in capsys.readouterr().out


def test_code_that_is_not_needed_is_not_run(
    folder: Path, terminal: int, tiny: LocalModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert terminal
    edited(folder, "config.json", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"})
    edited(folder, "processor_config.json", auto_map={"AutoProcessor": "own.OwnTokenizer"})
    edited(folder, "generation_config.json", custom_generate="own")
    assert LocalModel.load(str(folder), max_new_tokens=8).fingerprint == tiny.fingerprint
    assert "[y/N]" not in capsys.readouterr().out


def test_the_command_asks_nothing_at_a_real_terminal(folder: Path) -> None:
    own_model(folder)
    master, slave = pty.openpty()
    os.write(master, b"y\n")
    command = [sys.executable, "-c", "from ilis_guard.cli import main; main()", "models", "inspect", str(folder)]
    done = subprocess.run(command, stdin=slave, capture_output=True, text=True, timeout=250, check=False)
    os.close(slave)
    os.close(master)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "wants code of its own to be run (auto_map)" in said
    assert "config.json" in said
    assert "Do you wish" not in said
    assert "Traceback" not in said
