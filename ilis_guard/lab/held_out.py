"""What a bundle's fit did with a row: scores of rows that it was fitted to flatter it."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Final, get_args

import numpy as np

from ilis_guard.lab.fit import SHARES, split
from ilis_guard.lab.harvest import Harvest
from ilis_guard.lab.scored import Split
from ilis_guard.policy.facts import is_sampled
from ilis_guard.scoring.bundle import Bundle, row_digest

SEED: Final = 0
"""Of fits whose bundles don't say which rows they held: the one that `ilis-guard fit` takes if it is given none."""
_EQUAL: Final = 1e-9
"""Uncertainties that differ by less come from the same row: one that is scored alone may be rounded otherwise."""


def splits_of(bundle: Bundle, harvest: Harvest, uncertainty: Mapping[str, float | None]) -> Mapping[str, Split]:
    """The split of each harvested row in a bundle's fit, by row id.

    A bundle says which rows it was fitted to. One that was fitted before that was kept is held against this harvest:
    where dealing its rows out anew gives the very calibration rows of the bundle, they are the fit's rows.

    Args:
        bundle: as the harvest's rows were scored with.
        harvest: the rows with an answer.
        uncertainty: by row id, with those that have no answer, what the bundle says.
    """
    told = bundle.calibration_set.splits
    if told is None:
        known = _dealt_anew(bundle, harvest, uncertainty)
        if known is None:
            return dict.fromkeys(uncertainty, "unknown")
    else:
        of_digest = {digest: name for name, digests in told.items() for digest in digests}
        known = {row: of_digest[digest] for row in uncertainty if (digest := row_digest(row)) in of_digest}
    answered = set(harvest.ids)
    return {row: known.get(row, "unseen") if row in answered or not known else _share_of(row) for row in uncertainty}


def most_flattering(splits: list[Split]) -> Split:
    """Of a row that several bundles score, the use that flatters most; `unseen` where no bundle does."""
    ranks: tuple[Split, ...] = get_args(Split)
    return min(splits, key=ranks.index, default="unseen")


def _dealt_anew(
    bundle: Bundle, harvest: Harvest, uncertainty: Mapping[str, float | None]
) -> Mapping[str, Split] | None:
    splits = split(harvest.datasets, SEED)
    rows = np.flatnonzero(splits["calibration"])
    now = np.array([uncertainty[harvest.ids[row]] for row in rows], dtype=np.float64)
    then = np.array(bundle.calibration_set.uncertainty)
    is_the_same = (
        now.shape == then.shape
        and np.array_equal(harvest.wrong[rows], bundle.calibration_set.wrong)
        and np.allclose(now, then, rtol=0, atol=_EQUAL)
    )
    if not is_the_same:
        return None
    return {harvest.ids[row]: name for name, mask in splits.items() for row in np.flatnonzero(mask)}


def _share_of(row: str) -> Split:
    """The split of a row without an answer, which a fit leaves out: as rare among held-out rows as among all."""
    *smaller, last = zip(SHARES, accumulate(SHARES.values()), strict=True)
    return next((name for name, end in smaller if is_sampled(row, "split", end)), last[0])
