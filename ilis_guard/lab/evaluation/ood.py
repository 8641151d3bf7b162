"""Out-of-distribution detection: how well typicality distinguishes other sets from the one it was fitted to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64

from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.evaluation.trials import OTHERS
from ilis_guard.lab.grouping import answer_groups
from ilis_guard.lab.metrics import ScoreCounts
from ilis_guard.lab.splits import split
from ilis_guard.lab.typicality import typicality_reference
from ilis_guard.scoring.typicality import TypicalityEstimator, typicality_columns

LEVELS: Final = (0.01, 0.05)
"""Levels of typicality: of exchangeable answers, this share lies below each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """The typicality of one set's held-out rows under the reference of another; means over seeds."""

    trained_on: str
    """The set of the reference; its calibration rows are the null distribution."""
    tested_on: str
    rows: int
    auroc: float
    """Probability that a row of the tested set is less typical than a held-out row of the reference's own set."""
    below: tuple[float, ...]
    """Shares of the rows with a typicality below each of `LEVELS`."""

    @property
    def is_own(self) -> bool:
        """Whether the tested set is the reference's own."""
        return self.trained_on == self.tested_on


def detections(rows: Answers, *, seeds: int) -> list[Detection]:
    """Measure typicality between all pairs of sets, and of each set against all others together.

    Args:
        rows: of the sets that count.
        seeds: each splits the rows again.
    """
    names = sorted(set(rows.datasets.tolist()))
    found = [one for seed in range(seeds) for one in _detections(rows, names, seed)]
    pairs = sorted({(one.trained_on, one.tested_on) for one in found})
    return [_mean([one for one in found if (one.trained_on, one.tested_on) == pair]) for pair in pairs]


def _detections(rows: Answers, names: Sequence[str], seed: int) -> Iterator[Detection]:
    splits = split(rows.datasets, seed, answer_groups(rows))
    test = {name: splits["test"] & (rows.datasets == name) for name in names}
    for name in names:
        own = rows.datasets == name
        typicality = _typicality(rows, splits["train"] & own, splits["calibration"] & own)
        for tested in names:
            yield _detection(name, tested, typicality[test[name]], typicality[test[tested]])
    for name in names if len(names) > 1 else ():
        others = rows.datasets != name
        typicality = _typicality(rows, splits["train"] & others, splits["calibration"] & others)
        yield _detection(OTHERS, name, typicality[splits["test"] & others], typicality[test[name]])
        yield _detection(OTHERS, OTHERS, typicality[splits["test"] & others], typicality[splits["test"] & others])


def _typicality(rows: Answers, train: Mask, calibration: Mask) -> Float64[np.ndarray, " rows"]:
    columns = typicality_columns(rows.signatures, "answer")
    return TypicalityEstimator(typicality_reference(columns, train, calibration)).typicality(columns)


def _detection(
    trained: str, tested: str, own: Float64[np.ndarray, " own"], typicality: Float64[np.ndarray, " rows"]
) -> Detection:
    foreign = np.repeat([False, True], [len(own), len(typicality)])
    auroc = ScoreCounts.of(foreign, -np.concatenate([own, typicality])).auroc()
    return Detection(
        trained_on=trained,
        tested_on=tested,
        rows=len(typicality),
        auroc=float(auroc[0]),
        below=tuple(float((typicality < level).mean()) for level in LEVELS),
    )


def _mean(of_seeds: Sequence[Detection]) -> Detection:
    first = of_seeds[0]
    return Detection(
        trained_on=first.trained_on,
        tested_on=first.tested_on,
        rows=sum(one.rows for one in of_seeds),
        auroc=float(np.mean([one.auroc for one in of_seeds])),
        below=tuple(np.mean([one.below for one in of_seeds], axis=0).tolist()),
    )
