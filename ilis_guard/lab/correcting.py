"""Fit a correction to few labelled rows: ridge-penalised logistic regression, cross-fitted."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from ilis_guard.lab.ridge import column_scales, rounded
from ilis_guard.scoring.correction import Correction, log_odds

FOLDS: Final = 5
"""Parts of the rows, each of which is scored by a model that was fitted to the others."""
PENALTIES: Final = (0.1, 0.3, 1.0)
"""Inverse strengths of the penalty, of which the one with the smallest cross-fitted loss is taken."""
SCORE: Final = 1.5
"""Of the earlier score's log-odds: what it knows is worth more than any feature's, and less penalised."""


class CorrectionRows:
    """Labelled rows to correct a score by.

    Args:
        raw: the earlier scores, 0 to 1.
        normalised: features in units of their traffic.
        widths: the columns of each group of features, in order, and whether they are of maps.
        wrong: both classes occur, each in two groups at least.
        weights: how many rows each row stands for.
        groups: rows with the same number depend on one another.
        seed: of the folds.
    """

    def __init__(
        self,
        raw: Float64[np.ndarray, " rows"],
        normalised: Float64[np.ndarray, "rows features"],
        widths: Sequence[tuple[int, bool]],
        *,
        wrong: Bool[np.ndarray, " rows"],
        weights: Float64[np.ndarray, " rows"],
        groups: Int64[np.ndarray, " rows"],
        seed: int = 0,
    ) -> None:
        self._scales = np.concatenate([[SCORE], column_scales(widths)])
        self._columns = np.column_stack([log_odds(raw), normalised]) * self._scales
        self._wrong = wrong
        # Both classes weigh the same, so that the rarer one is heard; the base rate is the calibration map's.
        rate = float(np.average(wrong, weights=weights))
        self._weights = weights * np.where(wrong, 0.5 / rate, 0.5 / (1 - rate))
        self._folds = _folds(wrong, groups, seed)

    def fit(self) -> tuple[Correction, Float64[np.ndarray, " rows"]]:
        """Fit to all rows; return the correction, and each row's score by one that was fitted to the other folds."""
        held_out = {penalty: self._cross_fitted(penalty) for penalty in PENALTIES}
        best = min(PENALTIES, key=lambda one: log_loss(self._wrong, held_out[one], sample_weight=self._weights))
        model = self._model(best, np.ones(len(self._wrong), dtype=bool))
        score, *features = (model.coef_[0] * self._scales).tolist()
        correction = Correction(
            intercept=rounded(float(model.intercept_[0])),
            score=rounded(score),
            features=tuple(map(rounded, features)),
        )
        return correction, held_out[best]

    def _cross_fitted(self, penalty: float) -> Float64[np.ndarray, " rows"]:
        scores = np.empty(len(self._wrong))
        for fold in np.unique(self._folds):
            here = self._folds == fold
            scores[here] = expit(self._model(penalty, ~here).decision_function(self._columns[here]))
        return scores

    def _model(self, penalty: float, rows: Bool[np.ndarray, " rows"]) -> LogisticRegression:
        return LogisticRegression(C=penalty, max_iter=1000).fit(
            self._columns[rows], self._wrong[rows], sample_weight=self._weights[rows]
        )


def _folds(
    wrong: Bool[np.ndarray, " rows"], groups: Int64[np.ndarray, " rows"], seed: int
) -> Int64[np.ndarray, " rows"]:
    """Deal groups to folds at random, those with a wrong answer first, so that every fold has its share of both."""
    names, group = np.unique(groups, return_inverse=True)
    any_wrong = np.bincount(group, weights=wrong) > 0
    order = np.lexsort((np.random.default_rng(seed).random(len(names)), ~any_wrong))
    fold = np.empty(len(names), dtype=np.int64)
    fold[order] = np.arange(len(names)) % FOLDS
    folds: Int64[np.ndarray, " rows"] = fold[group]
    return folds
