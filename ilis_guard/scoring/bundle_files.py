"""Files of bundles: a folder of JSON and LightGBM's text format, never a pickle, read as untrusted input.

bundle.json       metadata: the model, features, calibration map, held-out figures
trees.txt         the LightGBM model
calibration.json  uncertainty and outcome of each calibration row, which trained no tree, and their average maps
"""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ilis_guard.config.strict_yaml import list_problems, shorten
from ilis_guard.config.tiers import PACKAGED_PREFIX
from ilis_guard.errors import BundleError
from ilis_guard.scoring.bundle import Bundle, BundleMetadata, CalibrationSet

METADATA: Final = "bundle.json"
TREES: Final = "trees.txt"
CALIBRATION: Final = "calibration.json"
MAX_BYTES: Final = {METADATA: 2**20, TREES: 16 * 2**20, CALIBRATION: 8 * 2**20}
"""Larger files are neither read nor written. A bundle that was fitted to 3,000 rows has a thirtieth of that."""
MAX_CONTAINERS: Final = 20_000
"""Lists, objects and keys in a JSON file: three characters make one, which takes a parser hundreds of bytes."""
MAX_VALUES: Final = 500_000
"""In a JSON file: as many as the largest calibration set has."""
MAX_DIGITS: Final = 18
"""Of an integer: parsing longer ones takes quadratic time, and no count here is so large."""


def read_bundle(name: str) -> Bundle:
    """Read a bundle from a folder, or from ilis_guard itself (``packaged:NAME``).

    Raises:
        BundleError: a file is missing, too large, damaged, or contradicts the metadata. No content of the folder
            raises another error.
    """
    folder = _folder(name)
    texts = {file: _read_text(folder / file, max_bytes=max_bytes) for file, max_bytes in MAX_BYTES.items()}
    try:
        envelope = _parse_json(texts[METADATA])
        stated = envelope.pop("sha256")
        digests = {file: str(stated[file]) for file in (TREES, CALIBRATION)}
        metadata = BundleMetadata.model_validate_json(json.dumps(envelope), strict=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(_describe(folder / METADATA, error)) from None
    for file, digest in digests.items():
        if (found := _sha256(texts[file])) != digest:
            raise BundleError(
                f"{str(folder / file)!r} is damaged or from another bundle: its sha256 is {found!r}, "
                f"{METADATA} says {digest[:64]!r}; copy the bundle again or fit it anew"
            )
    try:
        _parse_json(texts[CALIBRATION])
        calibration_set = CalibrationSet.model_validate_json(texts[CALIBRATION], strict=True)
    except (ValueError, RecursionError) as error:
        raise BundleError(_describe(folder / CALIBRATION, error)) from None
    return Bundle(
        metadata=metadata,
        trees=texts[TREES],
        calibration_set=calibration_set,
        digest=_sha256(texts[METADATA])[:16],
    )


def write_bundle(metadata: BundleMetadata, trees: str, calibration_set: CalibrationSet, folder: Path) -> None:
    """Write a bundle; an older one in its place is replaced only when the new one is complete.

    Raises:
        BundleError: something other than a bundle stands in its place, or a file would be too large to be read again.
        OSError: it can't be written; an older one stays as it was.
    """
    folder = folder.resolve()
    _check_replaceable(folder)
    texts = {TREES: trees, CALIBRATION: calibration_set.model_dump_json() + "\n"}
    envelope = metadata.model_dump(mode="json") | {"sha256": {file: _sha256(text) for file, text in texts.items()}}
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
                _parse_json(text)
            except ValueError as error:
                raise BundleError(f"{file!r} couldn't be read again: {error}") from None


def _check_replaceable(folder: Path) -> None:
    """Check that a bundle or nothing is in a new bundle's place: it will be deleted."""
    if not folder.exists():
        return
    others = (
        sorted({file.name for file in folder.iterdir()} - {METADATA, TREES, CALIBRATION}) if folder.is_dir() else []
    )
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


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_text(file: Path, *, max_bytes: int) -> str:
    """Read one of a bundle's files, opened once: the checked file is the one that is read.

    A link within the folder is followed, as in a volume of Kubernetes. A link out of it would let a bundle's author
    read files with the permissions of whoever loads the bundle.

    Raises:
        BundleError: it is missing, larger, not a plain file, not in its folder, or not UTF-8.
    """
    try:
        real = Path(os.path.realpath(file, strict=True))
        if not real.is_relative_to(os.path.realpath(file.parent)):
            raise BundleError(f"{str(file)!r} is a link that leads out of the bundle; put the file itself there")
        with open(real, "rb", opener=_open_plain) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{str(file)!r} is no plain file; put a bundle's file there")
            content = opened.read(max_bytes + 1)
        if len(content) > max_bytes:
            size = max(status.st_size, len(content))
            raise BundleError(f"{str(file)!r} has {size} bytes; a bundle's file has at most {max_bytes}")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(_describe(file, error)) from error


def _parse_json(text: str) -> Any:
    """Parse JSON within the limits of bundles.

    Raises:
        ValueError: it isn't JSON, has a key twice, too many containers or values, or too long an integer.
        RecursionError: it is nested too deep.
    """
    if (parts := sum(map(text.count, "[{:"))) > MAX_CONTAINERS:
        raise ValueError(f"it has {parts} lists, objects and keys; a bundle's file has at most {MAX_CONTAINERS}")
    if (values := text.count(",")) > MAX_VALUES:
        raise ValueError(f"it has some {values} values; a bundle's file has at most {MAX_VALUES}")
    return json.loads(text, object_pairs_hook=_unique_keys, parse_int=_parse_int)


def _describe(file: Path, error: Exception) -> str:
    """Describe the problem of a file without quoting it, except for the names of keys."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        lines = (": ".join([*filter(None, [_place(each["loc"])]), each["msg"]]) for each in problems)
        detail = list_problems(lines, len(problems))
    else:
        detail = f"lacks {error}" if isinstance(error, KeyError) else str(error)
    return f"the bundle's file {str(file)!r} can't be used: {detail}"


def _open_plain(path: str, flags: int) -> int:
    """Open without blocking on a pipe, and without following a link that has replaced the file."""
    # Windows has neither flag.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a key that appears twice is an error, because parsers disagree on its value."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {shorten(key)} stands there twice")
        made[key] = value
    return made


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits)} digits; there are at most {MAX_DIGITS}")
    return int(digits)


def _place(keys: tuple[int | str, ...]) -> str:
    return shorten(".".join(map(str, keys))) if keys else ""
