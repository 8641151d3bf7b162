"""Bundles with a sequence probability: written, read and used for scoring."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from pydantic import ValidationError

from ilis_guard.errors import ScoringError
from ilis_guard.scoring import Bundle, BundleMetadata, LightGBMScorer, read_bundle, write_bundle
from ilis_guard.scoring.blended_trees import Blending, SequenceProbability
from ilis_guard.scoring.bundle import CalibrationSet
from ilis_guard.scoring.columns import columns_of
from ilis_guard.scoring.features import Maps, feature_matrix
from ilis_guard.scoring.traffic import TrafficProfile
from ilis_guard.types import STATISTICS, Generation
from tests.scoring.by_hand import normalised, share_as_far, traffic_of, typicality_columns

SEQUENCE = SequenceProbability(slope=1.25, intercept=-1.5)
DISTANCES = (3.0, 6.0, 9.0, 13.0, 18.0, 25.0)
BLENDING = {"sequence_probability": {"slope": 1.25, "intercept": -1.5}, "distances": list(DISTANCES)}
Row = Callable[[int], Generation]


@pytest.fixture
def blending(bundle: Bundle) -> Bundle:
    metadata = bundle.metadata.model_copy(
        update={"blending": Blending(sequence_probability=SEQUENCE, distances=DISTANCES)}
    )
    return dataclasses.replace(bundle, metadata=metadata)


@pytest.fixture
def of_maps_only(blending: Bundle, maps: Maps, statistics: np.ndarray) -> Bundle:
    """Its trees look at no output statistics."""
    random = np.random.default_rng(0)
    traffic = traffic_of(columns_of(["mean-prompt"], "answer", maps, statistics, STATISTICS))
    booster = lightgbm.train(
        {"objective": "binary", "num_threads": 1, "verbosity": -1},
        lightgbm.Dataset(random.random((60, 24)), label=random.random(60) < 0.5),
        num_boost_round=3,
    )
    metadata = blending.metadata.model_copy(update={"features": ("mean-prompt",)})
    return dataclasses.replace(blending, metadata=metadata, trees=booster.model_to_string(), traffic=traffic)


def altered(metadata: BundleMetadata, **changes: Any) -> BundleMetadata:
    """Read anew, so that it's checked."""
    return BundleMetadata.model_validate_json(json.dumps(metadata.model_dump(mode="json") | changes), strict=True)


def by_hand(bundle: Bundle, generation: Generation, familiarity: float) -> float:
    told = generation.statistics
    assert told is not None
    statistics = np.array([[told.logprob_sum, told.logprob_mean, told.entropy_mean, told.margin_min]])
    maps = {position: each[None] for position, each in generation.signatures.items()}
    features = feature_matrix(bundle.metadata.features, maps, statistics)[0].tolist()
    (kind,) = bundle.traffic.kinds
    both = [*features, *normalised(features, kind.moments["features"])]
    trees = float(np.asarray(lightgbm.Booster(model_str=bundle.trees).predict(np.array([both])))[0])
    (logprob_sum,) = normalised([told.logprob_sum], kind.moments["logprob_sum"])
    weight = math.sqrt(familiarity)
    log_odds = weight * math.log(trees / (1 - trees)) + (1 - weight) * (-1.5 - 1.25 * logprob_sum)
    raw = 1 / (1 + math.exp(-log_odds))
    beta = bundle.metadata.calibration
    return 1 / (1 + math.exp(-(beta.a * math.log(raw) - beta.b * math.log(1 - raw) + beta.c)))


@pytest.mark.parametrize("which", ["blending", "of_maps_only"])
def test_a_score_is_blended_by_familiarity_and_then_calibrated(
    which: str, request: pytest.FixtureRequest, bundle: Bundle, generation: Row
) -> None:
    blending: Bundle = request.getfixturevalue(which)
    scorer, without = LightGBMScorer(blending), LightGBMScorer(bundle)
    reference, found = bundle.calibration_set.typicality, set()
    for row in range(40):
        score = scorer.score(generation(row))
        assert score.typicality == without.score(generation(row)).typicality
        (kind,) = blending.traffic.kinds
        columns = normalised(typicality_columns(generation(row), 4), kind.moments["typicality"])
        familiarity = share_as_far(columns, reference, DISTANCES)
        assert score.uncertainty == pytest.approx(by_hand(blending, generation(row), familiarity), rel=1e-12)
        found.add(familiarity)
    assert len(found) >= 3, "too few for the weight to show"


def test_recalibration_leaves_the_blending_unchanged(blending: Bundle, generation: Row) -> None:
    """Typicality is another once other rows are calibrated on; what the trees have seen isn't."""
    known = blending.calibration_set
    moved = known.typicality.model_copy(update={"distances": tuple(place / 1000 for place in range(50))})
    other = LightGBMScorer(
        dataclasses.replace(blending, calibration_set=known.model_copy(update={"typicality": moved}))
    )
    for row in range(10):
        before, after = LightGBMScorer(blending).score(generation(row)), other.score(generation(row))
        assert before.typicality != after.typicality
        assert before.uncertainty == after.uncertainty


def test_a_less_probable_answer_is_less_certain(of_maps_only: Bundle, generation: Row) -> None:
    scorer, row = LightGBMScorer(of_maps_only), generation(0)
    assert row.statistics is not None
    scores = [
        scorer.score(dataclasses.replace(row, statistics=dataclasses.replace(row.statistics, logprob_sum=nats)))
        for nats in (0.0, -0.5, -2.0, -8.0)
    ]
    assert np.diff([score.uncertainty for score in scores]).min() > 0


def test_answer_without_statistics_is_refused_even_by_trees_over_maps(of_maps_only: Bundle, generation: Row) -> None:
    row = dataclasses.replace(generation(0), statistics=None)
    with pytest.raises(ScoringError, match="no output statistics"):
        LightGBMScorer(of_maps_only).score(row)
    metadata = of_maps_only.metadata.model_copy(update={"blending": None})
    unblended = LightGBMScorer(dataclasses.replace(of_maps_only, metadata=metadata))
    assert unblended.score(row) == unblended.score(generation(0))


def test_log_probability_is_found_in_any_statistics_column(maps: Maps) -> None:
    statistics = np.arange(600, dtype=np.float64).reshape(300, 2)
    blocks = columns_of(["statistics"], "answer", maps, statistics, ["entropy_mean", "logprob_sum"]).blocks
    assert blocks["logprob_sum"].tolist() == statistics[:, [1]].tolist()
    assert "logprob_sum" not in columns_of(["statistics"], "answer", maps, statistics, ["entropy_mean"]).blocks
    assert "logprob_sum" not in columns_of(["prompt"], "prompt", maps, statistics, ["logprob_sum"]).blocks


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "prompt", "features": ["prompt"]},
        {"statistics": ["logprob_mean", "entropy_mean", "margin_min"]},
    ],
    ids=["before the answer", "without logprob_sum"],
)
def test_a_bundle_that_could_not_know_the_log_probability_is_refused(
    changes: dict[str, Any], metadata: BundleMetadata
) -> None:
    assert altered(metadata, **changes).blending is None
    with pytest.raises(ValidationError, match="'blending' needs the output statistic 'logprob_sum'"):
        altered(metadata, blending=BLENDING, **changes)


@pytest.mark.parametrize(
    "damaged",
    [
        {"sequence_probability": {"slope": -0.1, "intercept": 0.0}},
        {"sequence_probability": {"slope": 0.1}},
        {"sequence_probability": {"slope": "1", "intercept": 0.0}},
        *({"distances": distances} for distances in ([], [2.0, 1.0], [1.0, None], [1.0, "2"], None)),
        {"weight": 1.0},
    ],
)
def test_a_damaged_blending_is_refused(damaged: dict[str, Any], metadata: BundleMetadata) -> None:
    altered(metadata, blending=BLENDING)
    with pytest.raises(ValidationError, match="blending"):
        altered(metadata, blending=BLENDING | damaged)


def test_blending_round_trips_to_the_last_digit(
    metadata: BundleMetadata,
    trees: str,
    calibration_set: CalibrationSet,
    traffic: TrafficProfile,
    generation: Row,
    tmp_path: Path,
) -> None:
    sequence = SequenceProbability(slope=0.1 + 0.2, intercept=-1 / 3)
    known = Blending(sequence_probability=sequence, distances=(0.1 + 0.2, 1 / 3))
    blending = metadata.model_copy(update={"blending": known})
    write_bundle(blending, trees, calibration_set, traffic, tmp_path / "blending")
    back = read_bundle(str(tmp_path / "blending"))
    assert back.metadata == blending
    assert back.metadata.blending == known
    unwritten = Bundle(metadata=blending, trees=trees, calibration_set=calibration_set, traffic=traffic, digest="")
    assert LightGBMScorer(back).score(generation(5)) == LightGBMScorer(unwritten).score(generation(5))


def test_bundle_without_blending_scores_by_its_trees_alone(folder: Path, bundle: Bundle, generation: Row) -> None:
    envelope = json.loads((folder / "bundle.json").read_text())
    assert envelope.pop("blending") is None
    (folder / "bundle.json").write_text(json.dumps(envelope))
    older = read_bundle(str(folder))
    assert older.metadata.blending is None
    for row in range(5):
        trees_alone = by_hand(bundle, generation(row), familiarity=1.0)
        assert LightGBMScorer(older).score(generation(row)).uncertainty == pytest.approx(trees_alone, rel=1e-12)
