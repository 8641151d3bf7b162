"""Tune trees: select LightGBM's settings and features on validation rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import lightgbm
import numpy as np
from jaxtyping import Float64

from ilis_guard.lab.attempts import Mask
from ilis_guard.scoring import bundle
from ilis_guard.scoring.features import FeatureGroup

PARAMETERS: Final[Mapping[str, Any]] = {
    # Hundreds of rows, thousands of features: few leaves, few columns a tree (both are searched), strong L2. More bins
    # take twice as long and are no better on validation rows.
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
"""The settings that are tried; of two that are equally good, the earlier one is taken."""
MOST_TREES: Final = 500
PATIENCE: Final = 30
"""Training stops when the validation loss hasn't improved for this many trees."""

Progress = Callable[[int, int], None]
"""Called with (candidates done, candidates in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Trees up to the best one, with their settings and validation loss."""

    metadata: bundle.Candidate
    booster: lightgbm.Booster


def tune(
    groups: Sequence[tuple[FeatureGroup, ...]],
    features_of: Callable[[tuple[FeatureGroup, ...]], Float64[np.ndarray, "rows features"]],
    wrong: Mask,
    *,
    train: Mask,
    validation: Mask,
    seed: int,
    progress: Progress = lambda _done, _all: None,
) -> list[Candidate]:
    """Train trees for each choice of features and settings, and return them by their log-loss on validation rows.

    The validation rows also stop the training of each.

    Args:
        groups: the choices of features.
        features_of: computes the columns of a choice, normalised by their traffic.
        wrong: whether each answer was wrong.
        train: rows that train the trees.
        validation: rows that stop their training and order the candidates.
        seed: of the columns that each tree uses.
        progress: called first, and after each candidate.
    """
    tried = [(features, settings) for features in groups for settings in SEARCHED]
    progress(0, len(tried))
    candidates: list[Candidate] = []
    for features, choices in groupby(tried, key=lambda one: one[0]):
        columns = features_of(features)
        training = lightgbm.Dataset(columns[train], label=wrong[train], free_raw_data=False)
        validating = lightgbm.Dataset(
            columns[validation], label=wrong[validation], reference=training, free_raw_data=False
        )
        for _, settings in choices:
            candidates.append(_train(features, settings, training, validating, seed))
            progress(len(candidates), len(tried))
    return sorted(candidates, key=lambda one: one.metadata.loss)


def _train(
    features: tuple[FeatureGroup, ...],
    settings: Mapping[str, Any],
    training: lightgbm.Dataset,
    validating: lightgbm.Dataset,
    seed: int,
) -> Candidate:
    booster = lightgbm.train(
        {**PARAMETERS, **settings, "seed": seed},
        training,
        num_boost_round=MOST_TREES,
        valid_sets=[validating],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    # Writing and reading back keeps the best trees only.
    best = lightgbm.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))
    return Candidate(
        metadata=bundle.Candidate(
            features=features,
            trees=best.num_trees(),
            loss=float(booster.best_score["valid_0"]["binary_logloss"]),
            **settings,
        ),
        booster=best,
    )
