"""A digest of a checkpoint: equal for equal weights on any device, made in milliseconds."""

import hashlib
import json
from pathlib import Path
from typing import Final

from ilis_guard.errors import ModelError

SAMPLE: Final = 64
"""Bytes read at the start, in the middle and at the end of each tensor."""


def weights_digest(folder: Path) -> str:
    """Digest the names, types, shapes and a sample of the values of all tensors in a folder's safetensors files.

    It tells checkpoints apart (a fine-tune changes every sampled matrix); it is no protection against somebody who
    forges one. The files are read as the safetensors format lays them out: eight bytes of header length, a JSON
    header, the tensors' bytes.

    Raises:
        ModelError: the folder holds no safetensors file, or one that can't be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{str(folder)!r} holds no safetensors file; convert the checkpoint to safetensors")
    digest = hashlib.sha256()
    for file in files:
        try:
            _add(file, digest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{str(file)!r} isn't a whole safetensors file: {error}") from error
    return digest.hexdigest()[:16]


def _add(file: Path, digest: "hashlib._Hash") -> None:
    with file.open("rb") as tensors:
        size = file.stat().st_size
        length = int.from_bytes(tensors.read(8), "little")
        if 8 + length > size:
            raise ValueError(f"its header should have {length} bytes, the whole file has {size}")
        header = json.loads(tensors.read(length))
        header.pop("__metadata__", None)
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if expected != size:
            raise ValueError(f"it has {size} bytes, and should have {expected}")
        for name, tensor in sorted(header.items()):
            begin, end = tensor["data_offsets"]
            digest.update(f"{name} {tensor['dtype']} {tensor['shape']}".encode())
            for offset in (begin, (begin + end) // 2, max(begin, end - SAMPLE)):
                tensors.seek(8 + length + offset)
                digest.update(tensors.read(min(SAMPLE, end - offset)))
