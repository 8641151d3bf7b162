"""A logistic regression on an answer's log-probability: how far that alone tells wrong answers."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ilis_guard.lab.attempts import Mask

_INTERCEPT_SCALE: Final = 10.0
"""Of the columns that stand for datasets: so large that the penalty hardly affects their coefficients."""
_FAR: Final = 40.0
"""Log-odds at which an answer is as good as certainly right or wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceProbability:
    """The probability that an answer is wrong, given the log-probability of its tokens."""

    slope: float
    """Increase of the log-odds of a wrong answer per nat that the log-probability decreases; not negative."""
    intercept: float

    def log_odds(self, logprob_sum: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Compute the log-odds that answers are wrong, nats.

        Args:
            logprob_sum: log-probability of each whole answer, nats.
        """
        return self.intercept - self.slope * logprob_sum


def fit_sequence_probability(
    logprob_sum: Float64[np.ndarray, " rows"], wrong: Mask, datasets: np.ndarray
) -> SequenceProbability:
    """Fit a logistic regression of being wrong on the log-probability, with an intercept for each dataset.

    Without these intercepts the slope would also reflect how long a dataset's answers are and how often they are wrong.
    The one intercept that is kept is the one with which, at that slope, as many answers are expected to be wrong as
    are.

    Args:
        logprob_sum: of each answer, nats.
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
