"""Real environments and a real pip; what it installs are wheels that the tests write."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from benchmarks.neighbours.environments import prepare
from benchmarks.neighbours.roster import Environment, NeighbourError

pytestmark = pytest.mark.usefixtures("process")


def wheel(folder: Path, name: str, version: str) -> Path:
    file = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return file


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    requirements = tmp_path / "library.txt"
    requirements.write_text(f"{wheel(tmp_path, 'library', '1.0')}\n")
    return Environment(name="library", requirements=requirements)


def installed(python: Path) -> set[str]:
    code = "from importlib.metadata import distributions as d; print(*(f'{x.name}-{x.version}' for x in d()))"
    found = subprocess.run([python, "-Ic", code], capture_output=True, text=True, check=True).stdout.split()
    return {package for package in found if not package.startswith(("pip-", "setuptools-"))}


def test_an_environment_is_made_when_missing_broken_or_outdated(environment: Environment, tmp_path: Path) -> None:
    steps: list[str] = []
    torch = str(wheel(tmp_path, "faketorch", "2.0"))

    def make() -> Path:
        steps.clear()
        return prepare(environment, f"{torch} --no-deps", steps.append, tmp_path / "build")

    good = environment.requirements.read_text()
    environment.requirements.write_text("no-such-library==9\n")
    with pytest.raises(NeighbourError, match=r"^ERROR: .*no-such-library==9.*\(all of it: library.pip.log\)$"):
        make()
    environment.requirements.write_text(good)
    python = make()
    assert installed(python) == {"faketorch-2.0", "library-1.0"}
    assert [step.split()[0] for step in steps] == ["1/3", "2/3", "3/3"]
    assert make() == python
    assert steps == ["is there"]
    environment.requirements.write_text(f"{wheel(tmp_path, 'library', '1.1')}\n")
    assert installed(make()) == {"faketorch-2.0", "library-1.1"}
