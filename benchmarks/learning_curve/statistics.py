"""Output statistics alone, given all that a bundle is given: other sets, the profile, the same learning from labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.linear_model import LogisticRegression

from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.correcting import CorrectionRows
from ilis_guard.lab.fit import calibrate
from ilis_guard.lab.recalibrate import MIN_PER_CLASS_CORRECTED
from ilis_guard.scoring.calibration import BetaCalibration
from ilis_guard.scoring.correction import Correction

Values = Float64[np.ndarray, "rows statistics"]
Rows = Int64[np.ndarray, " rows"]


class OutputStatistics:
    """A logistic regression on the statistics of other sets' answers, each set in units of itself.

    Args:
        others: the other sets.
        statistics: of the left-out set.
        profile: its unlabelled rows, in whose units it is scored; without any, all are in units of the other sets.
    """

    def __init__(self, others: Sequence[Answers], statistics: Values, profile: Rows) -> None:
        everything = np.concatenate([one.statistics for one in others])
        units = [one.statistics if len(profile) else everything for one in others]
        fitted_to = np.concatenate([_in_units(one.statistics, of) for one, of in zip(others, units, strict=True)])
        self._normal = _in_units(statistics, statistics[profile] if len(profile) else everything)
        wrong = np.concatenate([one.wrong for one in others])
        self.prior: Float64[np.ndarray, " rows"] = (
            LogisticRegression().fit(fitted_to, wrong).predict_proba(self._normal)[:, 1]
        )

    def corrected(self, labelled: Rows, wrong: Bool[np.ndarray, " labels"], share: float) -> "CorrectedStatistics":
        """Learn from labels as `correct` does, with the last of them kept for guarantees.

        Raises:
            FitError: too few are right or wrong, or nothing was learned.
        """
        learning = len(labelled) - int(np.ceil(share * len(labelled)))
        rows, outcomes = labelled[:learning], wrong[:learning]
        if min(outcomes.sum(), (~outcomes).sum()) < MIN_PER_CLASS_CORRECTED:
            raise FitError(f"of {learning} labels {int(outcomes.sum())} are wrong; both kinds are needed")
        correction, held_out = CorrectionRows(
            self.prior[rows],
            self._normal[rows],
            [(self._normal.shape[1], False)],
            wrong=outcomes,
            weights=np.ones(learning),
            groups=np.arange(learning),
        ).fit()
        kept = labelled[learning:]
        raw = np.concatenate([held_out, correction.apply(self.prior[kept], self._normal[kept])])
        return CorrectedStatistics(
            known=self, correction=correction, calibration=calibrate(raw, wrong, terms=2), kept=kept
        )

    def score(self, correction: Correction) -> Float64[np.ndarray, " rows"]:
        """Score all rows of the left-out set."""
        return correction.apply(self.prior, self._normal)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedStatistics:
    """What some labels made of it."""

    known: OutputStatistics
    correction: Correction
    calibration: BetaCalibration
    kept: Rows
    """Rows that guarantees rest on."""

    def scores(self) -> tuple[Float64[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
        """Raw scores and uncertainties of all rows of the left-out set."""
        raw = self.known.score(self.correction)
        return raw, self.calibration.apply(raw)


def _in_units(values: Values, of: Values) -> Values:
    spread = of.std(axis=0)
    normal: Values = (values - of.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return normal
