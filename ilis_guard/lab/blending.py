"""Fit what is blended with trees: the answer's log-probability, and the familiarity that weighs the two."""

from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

from ilis_guard.lab.attempts import Mask
from ilis_guard.scoring.blended_trees import Blending, SequenceProbability
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.typicality import TypicalityReference, squared_distances

_INTERCEPT_SCALE: Final = 10.0
"""Of the columns that stand for datasets: so large that the penalty hardly affects their coefficients."""
_FAR: Final = 40.0
"""Log-odds at which an answer is as good as certainly right or wrong."""


def fit_blending(
    columns: Columns, wrong: Mask, datasets: np.ndarray, *, train: Mask, validation: Mask
) -> Blending | None:
    """Fit what is blended with the trees, to the rows that trained and selected them.

    None where the tokens' log-probabilities aren't known.

    Args:
        columns: normalised.
        wrong: some are and some aren't.
        datasets: the name of each row's dataset.
        train: rows that give the location and spread of familiar answers.
        validation: rows that give the distances of familiar answers.
    """
    if "logprob_sum" not in columns.blocks:
        return None
    seen = train | validation
    return Blending(
        sequence_probability=fit_sequence_probability(
            columns.blocks["logprob_sum"][seen, 0], wrong[seen], datasets[seen]
        ),
        distances=typicality_reference(columns.blocks["typicality"], train, validation).distances,
    )


def fit_sequence_probability(
    logprob_sum: Float64[np.ndarray, " rows"], wrong: Mask, datasets: np.ndarray
) -> SequenceProbability:
    """Fit a logistic regression of being wrong on the log-probability, with an intercept for each dataset.

    Without these intercepts the slope would also reflect how long a dataset's answers are and how often they are wrong.
    The one intercept that is kept is the one with which, at that slope, as many answers are expected to be wrong as
    are.

    Args:
        logprob_sum: of each answer, in spreads from the mean of its traffic.
        wrong: both classes occur.
        datasets: the name of each row's dataset.
    """
    names, places = np.unique(datasets, return_inverse=True)
    # Less the dataset's mean, which the intercepts absorb: otherwise the penalty would shrink the slope the more, the
    # more datasets differ in the length of their answers.
    away = logprob_sum - (np.bincount(places, weights=logprob_sum) / np.bincount(places))[places]
    spread = float(away.std()) or 1.0
    columns = np.column_stack([-away / spread, _INTERCEPT_SCALE * np.eye(len(names))[places]])
    fitted = LogisticRegression(fit_intercept=False, max_iter=1000).fit(columns, wrong)
    slope = max(float(fitted.coef_[0, 0]), 0.0) / spread

    def excess(intercept: float) -> float:
        return float(np.mean(expit(intercept - slope * logprob_sum) - wrong))

    steep = slope * logprob_sum
    intercept = float(brentq(excess, steep.min() - _FAR, steep.max() + _FAR))
    return SequenceProbability(slope=slope, intercept=intercept)


def typicality_reference(
    columns: Float64[np.ndarray, "rows columns"], train: Mask, calibration: Mask
) -> TypicalityReference:
    """Fit the location and spread of training columns, and measure the calibration rows' distances from them."""
    spread = LedoitWolf().fit(columns[train])
    distances = squared_distances(columns[calibration], spread.location_, spread.precision_)
    return TypicalityReference(
        mean=tuple(spread.location_.tolist()),
        precision=tuple(map(tuple, spread.precision_.tolist())),
        distances=tuple(sorted(distances.tolist())),
    )
