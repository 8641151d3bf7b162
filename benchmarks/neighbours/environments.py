"""Virtual environments, reused until their requirements change."""

import hashlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.neighbours.roster import ROOT, Environment, NeighbourError

BUILD: Final = ROOT / "build" / "neighbours"
READY: Final = ".ready"
"""Written last into an environment: holds a digest of what it was made from."""


def prepare(environment: Environment, torch: str | None, say: Callable[[str], None], build: Path = BUILD) -> Path:
    """Make an environment, unless it is there already.

    Args:
        environment: what to make.
        torch: what pip is given to install first, such as ``torch==2.13.0``, with options of its own if need be; None
            where the library needs none.
        say: told what is being done.
        build: where environments are kept.

    Returns:
        Its Python.

    Raises:
        NeighbourError: pip refuses.
    """
    folder = build / environment.name
    python, ready, log = folder / "bin" / "python", folder / READY, build / f"{environment.name}.pip.log"
    digest = _digest(environment, torch)
    if ready.is_file() and ready.read_text() == digest:
        say("is there")
        return python
    shutil.rmtree(folder, ignore_errors=True)
    build.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    say("1/3 making the environment")
    _logged([sys.executable, "-m", "venv", str(folder)], log)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    if torch is not None:
        say("2/3 installing torch (hundreds of megabytes, or gigabytes)")
        _logged([*pip, *shlex.split(torch)], log)
    say("3/3 installing the library (minutes)")
    _logged([*pip, "--requirement", str(environment.requirements)], log)
    ready.write_text(digest)
    return python


def _digest(environment: Environment, torch: str | None) -> str:
    parts = [
        sys.version,
        torch or "",
        *(file.read_text() for file in (environment.requirements, *environment.pinned_by)),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _logged(command: Sequence[str], log: Path) -> None:
    with log.open("a") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = log.read_text(errors="replace").splitlines()
        complaint = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no output")
        raise NeighbourError(f"{complaint} (all of it: {log.name})")
