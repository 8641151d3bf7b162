"""Splits: which rows train a scorer, stop its training, calibrate it, or only give figures; and if they suffice."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np

from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Mask
from ilis_guard.lab.grouping import Groups
from ilis_guard.scoring.bundle import Split
from ilis_guard.types import Wording

SHARES: Final[Mapping[Split, float]] = {"train": 0.5, "validation": 0.1, "calibration": 0.2, "test": 0.2}
MIN_OF_WORDING: Final = 20
"""Independent calibration rows in one wording, from which on a bundle lists it."""


def split(datasets: np.ndarray, seed: int, groups: Groups | None = None) -> dict[Split, Mask]:
    """Assign each dataset's groups to the splits at random, in their shares.

    Args:
        datasets: the name of each row's dataset; of a group, that of its first row counts.
        seed: of the assignment.
        groups: index of the first row of each row's group; None where each row is a group of its own.
    """
    random = np.random.default_rng(seed)
    first = np.arange(len(datasets)) if groups is None else groups
    is_first = first == np.arange(len(datasets))
    place = np.empty(len(datasets))
    for dataset in np.unique(datasets):
        rows = np.flatnonzero(is_first & (datasets == dataset))
        place[random.permutation(rows)] = (np.arange(len(rows)) + random.random()) / max(1, len(rows))
    ends = np.cumsum(list(SHARES.values()))
    part = np.searchsorted(ends[:-1], place[first], side="right")
    return {name: part == index for index, name in enumerate(SHARES)}


def check_splits(wrong: Mask, splits: Mapping[Split, Mask]) -> None:
    """Refuse a split of one class: early stopping, calibration and metrics mean nothing there."""
    for name, rows in splits.items():
        bad, size = int(wrong[rows].sum()), int(rows.sum())
        if bad in (0, size):
            raise FitError(f"the {name} rows hold {size - bad} right and {bad} wrong answers: harvest more questions")


def check_classes(wrong: Mask, independent: Mask, least: int, *, need: str, remedy: str) -> None:
    """Check that there are enough right and enough wrong answers.

    Args:
        wrong: of all rows.
        independent: one row of each group.
        least: so many of each.
        need: who needs them, for the message.
        remedy: what to do, for the message.

    Raises:
        FitError: there aren't.
    """
    bad = int(wrong[independent].sum())
    right = int(independent.sum()) - bad
    if min(bad, right) < least:
        repeated = len(wrong) - right - bad
        beside = f" ({repeated} more depend on them and don't count)" if repeated else ""
        raise FitError(
            f"of {right + bad} scored answers {right} are right and {bad} wrong{beside}; {need} at least {least} of "
            f"each: {remedy}"
        )


def list_wordings(wordings: np.ndarray, calibrating: Mask) -> tuple[Wording, ...]:
    """The wordings that enough calibration rows have, the most frequent first; of rows in one wording, that one.

    Raises:
        FitError: none has enough.
    """
    counts = Counter(wordings[calibrating].tolist()).most_common()
    known = set(wordings.tolist())
    if listed := tuple(wording for wording, count in counts if count >= MIN_OF_WORDING or len(known) == 1):
        return listed
    most = counts[0][1] if counts else 0
    raise FitError(
        f"the rows have {len(known)} wordings (system messages, earlier turns and prompts), and none has "
        f"{MIN_OF_WORDING} independent calibration rows, the most {most}: harvest more questions in fewer wordings"
    )
