"""Growing trees: LightGBM's settings and the features it looks at, chosen on validation rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import lightgbm
import numpy as np
from jaxtyping import Bool, Float64

from ilis_guard.scoring.bundle import Candidate
from ilis_guard.scoring.features import FeatureGroup, Maps, feature_matrix

PARAMETERS: Final[Mapping[str, Any]] = {
    # Hundreds of rows meet thousands of features: few leaves, few columns a tree (both are searched), strong L2. More
    # bins than that take twice as long and are no better on validation rows.
    "objective": "binary",
    "learning_rate": 0.05,
    "min_data_in_leaf": 20,
    "lambda_l2": 5.0,
    "max_bin": 63,
    "deterministic": True,
    "force_col_wise": True,
    # Threads wait for one another at every split: for so few rows that costs more than it gains, and where another
    # process holds one of the cores it takes fifty times as long.
    "num_threads": 1,
    "verbosity": -1,
}
SEARCHED: Final[Sequence[Mapping[str, Any]]] = (
    {"num_leaves": 7, "feature_fraction": 0.1},
    {"num_leaves": 4, "feature_fraction": 0.1},
    {"num_leaves": 15, "feature_fraction": 0.1},
    {"num_leaves": 15, "feature_fraction": 0.05},
)
"""Which settings are tried; where two are as good, the earlier one is taken."""
MOST_TREES: Final = 500
PATIENCE: Final = 30
"""Training stops when the validation loss hasn't improved for so many trees."""

Rows = Bool[np.ndarray, " rows"]
Progress = Callable[[int, int], None]
"""Told (candidates grown, candidates in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """Trees up to the best one, and how they fared."""

    candidate: Candidate
    booster: lightgbm.Booster


def grow(
    groups: Sequence[tuple[FeatureGroup, ...]],
    maps: Maps,
    statistics: Float64[np.ndarray, "rows statistics"],
    wrong: Rows,
    *,
    train: Rows,
    validation: Rows,
    seed: int,
    progress: Progress = lambda _done, _all: None,
) -> list[Grown]:
    """Trees that tell wrong answers from right ones, for each choice of features and settings; the best come first.

    The validation rows end each one's growth, and the order of all is by their log-loss on these rows.

    Args:
        groups: the choices of features.
        maps: signatures by position, nats.
        statistics: output statistics.
        wrong: whether each answer was wrong.
        train: what the trees are grown on.
        validation: what they are chosen by.
        seed: of the columns that a tree may look at.
        progress: told at first, and after each candidate.
    """
    tried = [(features, settings) for features in groups for settings in SEARCHED]
    progress(0, len(tried))
    grown: list[Grown] = []
    for features, choices in groupby(tried, key=lambda one: one[0]):
        columns = feature_matrix(features, maps, statistics)
        training = lightgbm.Dataset(columns[train], label=wrong[train], free_raw_data=False)
        validating = lightgbm.Dataset(
            columns[validation], label=wrong[validation], reference=training, free_raw_data=False
        )
        for _, settings in choices:
            grown.append(_grown(features, settings, training, validating, seed))
            progress(len(grown), len(tried))
    return sorted(grown, key=lambda one: one.candidate.loss)


def _grown(
    features: tuple[FeatureGroup, ...],
    settings: Mapping[str, Any],
    training: lightgbm.Dataset,
    validating: lightgbm.Dataset,
    seed: int,
) -> Grown:
    booster = lightgbm.train(
        {**PARAMETERS, **settings, "seed": seed},
        training,
        num_boost_round=MOST_TREES,
        valid_sets=[validating],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    # What is written and read back holds the best trees only.
    best = lightgbm.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))
    return Grown(
        candidate=Candidate(
            features=features,
            trees=best.num_trees(),
            loss=float(booster.best_score["valid_0"]["binary_logloss"]),
            **settings,
        ),
        booster=best,
    )
