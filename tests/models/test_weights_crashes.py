"""Weight conversions that fail, are killed, or run concurrently."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ilis_guard.models import weights as weights_module
from ilis_guard.models.weights import PackagedWeights, converted_folder

if TYPE_CHECKING:
    from tests.models.conftest import WeightsCache

pytestmark = pytest.mark.usefixtures("real_model")

# Converts, and waits for a line on its input before the finished folder is renamed into its place.
CONVERTER = """
import sys
sys.path.insert(0, {site!r})
from ilis_guard.models import weights
from ilis_guard.models.weights import PackagedWeights
rename = weights._rename
def wait_and_rename(unfinished, folder):
    print("written", flush=True)
    sys.stdin.readline()
    rename(unfinished, folder)
weights._rename = wait_and_rename
print(weights.converted_folder({weights!r}))
"""


@pytest.fixture
def start(tmp_path: Path, packaged: PackagedWeights) -> Callable[[], "subprocess.Popen[str]"]:
    """Starts another process that converts the same weights into the same cache."""

    def start_one() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", CONVERTER.format(site=str(tmp_path / "site"), weights=packaged)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )

    return start_one


@pytest.mark.parametrize(
    ("place", "name"),
    [(AutoModelForCausalLM, "from_pretrained"), (LlamaForCausalLM, "save_pretrained"), (weights_module, "_sync")],
    ids=["reading", "writing", "flushing"],
)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_conversion_that_fails_leaves_nothing_and_the_next_one_works(
    place: Any,
    name: str,
    error: BaseException,
    packaged: PackagedWeights,
    weights_cache: "WeightsCache",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **_keywords: Any) -> None:
        if name == "save_pretrained":  # half of it is written
            Path(arguments[-1]).mkdir(parents=True)
            (Path(arguments[-1]) / "model.safetensors").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        with pytest.raises(type(error)):
            converted_folder(packaged)
    assert weights_cache.finished() == []
    assert weights_cache.litter() == []
    weights_cache.assert_whole(converted_folder(packaged))


@pytest.mark.usefixtures("process")
def test_a_process_killed_while_writing_leaves_nothing_that_is_used(
    packaged: PackagedWeights, weights_cache: "WeightsCache", start: Callable[[], "subprocess.Popen[str]"]
) -> None:
    with start() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.kill()
    left = weights_cache.litter()
    assert len(left) == 1
    assert weights_cache.finished() == []
    weights_cache.assert_whole(converted_folder(packaged))
    assert weights_cache.litter() == left


@pytest.mark.usefixtures("process")
def test_two_processes_that_finish_at_once_both_get_the_whole_folder(
    weights_cache: "WeightsCache", start: Callable[[], "subprocess.Popen[str]"]
) -> None:
    with start() as one, start() as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
        assert len(weights_cache.litter()) == 2
        folders = [process.communicate("go\n")[0].strip() for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0)
    assert folders[0] == folders[1]
    assert weights_cache.finished() == [Path(folders[0]).name]
    assert weights_cache.litter() == []
    weights_cache.assert_whole(Path(folders[0]))


def test_two_threads_convert_once_and_both_get_the_whole_folder(
    packaged: PackagedWeights, weights_cache: "WeightsCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions: list[object] = []
    convert = weights_module._convert

    def counted(*arguments: Any) -> None:
        conversions.append(arguments)
        convert(*arguments)

    monkeypatch.setattr(weights_module, "_convert", counted)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: converted_folder(packaged), range(2))
    assert first == second
    assert len(conversions) == 1
    assert weights_cache.finished() == [first.name]
    assert weights_cache.litter() == []
    weights_cache.assert_whole(first)


def test_a_rename_that_fails_for_another_reason_is_an_error(
    packaged: PackagedWeights, weights_cache: "WeightsCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        converted_folder(packaged)
    assert weights_cache.finished() == []
