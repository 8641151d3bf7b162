import math
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import pytest
from pydantic import ValidationError

from ilis_guard.scoring.blended_trees import BlendedTrees, Blending, improbability
from ilis_guard.scoring.bundle import CalibrationSet
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.typicality import TypicalityReference
from tests.scoring.by_hand import trees_alone

DISTANCES = (3.0, 6.0, 9.0, 13.0, 18.0, 25.0)


def log_odds_of(probability: float) -> float:
    return math.log(probability / (1 - probability))


def probability_of(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


@pytest.fixture
def reference(calibration_set: CalibrationSet) -> TypicalityReference:
    return calibration_set.typicality


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
    normal: Columns, booster: lightgbm.Booster, reference: TypicalityReference, said: list[float]
) -> None:
    alone = BlendedTrees(booster, blending=None, reference=reference)
    assert alone.raw_scores(normal).tolist() == said


def test_trees_count_in_spreads(
    normal: Columns, booster: lightgbm.Booster, reference: TypicalityReference, said: list[float]
) -> None:
    scores = BlendedTrees(booster, blending=of(normal, trees_spread=2.5), reference=reference).raw_scores(normal)
    assert scores.tolist() == pytest.approx([probability_of(log_odds_of(each) / 2.5) for each in said], rel=1e-12)


def test_the_linear_model_looks_at_features_in_units_of_their_traffic(
    normal: Columns, booster: lightgbm.Booster, reference: TypicalityReference, said: list[float]
) -> None:
    width = normal.normalised_features.shape[1]
    linear = tuple(np.random.default_rng(0).normal(scale=0.3, size=width).tolist())
    scores = BlendedTrees(booster, blending=of(normal, linear=linear), reference=reference).raw_scores(normal)
    rows = normal.blocks["features"][:, width:].tolist()
    by_hand = [
        probability_of(log_odds_of(each) + sum(one * value for one, value in zip(linear, row, strict=True)))
        for each, row in zip(said, rows, strict=True)
    ]
    assert scores.tolist() == pytest.approx(by_hand, rel=1e-9)


def test_the_less_familiar_an_answer_the_more_its_improbability_counts(
    normal: Columns, booster: lightgbm.Booster, reference: TypicalityReference, said: list[float]
) -> None:
    blending = of(normal, distances=DISTANCES)
    scores = BlendedTrees(booster, blending=blending, reference=reference).raw_scores(normal)
    familiarity = blending.familiarity(reference).typicality(normal.blocks["typicality"]).tolist()
    assert len(set(familiarity)) > 3, "too few for the weight to show"
    by_hand = [
        probability_of(log_odds_of(each) - (1 - math.sqrt(known)) * (whole + token))
        for each, known, (whole, token) in zip(said, familiarity, normal.blocks["logprobs"].tolist(), strict=True)
    ]
    assert scores.tolist() == pytest.approx(by_hand, rel=1e-9)


def test_where_log_probabilities_are_unknown_improbability_counts_nowhere(
    normal: Columns, booster: lightgbm.Booster, reference: TypicalityReference, said: list[float]
) -> None:
    blocks = {name: block for name, block in normal.blocks.items() if name != "logprobs"}
    unknown = Columns(blocks=blocks, prompt=normal.prompt)
    scores = BlendedTrees(booster, blending=of(normal, distances=DISTANCES), reference=reference).raw_scores(unknown)
    assert scores.tolist() == pytest.approx(said, rel=1e-12)


@pytest.mark.parametrize(("certain", "kept"), [(0.0, 1e-6), (1.0, 1 - 1e-6)])
def test_trees_that_are_sure_count_as_nearly_sure(
    certain: float,
    kept: float,
    normal: Columns,
    booster: lightgbm.Booster,
    reference: TypicalityReference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(booster, "predict", lambda features, **_: np.full(len(features), certain))
    scores = BlendedTrees(booster, blending=of(normal), reference=reference).raw_scores(normal)
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
        ("distances", ()),
        ("distances", (2.0, 1.0)),
        ("distances", (1.0, math.nan)),
        ("weight", 0.5),
    ],
)
def test_a_damaged_blending_is_refused(field: str, value: Any) -> None:
    make: Callable[..., Blending] = Blending
    with pytest.raises(ValidationError, match=field):
        make(**{"trees_spread": 1.0, "linear": (0.5,), "distances": (1.0,), field: value})
