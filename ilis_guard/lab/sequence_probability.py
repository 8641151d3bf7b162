"""What an answer's log-probability tells of its being wrong, whatever kind of question was asked."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ilis_guard.scoring.calibration import SequenceProbability

_INTERCEPT_SCALE: Final = 10.0
"""Of the columns that stand for datasets: so large that the penalty hardly weighs on their coefficients."""
_FAR: Final = 40.0
"""Log-odds at which an answer is surely right, or surely wrong."""


def fit_sequence_probability(
    logprob_sum: Float64[np.ndarray, " rows"], wrong: Bool[np.ndarray, " rows"], datasets: np.ndarray
) -> SequenceProbability:
    """How its log-probability tells whether an answer is wrong: a logistic regression, an intercept for each dataset.

    What a dataset's answers are like, long or short, and how often they're wrong, would otherwise be taken for what a
    nat is worth. With that slope, the intercept that is kept is the one with which as many answers are expected to be
    wrong as are.

    Args:
        logprob_sum: of each answer, nats.
        wrong: some are and some aren't.
        datasets: their names, one a row.
    """
    names, places = np.unique(datasets, return_inverse=True)
    # Apart from its dataset's mean, which the intercepts stand for: else the penalty would weigh on the slope the more,
    # the more datasets differ in the length of their answers.
    away = logprob_sum - (np.bincount(places, weights=logprob_sum) / np.bincount(places))[places]
    spread = float(away.std()) or 1.0
    columns = np.column_stack([-away / spread, _INTERCEPT_SCALE * np.eye(len(names))[places]])
    fitted = LogisticRegression(fit_intercept=False, max_iter=1000).fit(columns, wrong)
    slope = max(float(fitted.coef_[0, 0]), 0.0) / spread

    def too_many(intercept: float) -> float:
        return float(np.mean(expit(intercept - slope * logprob_sum) - wrong))

    steep = slope * logprob_sum
    intercept = float(brentq(too_many, steep.min() - _FAR, steep.max() + _FAR))
    return SequenceProbability(slope=slope, intercept=intercept)
