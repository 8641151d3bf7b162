"""A bundle of stage `prompt` scores a request before the first token is generated."""

from collections.abc import Callable
from dataclasses import replace

import lightgbm
import numpy as np
import pytest
from pydantic import ValidationError

from ilis_guard.errors import BundleError, ScoringError
from ilis_guard.scoring import Bundle, BundleMetadata, LightGBMScorer
from ilis_guard.scoring.bundle import CalibrationSet
from ilis_guard.scoring.columns import columns_of
from ilis_guard.scoring.features import Maps
from ilis_guard.scoring.traffic import Normaliser
from ilis_guard.types import STATISTICS, Generation, Position
from tests.scoring.by_hand import traffic_of, trees_alone

LAYERS = 4
Row = Callable[[int], Generation]


@pytest.fixture(scope="module")
def of_prompts(maps: Maps, statistics: np.ndarray, metadata: BundleMetadata, calibration_set: CalibrationSet) -> Bundle:
    """Wrong where the prompt's first two layers lie far apart."""
    wrong = maps["prompt"][:, 0, 1] > np.median(maps["prompt"][:, 0, 1])
    columns = columns_of(["prompt"], "prompt", maps, statistics, STATISTICS)
    traffic = traffic_of(columns)
    normal = Normaliser(traffic).normalise(columns, np.zeros(len(columns), dtype=np.int64))
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": 7, "num_threads": 1, "verbosity": -1, "seed": 0},
        lightgbm.Dataset(normal.blocks["features"], label=wrong),
        num_boost_round=20,
    )
    width, typicality = LAYERS - 1, calibration_set.typicality
    halved = typicality.model_copy(
        update={
            "mean": typicality.mean[:width],
            "precision": tuple(row[:width] for row in typicality.precision[:width]),
        }
    )
    return Bundle(
        metadata=metadata.model_copy(update={"stage": "prompt", "features": ("prompt",), "blending": trees_alone(12)}),
        trees=booster.model_to_string(),
        calibration_set=calibration_set.model_copy(update={"typicality": halved}),
        traffic=traffic,
        digest="ab",
    )


def at_the_prompt(generation: Generation) -> Generation:
    signatures: dict[Position, np.ndarray] = {"prompt": generation.signatures["prompt"]}
    return replace(generation, text="", tokens=0, finish_reason=None, statistics=None, signatures=signatures)


def test_prompt_scorer_separates_prompts_by_their_map_alone(of_prompts: Bundle, generation: Row, maps: Maps) -> None:
    scorer = LightGBMScorer(of_prompts)
    scores = np.array([scorer.score(at_the_prompt(generation(row))).uncertainty for row in range(100)])
    far = maps["prompt"][:100, 0, 1] > np.median(maps["prompt"][:, 0, 1])
    assert scores[far].min() > scores[~far].max()
    assert scorer.score(at_the_prompt(generation(0))) == scorer.score(generation(0))


def test_without_the_prompts_map_there_is_no_score(of_prompts: Bundle, generation: Row) -> None:
    with pytest.raises(ScoringError, match="no signature 'prompt'"):
        LightGBMScorer(of_prompts).score(replace(at_the_prompt(generation(0)), signatures={}))


def test_a_typicality_reference_of_answers_doesnt_pass_for_one_of_prompts(
    of_prompts: Bundle, calibration_set: CalibrationSet
) -> None:
    with pytest.raises(
        BundleError, match=r"'typicality': 3, .*; its traffic.json has .* typicality reference in calibration.json 6"
    ):
        LightGBMScorer(replace(of_prompts, calibration_set=calibration_set))


@pytest.mark.parametrize("features", [["prompt", "statistics"], ["mean-prompt"]])
def test_prompt_metadata_with_answer_features_is_refused(metadata: BundleMetadata, features: list[str]) -> None:
    told = metadata.model_dump(mode="json") | {"stage": "prompt", "features": features}
    with pytest.raises(ValidationError, match="at stage 'prompt' there are 'prompt' and 'prompt-summary' to look at"):
        BundleMetadata.model_validate(told, strict=False)
