"""The search for trees, made once for all methods that choose among what it found."""

from collections.abc import Collection

from ilis_guard.lab.baselines.checks import check_fittable, finite
from ilis_guard.lab.fit import FEATURES
from ilis_guard.lab.rows import Mask, Rows
from ilis_guard.lab.tuning import Grown, grow
from ilis_guard.scoring.features import FeatureGroup


class Search:
    """Grows what `ilis-guard fit` would, and keeps the last of it: methods are fitted to the same rows in turn."""

    def __init__(self) -> None:
        self._rows: Rows | None = None
        self._asked: tuple[bytes, bytes, int] | None = None
        self._grown: list[Grown] = []

    def best(
        self,
        name: str,
        choices: Collection[tuple[FeatureGroup, ...]],
        rows: Rows,
        train: Mask,
        validation: Mask,
        seed: int,
    ) -> Grown:
        """The trees with the smallest loss on the validation rows, of those that look at one of the choices.

        Args:
            name: the method's, for messages.
            choices: some of `FEATURES`.
            rows: as `Method.fit`, with what follows.
            train: what is learned from.
            validation: what is chosen on.
            seed: the method's.

        Raises:
            FitError: as `Method.fit`.
        """
        asked = (train.tobytes(), validation.tobytes(), seed)
        if self._rows is not rows or self._asked != asked:
            self._grown = _grown(name, rows, train, validation, seed)
            self._rows, self._asked = rows, asked
        return next(one for one in self._grown if one.candidate.features in choices)


def _grown(name: str, rows: Rows, train: Mask, validation: Mask, seed: int) -> list[Grown]:
    check_fittable(rows, train, validation)
    seen = rows.take(train | validation)
    finite(seen.statistics, name, seen.ids)
    for maps in seen.signatures.values():
        finite(maps, name, seen.ids)
    which = train[train | validation]
    return grow(
        FEATURES["answer"], seen.signatures, seen.statistics, seen.wrong, train=which, validation=~which, seed=seed
    )
