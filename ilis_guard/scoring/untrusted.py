"""A bundle's files, read as if somebody had made them to do harm."""

import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ilis_guard.config.strict_yaml import list_problems, shorten
from ilis_guard.errors import BundleError

MOST_PARTS: Final = 20_000
"""Lists, objects and keys in one file of JSON: three characters make one, which takes a parser hundreds of bytes."""
MOST_VALUES: Final = 500_000
"""In one file of JSON: as many as a calibration set of the largest size has, and short ones take no less memory."""
MOST_DIGITS: Final = 18
"""Of a whole number: nothing here is counted so far, and longer ones cost time that grows with their square."""


def read_text(file: Path, *, most: int) -> str:
    """One of a bundle's files. It is opened once: what was looked at is what is read.

    A link is followed as long as it stays in the folder, as in a volume of Kubernetes. One that leads out would have
    whoever loads a bundle read for its author what that one can't.

    Args:
        file: its path, the bundle's folder and its name.
        most: how many bytes it may have.

    Raises:
        BundleError: it is missing, larger, not a plain file, not in its folder, or not UTF-8.
    """
    try:
        real = Path(os.path.realpath(file, strict=True))
        if not real.is_relative_to(os.path.realpath(file.parent)):
            raise BundleError(f"{str(file)!r} is a link that leads out of the bundle; put the file itself there")
        with open(real, "rb", opener=_at_once) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{str(file)!r} is no plain file; put a bundle's file there")
            content = opened.read(most + 1)
        if len(content) > most:
            size = max(status.st_size, len(content))
            raise BundleError(f"{str(file)!r} has {size} bytes; a bundle's file has at most {most}")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(unusable(file, error)) from error


def parsed(text: str) -> Any:
    """What is written in JSON, without anything that no bundle holds.

    Raises:
        ValueError: it isn't JSON, says a key twice, has too many parts or too long a number.
        RecursionError: it is nested too deep.
    """
    if (parts := sum(map(text.count, "[{:"))) > MOST_PARTS:
        raise ValueError(f"it has {parts} lists, objects and keys; a bundle's file has at most {MOST_PARTS}")
    if (values := text.count(",")) > MOST_VALUES:
        raise ValueError(f"it has some {values} values; a bundle's file has at most {MOST_VALUES}")
    return json.loads(text, object_pairs_hook=_each_once, parse_int=_whole)


def unusable(file: Path, error: Exception) -> str:
    """The complaint about a file. What stands in it isn't repeated, but for the names of its keys."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        lines = (": ".join([*filter(None, [_place(each["loc"])]), each["msg"]]) for each in problems)
        detail = list_problems(lines, len(problems))
    else:
        detail = f"lacks {error}" if isinstance(error, KeyError) else str(error)
    return f"the bundle's file {str(file)!r} can't be used: {detail}"


def _at_once(path: str, flags: int) -> int:
    """Open without waiting for a pipe's other end, and no link that took the file's place meanwhile."""
    # Windows knows neither of the two, nor pipes among its files.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; parsers don't agree which of two values of one key holds, so there is one."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {shorten(key)} stands there twice")
        made[key] = value
    return made


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits)} digits; there are at most {MOST_DIGITS}")
    return int(digits)


def _place(keys: tuple[int | str, ...]) -> str:
    return shorten(".".join(map(str, keys))) if keys else ""
