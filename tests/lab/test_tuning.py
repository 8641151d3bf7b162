from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from ilis_guard.lab.tuning import SEARCHED, Candidate, tune
from ilis_guard.scoring.features import FeatureGroup, Maps, feature_matrix
from ilis_guard.types import POSITIONS, Position

pytestmark = pytest.mark.usefixtures("fitted_model")

ROWS, LAYERS = 360, 4
INFORMATIVE: tuple[FeatureGroup, ...] = ("mean-prompt",)
NOISE: tuple[FeatureGroup, ...] = ("statistics",)
CHOICES = (NOISE, INFORMATIVE)

PART = np.random.default_rng(0).permutation(ROWS) % 3
TRAIN, VALIDATION, REST = PART == 0, PART == 1, PART == 2


def made(seed: int = 1) -> tuple[Maps, np.ndarray, np.ndarray]:
    """Where an answer is wrong its mean map lies a little higher; the output statistics say nothing."""
    random = np.random.default_rng(seed)
    wrong = random.random(ROWS) < 0.4
    maps: dict[Position, np.ndarray] = {
        position: random.lognormal(size=(ROWS, LAYERS, LAYERS)).astype(np.float32) for position in POSITIONS
    }
    maps["mean"] += wrong[:, None, None].astype(np.float32)
    return maps, random.standard_normal((ROWS, 4)), wrong


def tuned_on(
    choices: Sequence[tuple[FeatureGroup, ...]], maps: Maps, statistics: np.ndarray, wrong: np.ndarray, **options: Any
) -> list[Candidate]:
    columns = partial(feature_matrix, maps=maps, statistics=statistics)
    return tune(choices, columns, wrong, train=TRAIN, validation=VALIDATION, **{"seed": 3} | options)


@pytest.fixture(scope="module")
def tuned() -> list[Candidate]:
    return tuned_on(CHOICES, *made())


def texts(candidates: list[Candidate]) -> list[str]:
    return [one.booster.model_to_string() for one in candidates]


def test_each_choice_of_features_is_tried_with_all_settings(tuned: list[Candidate]) -> None:
    tried = {(one.metadata.features, one.metadata.num_leaves, one.metadata.feature_fraction) for one in tuned}
    assert tried == {
        (features, settings["num_leaves"], settings["feature_fraction"])
        for features in CHOICES
        for settings in SEARCHED
    }
    assert len(tuned) == len(tried)


def test_the_best_come_first_and_noise_is_not_among_them(tuned: list[Candidate]) -> None:
    losses = [one.metadata.loss for one in tuned]
    assert losses == sorted(losses)
    assert [one.metadata.features for one in tuned] == [INFORMATIVE] * 4 + [NOISE] * 4
    base_rate = log_loss(made()[2][VALIDATION], np.full(VALIDATION.sum(), made()[2][TRAIN].mean()))
    assert losses[0] < 0.8 * base_rate


def test_the_loss_is_that_of_the_kept_trees_on_the_validation_rows(tuned: list[Candidate]) -> None:
    maps, statistics, wrong = made()
    for one in tuned:
        columns = feature_matrix(one.metadata.features, maps, statistics)
        predicted = np.asarray(one.booster.predict(columns[VALIDATION]))
        assert one.metadata.loss == pytest.approx(log_loss(wrong[VALIDATION], predicted), rel=1e-9)
        assert one.metadata.trees == one.booster.num_trees()


def test_no_fewer_of_the_trees_would_have_done_better(tuned: list[Candidate]) -> None:
    maps, statistics, wrong = made()
    best = tuned[0]
    columns = feature_matrix(best.metadata.features, maps, statistics)[VALIDATION]
    losses = [
        log_loss(wrong[VALIDATION], np.asarray(best.booster.predict(columns, num_iteration=trees)))
        for trees in range(1, best.metadata.trees + 1)
    ]
    assert best.metadata.trees > 1
    assert min(losses) == losses[-1]


def test_rows_that_are_neither_train_nor_validation_change_nothing(tuned: list[Candidate]) -> None:
    maps, statistics, wrong = made()
    for each in maps.values():
        each[REST] = 1000
    statistics[REST] = -1000
    wrong[REST] = ~wrong[REST]
    again = tuned_on(CHOICES, maps, statistics, wrong)
    assert texts(again) == texts(tuned)
    assert [one.metadata for one in again] == [one.metadata for one in tuned]


def test_train_rows_do_change_the_trees(tuned: list[Candidate]) -> None:
    maps, statistics, wrong = made()
    wrong[np.flatnonzero(TRAIN)[:20]] ^= True
    again = tuned_on(CHOICES, maps, statistics, wrong)
    assert texts(again) != texts(tuned)


def test_a_seed_gives_the_same_trees_again_and_another_gives_others(tuned: list[Candidate]) -> None:
    same, other = (tuned_on((INFORMATIVE,), *made(), seed=seed) for seed in (3, 4))
    assert texts(same) == texts(tuned[: len(same)])
    assert texts(other) != texts(same)


def test_progress_is_told_at_first_and_after_each_candidate() -> None:
    told: list[tuple[int, int]] = []
    tuned_on(CHOICES, *made(), progress=lambda *both: told.append(both))
    every = len(CHOICES) * len(SEARCHED)
    assert told == [(done, every) for done in range(every + 1)]
