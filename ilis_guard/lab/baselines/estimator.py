"""The interface of methods that score answers, and what is checked of the rows that they are fitted to."""

from collections.abc import Mapping
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float64

from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers, Mask

Kind = Literal["unsupervised", "statistics", "probe", "signature"]
"""What a method uses: no labels; or labels and output statistics, activations or signatures."""
K = TypeVar("K", bound=str)


@runtime_checkable
class Estimator(Protocol):
    """A fitted method that estimates how probable it is that an answer is wrong."""

    def predict_proba(self, rows: Answers) -> Float64[np.ndarray, " rows"]:
        """Return a probability from 0 to 1 for each row, before calibration."""


@runtime_checkable
class Ranker(Protocol):
    """A method that only ranks answers."""

    def decision_function(self, rows: Answers) -> Float64[np.ndarray, " rows"]:
        """Return a score for each row, higher for more uncertain, of any range."""


class Method(Protocol):
    """A way to score answers."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def kind(self) -> Kind:
        """What it uses."""

    def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> Estimator | Ranker:
        """Fit to some rows, and select settings on others.

        Args:
            rows: only those in one of the masks are used.
            train: the rows to fit to.
            validation: the rows that select settings and stop training.
            seed: gives the same result again.

        Raises:
            FitError: there is one class only, a number is missing, or the rows weren't observed as the method needs.
        """


def check_fittable(rows: Answers, train: Mask, validation: Mask) -> None:
    """Check that a method can be fitted to the train rows and its settings selected on the validation rows.

    Raises:
        FitError: a row is among both, or one of both holds no right or no wrong answers.
    """
    if shared := int((train & validation).sum()):
        raise FitError(f"{shared} rows are both train and validation rows: settings would be selected on known rows")
    for name, which in (("train", train), ("validation", validation)):
        wrong, size = int(rows.wrong[which].sum()), int(which.sum())
        if wrong in (0, size):
            raise FitError(f"the {name} rows hold {size - wrong} right and {wrong} wrong answers; both are needed")


def finite(numbers: np.ndarray, name: str, ids: np.ndarray) -> np.ndarray:
    """Return the numbers of rows as they are, one or several a row.

    Raises:
        FitError: one isn't finite; the message names the row's id.
    """
    whole = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    if not whole.all():
        first = str(ids[int(np.argmin(whole))])
        raise FitError(
            f"{name!r} has no finite number for {int((~whole).sum())} of {len(whole)} rows, such as {first!r:.60}: "
            "leave them out for all methods, or observe them anew"
        )
    return numbers


def observed(columns: Mapping[K, np.ndarray] | None, name: K) -> np.ndarray:
    """Return one of the columns that `ilis-guard observe` adds.

    Raises:
        FitError: the rows weren't observed.
    """
    if columns is None:
        raise FitError(
            f"{name!r} needs observations and these rows have none: run `ilis-guard observe` and read its file with "
            "them"
        )
    return columns[name]
