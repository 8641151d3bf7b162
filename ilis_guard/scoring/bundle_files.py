"""Files of bundles: a folder of JSON and LightGBM's text format, never a pickle, read as untrusted input.

bundle.json       metadata: the model, features, calibration map, held-out figures
trees.txt         the LightGBM model
calibration.json  uncertainty and outcome of each calibration row, which trained no tree, and their average maps
traffic.json      the traffic profile of the training rows
"""

import json
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final, TypeVar

from ilis_guard.config.tiers import PACKAGED_PREFIX
from ilis_guard.errors import BundleError
from ilis_guard.scoring.bundle import Bundle, BundleMetadata, CalibrationSet
from ilis_guard.scoring.data_files import DataFileError, describe_problem, parse_json, read_text, sha256
from ilis_guard.scoring.traffic import TrafficProfile
from ilis_guard.scoring.typicality import BundlePart

P = TypeVar("P", bound=BundlePart)

METADATA: Final = "bundle.json"
TREES: Final = "trees.txt"
CALIBRATION: Final = "calibration.json"
TRAFFIC: Final = "traffic.json"
MAX_BYTES: Final = {METADATA: 2**20, TREES: 16 * 2**20, CALIBRATION: 8 * 2**20, TRAFFIC: 8 * 2**20}
"""Larger files are neither read nor written. A bundle that was fitted to 3,000 rows has a thirtieth of that."""


def read_bundle(name: str) -> Bundle:
    """Read a bundle from a folder, or from ilis_guard itself (``packaged:NAME``).

    Raises:
        BundleError: a file is missing, too large, damaged, or contradicts the metadata. No content of the folder
            raises another error.
    """
    folder = _folder(name)
    try:
        texts = {file: read_text(folder / file, max_bytes=max_bytes) for file, max_bytes in MAX_BYTES.items()}
    except DataFileError as error:
        raise BundleError(str(error)) from error
    try:
        envelope = parse_json(texts[METADATA])
        stated = envelope.pop("sha256")
        digests = {file: str(stated[file]) for file in (TREES, CALIBRATION, TRAFFIC)}
        metadata = BundleMetadata.model_validate_json(json.dumps(envelope), strict=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"no bundle: {describe_problem(folder / METADATA, error)}") from None
    for file, digest in digests.items():
        if (found := sha256(texts[file])) != digest:
            raise BundleError(
                f"{str(folder / file)!r} is damaged or from another bundle: its sha256 is {found!r}, "
                f"{METADATA} says {digest[:64]!r}; copy the bundle again or fit it anew"
            )
    return Bundle(
        metadata=metadata,
        trees=texts[TREES],
        calibration_set=_parse(CalibrationSet, folder / CALIBRATION, texts[CALIBRATION]),
        traffic=_parse(TrafficProfile, folder / TRAFFIC, texts[TRAFFIC]),
        digest=sha256(texts[METADATA])[:16],
    )


def _parse(kind: type[P], file: Path, text: str) -> P:
    try:
        parse_json(text)
        return kind.model_validate_json(text, strict=True)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"no bundle: {describe_problem(file, error)}") from None


def write_bundle(
    metadata: BundleMetadata, trees: str, calibration_set: CalibrationSet, traffic: TrafficProfile, folder: Path
) -> None:
    """Write a bundle; an older one in its place is replaced only when the new one is complete.

    Raises:
        BundleError: something other than a bundle stands in its place, or a file would be too large to be read again.
        OSError: it can't be written; an older one stays as it was.
    """
    folder = folder.resolve()
    _check_replaceable(folder)
    texts = {
        TREES: trees,
        CALIBRATION: calibration_set.model_dump_json() + "\n",
        TRAFFIC: traffic.model_dump_json() + "\n",
    }
    envelope = metadata.model_dump(mode="json") | {"sha256": {file: sha256(text) for file, text in texts.items()}}
    texts[METADATA] = json.dumps(envelope, indent=1) + "\n"
    _check_readable(texts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / "bundle"
        unfinished.mkdir()
        for file, text in texts.items():
            with (unfinished / file).open("w", encoding="utf-8", newline="\n") as written:
                written.write(text)
                written.flush()
                os.fsync(written.fileno())
        replaced = Path(temporary) / "replaced"
        try:
            if folder.exists():
                folder.rename(replaced)
            unfinished.rename(folder)
        except BaseException:
            if replaced.exists():
                replaced.rename(folder)
            raise


def _check_readable(texts: Mapping[str, str]) -> None:
    """Refuse what couldn't be read again, before an older bundle is replaced."""
    for file, text in texts.items():
        if (size := len(text.encode())) > MAX_BYTES[file]:
            raise BundleError(f"{file!r} would have {size} bytes, more than the {MAX_BYTES[file]} that are read again")
        if file != TREES:
            try:
                parse_json(text)
            except ValueError as error:
                raise BundleError(f"{file!r} couldn't be read again: {error}") from None


def _check_replaceable(folder: Path) -> None:
    """Check that a bundle or nothing is in a new bundle's place: it will be deleted."""
    if not folder.exists():
        return
    others = sorted({file.name for file in folder.iterdir()} - set(MAX_BYTES)) if folder.is_dir() else []
    if others or not folder.is_dir():
        what = f"holds {others[:5]!r}" if others else "is a file"
        raise BundleError(f"no bundle is written to {str(folder)!r}: it {what}; name a new folder, or an older bundle")


def _folder(name: str) -> Path:
    if name.startswith(PACKAGED_PREFIX):
        shipped = Path(str(resources.files("ilis_guard") / "bundles"))
        names = sorted(path.name for path in shipped.iterdir() if path.is_dir()) if shipped.is_dir() else []
        if name.removeprefix(PACKAGED_PREFIX) not in names:
            raise BundleError(f"no bundle {name!r} comes with ilis_guard; there are {names!r}")
        return shipped / name.removeprefix(PACKAGED_PREFIX)
    if not Path(name).is_dir():
        raise BundleError(f"there is no bundle folder {name!r}; fit one with `ilis-guard fit`")
    return Path(name)
