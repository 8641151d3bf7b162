"""How complaints are worded."""

import difflib
import itertools
from collections.abc import Iterable, Iterator
from typing import Final

MAX_PROBLEMS: Final = 20
"""Lines of one complaint. Who reads 20 has enough to do."""


def listed(problems: Iterable[str], count: int) -> str:
    """A complaint of `count` problems: the first of them, a line for each, and how many are left."""
    lines = [*itertools.islice(problems, MAX_PROBLEMS)]
    left = count - len(lines)
    return "\n".join([*lines, *([f"and {left} more problems like these"] if left > 0 else [])])


def nearest(name: str, names: Iterator[str] | list[str]) -> str:
    """``; did you mean 'right'?`` where one of `names` looks like `name`, otherwise nothing."""
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def short(value: object) -> str:
    """A value as messages show it, on one line and not too much of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
