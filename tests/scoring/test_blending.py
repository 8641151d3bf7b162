import math
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import pytest
from pydantic import ValidationError

from ilis_guard.scoring.blended_trees import BlendedTrees, Blending, improbability
from ilis_guard.scoring.columns import Block, Columns
from tests.scoring.by_hand import trees_alone


def log_odds_of(probability: float) -> float:
    return math.log(probability / (1 - probability))


def probability_of(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


@pytest.fixture
def booster(trees: str) -> lightgbm.Booster:
    return lightgbm.Booster(model_str=trees)


@pytest.fixture
def said(booster: lightgbm.Booster, normal: Columns) -> list[float]:
    """The trees' scores."""
    scores: list[float] = np.asarray(booster.predict(normal.blocks["features"])).tolist()
    return scores


def of(columns: Columns, **changes: Any) -> Blending:
    return trees_alone(columns.normalised_features.shape[1]).model_copy(update=changes)


def test_without_a_blending_the_trees_have_the_last_word(
    normal: Columns, booster: lightgbm.Booster, said: list[float]
) -> None:
    alone = BlendedTrees(booster, blending=None)
    assert alone.raw_scores(normal).tolist() == said


def test_trees_count_in_spreads(normal: Columns, booster: lightgbm.Booster, said: list[float]) -> None:
    scores = BlendedTrees(booster, blending=of(normal, trees_spread=2.5)).raw_scores(normal)
    assert scores.tolist() == pytest.approx([probability_of(log_odds_of(each) / 2.5) for each in said], rel=1e-12)


@pytest.fixture
def linear(normal: Columns) -> tuple[float, ...]:
    width = normal.normalised_features.shape[1]
    return tuple(np.random.default_rng(0).normal(scale=0.3, size=(width,)).tolist())


@pytest.fixture
def summed(normal: Columns, linear: tuple[float, ...]) -> list[float]:
    """What the linear model says of features in units of their traffic."""
    rows = normal.blocks["features"][:, len(linear) :].tolist()
    return [sum(one * value for one, value in zip(linear, row, strict=True)) for row in rows]


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_on_the_traffic_of_the_fit_the_linear_model_weighs_what_validation_chose(
    weight: float,
    normal: Columns,
    booster: lightgbm.Booster,
    said: list[float],
    linear: tuple[float, ...],
    summed: list[float],
) -> None:
    blending = of(normal, linear=linear, linear_weight=weight)
    scores = BlendedTrees(booster, blending=blending).raw_scores(normal)
    by_hand = [probability_of(log_odds_of(each) + weight * other) for each, other in zip(said, summed, strict=True)]
    assert scores.tolist() == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_on_other_traffic_the_linear_model_and_improbability_weigh_as_much_as_the_trees(
    weight: float,
    normal: Columns,
    booster: lightgbm.Booster,
    said: list[float],
    linear: tuple[float, ...],
    summed: list[float],
) -> None:
    blending = of(normal, linear=linear, linear_weight=weight, trees_spread=2.5)
    logprobs = normal.blocks["logprobs"].tolist()
    by_hand = [
        probability_of((log_odds_of(each) / 2.5 + other - (whole + token)) / 3)
        for each, other, (whole, token) in zip(said, summed, logprobs, strict=True)
    ]
    scores = BlendedTrees(booster, blending=blending).raw_scores(normal, adapted=True)
    assert scores.tolist() == pytest.approx(by_hand, rel=1e-9)
    # A bundle that learned from other traffic has it for its own.
    own = BlendedTrees(booster, blending=blending.model_copy(update={"adapted": True})).raw_scores(normal)
    assert own.tolist() == scores.tolist()


def test_where_log_probabilities_are_unknown_improbability_counts_nowhere(
    normal: Columns, booster: lightgbm.Booster, said: list[float]
) -> None:
    blocks: dict[Block, np.ndarray] = {name: block for name, block in normal.blocks.items() if name != "logprobs"}
    unknown = Columns(blocks=blocks, prompt=normal.prompt)
    scores = BlendedTrees(booster, blending=of(normal)).raw_scores(unknown, adapted=True)
    by_hand = [probability_of(log_odds_of(each) / 2) for each in said]  # the linear model says nothing here
    assert scores.tolist() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(("certain", "kept"), [(0.0, 1e-6), (1.0, 1 - 1e-6)])
def test_trees_that_are_sure_count_as_nearly_sure(
    certain: float,
    kept: float,
    normal: Columns,
    booster: lightgbm.Booster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(booster, "predict", lambda features, **_: np.full(len(features), certain))
    scores = BlendedTrees(booster, blending=of(normal)).raw_scores(normal)
    assert scores.tolist() == pytest.approx([kept] * len(scores), rel=1e-9)


def test_improbability_is_the_sum_of_both_with_the_sign_turned() -> None:
    assert improbability(np.array([[-2.0, -0.5], [1.0, 0.25], [3.0, -3.0]])).tolist() == [2.5, -1.25, 0.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trees_spread", 0.0),
        ("trees_spread", -1.0),
        ("trees_spread", math.nan),
        ("trees_spread", math.inf),
        ("trees_spread", None),
        ("linear", (0.0, math.nan)),
        ("linear", (1.1e6,)),
        ("linear", ("1",)),
        ("linear", None),
        ("linear_weight", -0.1),
        ("linear_weight", 1.1),
        ("linear_weight", math.nan),
        ("adapted", None),
        ("weight", 0.5),
    ],
)
def test_a_damaged_blending_is_refused(field: str, value: Any) -> None:
    make: Callable[..., Blending] = Blending
    with pytest.raises(ValidationError, match=field):
        make(**{"trees_spread": 1.0, "linear": (0.5,), "linear_weight": 0.5, field: value})
