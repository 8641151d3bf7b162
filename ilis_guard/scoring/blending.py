"""Blending: what the trees say and what the answer's probability says, weighed by how familiar the answer looks."""

from collections.abc import Sequence
from typing import Final

import lightgbm
import numpy as np
from jaxtyping import Float64
from pydantic import ConfigDict, Field
from scipy.special import expit, logit

from ilis_guard.config.base import StrictModel
from ilis_guard.scoring.calibration import EDGE
from ilis_guard.scoring.features import FeatureGroup, Maps, feature_matrix
from ilis_guard.scoring.typicality import Distances, TypicalityEstimator, TypicalityReference

MOST: Final = 1e6
"""No slope and no intercept is larger: log-odds stay finite, and such ones would be sure of everything already."""


class SequenceProbability(StrictModel):
    """How probable it is that an answer is wrong, by the log-probability of its tokens: a logistic regression."""

    model_config = ConfigDict(allow_inf_nan=False)

    slope: float = Field(ge=0, le=MOST)
    """What a nat less of the answer's log-probability adds to the log-odds of its being wrong."""
    intercept: float = Field(ge=-MOST, le=MOST)

    def log_odds(self, logprob_sum: Float64[np.ndarray, " rows"]) -> Float64[np.ndarray, " rows"]:
        """Log-odds that answers are wrong, nats.

        Args:
            logprob_sum: log-probability of each whole answer, nats, at most 0.
        """
        with np.errstate(over="ignore"):  # nobody's log-probability: infinite log-odds are no score, and refused
            return self.intercept - self.slope * logprob_sum


class Blending(StrictModel):
    """What is blended with the trees' word, and how familiar an answer must look. It is the fit's, and stays so.

    Familiarity is as typicality (`TypicalityReference`), counted among rows that nothing is calibrated on: whatever
    a bundle is recalibrated on, its trees have seen no more than they did, and a row that a threshold is certified on
    is scored as any other.
    """

    sequence_probability: SequenceProbability
    distances: Distances
    """Squared distances of the rows that trees were chosen by, ascending."""

    def detector(self, reference: TypicalityReference) -> TypicalityEstimator:
        """What tells familiarity, 0 to 1.

        Args:
            reference: its profiles are those of the training rows; its own distances aren't looked at.
        """
        return TypicalityEstimator(reference.model_copy(update={"distances": self.distances}))


def blended(
    trees: Float64[np.ndarray, " rows"],
    log_odds: Float64[np.ndarray, " rows"],
    familiarity: Float64[np.ndarray, " rows"],
) -> Float64[np.ndarray, " rows"]:
    """Raw scores, 0 to 1: ``logit r = w logit(trees) + (1 - w) log_odds`` with w the square root of familiarity.

    What the trees learned of the maps holds for answers like those they saw; the probability of an answer tells
    something everywhere (docs/scoring.md).

    Args:
        trees: what the trees say, 0 to 1.
        log_odds: what a `SequenceProbability` says.
        familiarity: 0 to 1, see `Blending`.
    """
    weight = np.sqrt(familiarity)
    raw: Float64[np.ndarray, " rows"] = expit(weight * logit(np.clip(trees, EDGE, 1 - EDGE)) + (1 - weight) * log_odds)
    return raw


def raw_scores(
    booster: lightgbm.Booster,
    features: Sequence[FeatureGroup],
    maps: Maps,
    statistics: Float64[np.ndarray, "rows statistics"],
    *,
    log_odds: Float64[np.ndarray, " rows"] | None = None,
    familiarity: Float64[np.ndarray, " rows"] | None = None,
) -> Float64[np.ndarray, " rows"]:
    """What a scorer makes of rows before calibration, 0 to 1.

    Args:
        booster: trees over these features.
        features: what the trees look at.
        maps: signatures by position, nats.
        statistics: the output statistics that are known.
        log_odds: what a `SequenceProbability` says, if there is one; else the trees' word is the last.
        familiarity: 0 to 1, where there is one.
    """
    # One thread: for few rows, starting more takes longer than the trees do.
    trees = np.asarray(booster.predict(feature_matrix(features, maps, statistics), num_threads=1), dtype=np.float64)
    return trees if log_odds is None or familiarity is None else blended(trees, log_odds, familiarity)
