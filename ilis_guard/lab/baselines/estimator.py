"""Checks: what a method is given must be whole, and what it learns from apart from what it chooses on."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from ilis_guard.errors import FitError
from ilis_guard.lab.rows import Mask, Rows

K = TypeVar("K", bound=str)


def check_fittable(rows: Rows, train: Mask, validation: Mask) -> None:
    """See that something can be learned from the one rows and chosen on the others.

    Raises:
        FitError: a row is among both, or one of both holds no right or no wrong answers.
    """
    if shared := int((train & validation).sum()):
        raise FitError(f"{shared} rows are to be learned from and chosen on: settings would be chosen on known rows")
    for name, which in (("train", train), ("validation", validation)):
        wrong, size = int(rows.wrong[which].sum()), int(which.sum())
        if wrong in (0, size):
            raise FitError(f"the {name} rows hold {size - wrong} right and {wrong} wrong answers; both are needed")


def finite(numbers: np.ndarray, name: str, ids: np.ndarray) -> np.ndarray:
    """The numbers as they are, one or several for each row that has these ids.

    Raises:
        FitError: one is missing.
    """
    whole = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    if not whole.all():
        first = str(ids[int(np.argmin(whole))])
        raise FitError(
            f"{name!r} has no finite number for {int((~whole).sum())} of {len(whole)} rows, such as {first!r:.60}: "
            "leave them out for all methods, or observe them anew"
        )
    return numbers


def observed(of_rows: Mapping[K, np.ndarray] | None, name: K) -> np.ndarray:
    """One of the arrays that were observed.

    Raises:
        FitError: the rows weren't observed.
    """
    if of_rows is None:
        raise FitError(
            f"{name!r} is observed and these rows weren't: run `ilis-guard observe` and read its file with them"
        )
    return of_rows[name]
