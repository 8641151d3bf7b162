"""Proofs that were already given: a model's taps are disturbed once for each set of versions, and remembered."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from ilis_guard import events
from ilis_guard.models.checkpoint import Checkpoint
from ilis_guard.models.weights import cache_folder
from ilis_guard.signature import TapPoint, prove

DECIDING: Final = ("torch", "transformers", "bitsandbytes", "accelerate", "ilis-guard")
"""Packages on whose version it depends what the hooks see."""


def prove_once(checkpoint: Checkpoint, points: Sequence[TapPoint]) -> None:
    """Prove a checkpoint's taps, unless that was done before with the same weights, taps, device and versions.

    Raises:
        SignatureError: a tap isn't in the path; nothing is remembered then.
    """
    remembered = cache_folder() / "proofs" / f"{_key(checkpoint, points)}.json"
    if remembered.exists():
        return
    proofs = prove(checkpoint.model, points, hidden=checkpoint.hidden)
    moved = {proof.point.path: proof.moved for proof in proofs}
    events.log().info(events.TAPS_PROVEN, layers=len(moved), least_moved=min(moved.values()))
    try:
        _write(remembered, json.dumps(moved))
    except OSError as error:  # a read-only home costs a pass at each start, and no more
        events.log().warning(events.PROOF_NOT_STORED, error=type(error).__name__)


def _key(checkpoint: Checkpoint, points: Sequence[TapPoint]) -> str:
    parts = [
        checkpoint.weights,
        checkpoint.precision,
        checkpoint.dtype,
        type(checkpoint.model).__name__,
        *(f"{point.path} {_device(point)}" for point in points),
        *(f"{package} {_version(package)}" for package in DECIDING),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _device(point: TapPoint) -> str:
    """Where its weights are; a dropout has none."""
    return str(next((weight.device for weight in point.module.parameters()), None))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as unfinished:
        unfinished.write(text)
    os.replace(unfinished.name, path)  # noqa: PTH105 - the name is a string
