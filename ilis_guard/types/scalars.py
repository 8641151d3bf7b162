"""Numbers that users' own parts return, and sums of which a part may be unknown."""

import math
from collections.abc import Iterable
from decimal import Decimal
from numbers import Real
from typing import Any, TypeVar

N = TypeVar("N", int, float)


def to_float(value: object) -> float | None:
    """Convert a number, of Python's or NumPy's, to Python's float; None where it is none.

    Booleans are no numbers: a scorer that says False may mean anything by it. Arrays and tensors aren't either, however
    small, since they may hold booleans. A number too large for a float is infinite.
    """
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return None
    number: Any = value
    try:
        return float(number)
    except OverflowError:
        return -math.inf if number < 0 else math.inf


def to_known(value: float) -> float | None:
    """A number that may not be known: None for NaN, which isn't valid JSON."""
    return None if math.isnan(value) else value


def total(values: Iterable[N | None], *, start: N) -> N | None:
    """Add up numbers from `start` on, one after the other; None where one of them isn't known."""
    # As the simulation adds up its columns: Python's sum() rounds otherwise from 3.12 on.
    found = start
    for value in values:
        if value is None:
            return None
        found += value
    return found
