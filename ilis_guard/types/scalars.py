"""Numbers that users' own parts return."""

import math
from decimal import Decimal
from numbers import Real


def to_float(value: object) -> float | None:
    """Convert a number, of Python's or NumPy's, to Python's float; None where it is none.

    Booleans are no numbers: a scorer that says False may mean anything by it. Arrays and tensors aren't either, however
    small, since they may hold booleans. A number too large for a float is infinite.
    """
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
