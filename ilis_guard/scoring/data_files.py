"""Files of data from anybody: JSON and text within limits, opened once, described without being quoted."""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ilis_guard.config.strict_yaml import list_problems, shorten

MAX_CONTAINERS: Final = 20_000
"""Lists, objects and keys in a JSON file: three characters make one, which takes a parser hundreds of bytes."""
MAX_VALUES: Final = 500_000
"""In a JSON file: as many as the largest calibration set has."""
MAX_DIGITS: Final = 18
"""Of an integer: parsing longer ones takes quadratic time, and no count here is so large."""


class DataFileError(ValueError):
    """A file can't be used; the message names it."""


def sha256(text: str) -> str:
    """Digest a text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_text(file: Path, *, max_bytes: int) -> str:
    """Read a file, opened once: the checked file is the one that is read.

    A link within the folder is followed, as in a volume of Kubernetes. A link out of it would let a file's author
    read others with the permissions of whoever loads it.

    Raises:
        DataFileError: it is missing, larger, not a plain file, not in its folder, or not UTF-8.
    """
    try:
        real = Path(os.path.realpath(file, strict=True))
        if not real.is_relative_to(os.path.realpath(file.parent)):
            raise DataFileError(f"{str(file)!r} is a link that leads out of its folder; put the file itself there")
        with open(real, "rb", opener=_open_plain) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataFileError(f"{str(file)!r} is no plain file; put one there")
            content = opened.read(max_bytes + 1)
        if len(content) > max_bytes:
            size = max(status.st_size, len(content))
            raise DataFileError(f"{str(file)!r} has {size} bytes; such a file has at most {max_bytes}")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(describe_problem(file, error)) from error


def parse_json(text: str) -> Any:
    """Parse JSON within limits.

    Raises:
        ValueError: it isn't JSON, has a key twice, too many containers or values, or too long an integer.
        RecursionError: it is nested too deep.
    """
    if (parts := sum(map(text.count, "[{:"))) > MAX_CONTAINERS:
        raise ValueError(f"it has {parts} lists, objects and keys; such a file has at most {MAX_CONTAINERS}")
    if (values := text.count(",")) > MAX_VALUES:
        raise ValueError(f"it has some {values} values; such a file has at most {MAX_VALUES}")
    return json.loads(text, object_pairs_hook=_unique_keys, parse_int=_parse_int)


def describe_problem(file: Path, error: Exception) -> str:
    """Describe the problem of a file without quoting it, except for the names of keys."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        lines = (": ".join([*filter(None, [_place(each["loc"])]), each["msg"]]) for each in problems)
        detail = list_problems(lines, len(problems))
    else:
        detail = f"lacks {error}" if isinstance(error, KeyError) else str(error)
    return f"the file {str(file)!r} can't be used: {detail}"


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
