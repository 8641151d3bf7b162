import math
from collections.abc import Callable

import lightgbm
import numpy as np
import pytest
from pydantic import ValidationError

from ilis_guard.scoring.blended_trees import BlendedTrees, Blending, SequenceProbability, blend
from ilis_guard.scoring.bundle import CalibrationSet
from ilis_guard.scoring.columns import Columns


def log_odds_of(probability: float) -> float:
    return math.log(probability / (1 - probability))


def one(trees: float, log_odds: float, familiarity: float) -> float:
    return float(blend(np.array([trees]), np.array([log_odds]), np.array([familiarity]))[0])


@pytest.mark.parametrize(
    ("familiarity", "weight"),
    [(0.0, 0.0), (0.04, 0.2), (0.25, 0.5), (0.64, 0.8), (1.0, 1.0)],
    ids=str,
)
@pytest.mark.parametrize(("trees", "log_odds"), [(0.9, -1.5), (0.3, 2.0), (0.5, 0.7)])
def test_the_more_familiar_an_answer_the_more_the_trees_weigh(
    trees: float, log_odds: float, familiarity: float, weight: float
) -> None:
    mixed = weight * log_odds_of(trees) + (1 - weight) * log_odds
    assert one(trees, log_odds, familiarity) == pytest.approx(1 / (1 + math.exp(-mixed)), rel=1e-12)


def test_each_row_is_blended_by_its_own_typicality() -> None:
    trees, log_odds, familiarity = np.array([0.9, 0.9, 0.2]), np.array([-1.0, -1.0, 3.0]), np.array([0.0, 1.0, 0.4])
    alone = [one(*row) for row in zip(trees.tolist(), log_odds.tolist(), familiarity.tolist(), strict=True)]
    assert blend(trees, log_odds, familiarity).tolist() == pytest.approx(alone, rel=1e-15)
    assert alone[0] < 0.5 < alone[1]


@pytest.mark.parametrize("familiarity", [0.01, 0.3, 0.9])
def test_the_order_by_trees_and_by_log_odds_is_kept(familiarity: float) -> None:
    rising, same = np.linspace(0.001, 0.999, 200), np.full(200, familiarity)
    assert (np.diff(blend(rising, np.full(200, -0.7), same)) > 0).all()
    assert (np.diff(blend(np.full(200, 0.3), np.linspace(-9, 9, 200), same)) > 0).all()


@pytest.mark.parametrize(("trees", "kept"), [(0.0, 1e-6), (1.0, 1 - 1e-6)])
@pytest.mark.parametrize("familiarity", [0.0, 1.0])
def test_trees_that_are_sure_count_as_nearly_sure(trees: float, kept: float, familiarity: float) -> None:
    score = one(trees, 0.4, familiarity)
    assert 0 < score < 1
    assert score == one(kept, 0.4, familiarity)


def test_without_log_odds_the_booster_has_the_last_word(
    normal: Columns, trees: str, calibration_set: CalibrationSet
) -> None:
    booster = lightgbm.Booster(model_str=trees)
    said = np.asarray(booster.predict(normal.blocks["features"]))
    alone = BlendedTrees(booster, blending=None, reference=calibration_set.typicality)
    assert alone.raw_scores(normal).tolist() == said.tolist()


def test_with_log_odds_the_boosters_word_is_blended(
    normal: Columns, trees: str, calibration_set: CalibrationSet
) -> None:
    booster, reference = lightgbm.Booster(model_str=trees), calibration_set.typicality
    said = np.asarray(booster.predict(normal.blocks["features"]))
    sequence = SequenceProbability(slope=1.5, intercept=-0.5)
    blending = Blending(sequence_probability=sequence, distances=(1.0, 4.0, 9.0, 16.0, 25.0))
    scores = BlendedTrees(booster, blending=blending, reference=reference).raw_scores(normal)
    log_odds = [-0.5 - 1.5 * value for value in normal.blocks["logprob_sum"][:, 0].tolist()]
    familiarity = blending.familiarity(reference).typicality(normal.blocks["typicality"]).tolist()
    by_hand = [one(*row) for row in zip(said.tolist(), log_odds, familiarity, strict=True)]
    assert scores.tolist() == pytest.approx(by_hand, rel=1e-15)
    assert np.abs(scores - said).max() > 0.1


def test_log_odds_rise_by_the_slope_per_spread_of_improbability() -> None:
    sequence = SequenceProbability(slope=0.5, intercept=-2.0)
    assert sequence.log_odds(np.array([0.0, -1.0, -4.0, -10.0])).tolist() == [-2.0, -1.5, 0.0, 3.0]


def test_a_slope_of_zero_says_the_same_of_every_answer() -> None:
    assert SequenceProbability(slope=0.0, intercept=0.25).log_odds(np.array([0.0, -99.0])).tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slope", -1e-9),
        ("slope", math.nan),
        ("slope", math.inf),
        ("intercept", math.nan),
        ("intercept", -math.inf),
        ("intercept", None),
        ("intercept", 1.1e6),
        ("slope", 1.1e6),
        ("weight", 0.5),
    ],
)
def test_line_that_does_not_rise_is_refused(field: str, value: float | None) -> None:
    make: Callable[..., SequenceProbability] = SequenceProbability
    with pytest.raises(ValidationError, match=field):
        make(**{"slope": 0.5, "intercept": -2.0, field: value})
