"""Fit what is blended with the trees: a linear model of the same features, and its weight."""

from collections.abc import Sequence
from typing import Final

import lightgbm
import numpy as np
from jaxtyping import Float64
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from ilis_guard.lab.attempts import Mask
from ilis_guard.lab.ridge import column_scales, rounded
from ilis_guard.scoring.blended_trees import Blending
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.correction import log_odds

PENALTIES: Final = (0.3, 1.0, 3.0, 10.0)
"""Inverse strengths of the linear model's penalty, of which validation rows choose the one with the smallest loss."""
WEIGHTS: Final = (0.0, 0.25, 0.5, 1.0)
"""Of the linear model beside the trees, of which the one with the smallest loss on validation rows is taken."""
LEAST_SPREAD: Final = 1e-3
"""Of scores over the rows that trees were chosen by: below, they say nothing, and their rounding isn't enlarged."""
_INTERCEPT_SCALE: Final = 10.0
"""Of the columns that stand for datasets: so large that the penalty hardly affects their coefficients."""


def fit_blending(
    booster: lightgbm.Booster,
    columns: Columns,
    widths: Sequence[tuple[int, bool]],
    wrong: Mask,
    datasets: np.ndarray,
    *,
    train: Mask,
    validation: Mask,
) -> Blending:
    """Fit what is blended with the trees, to the rows that trained and selected them.

    Args:
        booster: the trees.
        columns: normalised.
        widths: the columns of each group of features, in order, and whether they are of maps.
        wrong: some are and some aren't.
        datasets: the name of each row's dataset.
        train: rows that the linear model is fitted to.
        validation: rows that choose its penalty and its weight, and give the spreads of both scores.
    """
    features = columns.normalised_features
    linear = fit_linear(features, widths, wrong, datasets, train=train, validation=validation)
    linear = linear / max(float((features[validation] @ linear).std()), LEAST_SPREAD)
    trees = log_odds(np.asarray(booster.predict(columns.blocks["features"][validation], num_threads=1)))
    trees_spread = max(float(trees.std()), LEAST_SPREAD)
    beside = features[validation] @ linear

    def loss(weight: float) -> float:
        return _calibrated_loss(trees / trees_spread + weight * beside, wrong[validation])

    return Blending(
        trees_spread=rounded(trees_spread),
        linear=tuple(map(rounded, linear.tolist())),
        linear_weight=min(WEIGHTS, key=loss),
    )


def fit_linear(
    features: Float64[np.ndarray, "rows features"],
    widths: Sequence[tuple[int, bool]],
    wrong: Mask,
    datasets: np.ndarray,
    *,
    train: Mask,
    validation: Mask,
) -> Float64[np.ndarray, " features"]:
    """Fit a ridge-penalised logistic regression of being wrong, with an intercept for each dataset.

    Without these intercepts the coefficients would also reflect how often a dataset's answers are wrong. They aren't
    kept: calibration gives the score its level.

    Args:
        features: in units of their traffic.
        widths: the columns of each group of features, in order, and whether they are of maps.
        wrong: both classes occur among the training rows.
        datasets: the name of each row's dataset.
        train: rows to fit to.
        validation: rows that choose the penalty.

    Returns:
        The coefficients.
    """
    names, places = np.unique(datasets, return_inverse=True)
    scales = column_scales(widths)
    columns = np.hstack([features * scales, _INTERCEPT_SCALE * np.eye(len(names))[places]])
    models = [
        LogisticRegression(C=penalty, fit_intercept=False, max_iter=1000).fit(columns[train], wrong[train])
        for penalty in PENALTIES
    ]
    best = min(models, key=lambda model: _loss(model, columns[validation], wrong[validation]))
    coefficients: Float64[np.ndarray, " features"] = best.coef_[0, : features.shape[1]] * scales
    return coefficients


def _loss(model: LogisticRegression, columns: Float64[np.ndarray, "rows columns"], wrong: Mask) -> float:
    return float(log_loss(wrong, model.predict_proba(columns)[:, 1], labels=[False, True]))


def _calibrated_loss(odds: Float64[np.ndarray, " rows"], wrong: Mask) -> float:
    """The loss of these log-odds once they are shifted and stretched as fits best."""
    columns = odds[:, None]
    return _loss(LogisticRegression(C=1e6).fit(columns, wrong), columns, wrong)
