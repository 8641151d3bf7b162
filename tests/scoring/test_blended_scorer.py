"""Bundles whose trees are blended with a linear model and with improbability: written, read and used for scoring."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from ilis_guard.errors import BundleError, ScoringError
from ilis_guard.scoring import Bundle, BundleMetadata, LightGBMScorer, read_bundle, write_bundle
from ilis_guard.scoring.blended_trees import Blending
from ilis_guard.scoring.bundle import CalibrationSet
from ilis_guard.scoring.columns import columns_of
from ilis_guard.scoring.features import Maps, feature_matrix
from ilis_guard.scoring.profile import AdaptedProfile
from ilis_guard.scoring.traffic import TrafficProfile
from ilis_guard.types import STATISTICS, Generation, Statistic
from tests.scoring.by_hand import normalised, traffic_of

WIDTH = 28
LINEAR = tuple(np.random.default_rng(5).normal(scale=0.2, size=WIDTH).round(3).tolist())
Row = Callable[[int], Generation]


@pytest.fixture
def blending(bundle: Bundle) -> Bundle:
    metadata = bundle.metadata.model_copy(
        update={"blending": Blending(trees_spread=1.75, linear=LINEAR, linear_weight=0.5)}
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
    of_maps = Blending(trees_spread=1.75, linear=LINEAR[:12], linear_weight=0.5)
    metadata = blending.metadata.model_copy(update={"features": ("mean-prompt",), "blending": of_maps})
    return dataclasses.replace(blending, metadata=metadata, trees=booster.model_to_string(), traffic=traffic)


def adapted(bundle: Bundle) -> Bundle:
    """Its own traffic is another than its trees were fitted to."""
    blending = bundle.metadata.blending.model_copy(update={"adapted": True})
    return dataclasses.replace(bundle, metadata=bundle.metadata.model_copy(update={"blending": blending}))


def by_hand(bundle: Bundle, generation: Generation) -> float:
    told = generation.statistics
    assert told is not None
    statistics = np.array([[told.logprob_sum, told.logprob_mean, told.entropy_mean, told.margin_min]])
    maps = {position: each[None] for position, each in generation.signatures.items()}
    features = feature_matrix(bundle.metadata.features, maps, statistics)[0].tolist()
    (kind,) = bundle.traffic.kinds
    in_units = normalised(features, kind.moments["features"])
    trees = float(np.asarray(lightgbm.Booster(model_str=bundle.trees).predict(np.array([[*features, *in_units]])))[0])
    logprobs = normalised([told.logprob_sum, told.logprob_mean], kind.moments["logprobs"])
    known = bundle.metadata.blending
    linear = sum(one * value for one, value in zip(known.linear, in_units, strict=True))
    learned = math.log(trees / (1 - trees)) / known.trees_spread
    log_odds = (learned + linear - sum(logprobs)) / 3 if known.adapted else learned + known.linear_weight * linear
    raw = 1 / (1 + math.exp(-log_odds))
    beta = bundle.metadata.calibration
    return 1 / (1 + math.exp(-(beta.a * math.log(raw) - beta.b * math.log(1 - raw) + beta.c)))


@pytest.mark.parametrize("which", ["blending", "of_maps_only"])
def test_a_score_is_blended_and_then_calibrated(
    which: str, request: pytest.FixtureRequest, bundle: Bundle, generation: Row
) -> None:
    blending: Bundle = request.getfixturevalue(which)
    scorer, without = LightGBMScorer(blending), LightGBMScorer(bundle)
    for row in range(40):
        score = scorer.score(generation(row))
        assert score.typicality == without.score(generation(row)).typicality
        assert score.uncertainty == pytest.approx(by_hand(blending, generation(row)), rel=1e-9)


@pytest.mark.parametrize("which", ["blending", "of_maps_only"])
def test_on_other_traffic_how_improbable_an_answer_is_counts_too(
    which: str, request: pytest.FixtureRequest, generation: Row
) -> None:
    other = adapted(request.getfixturevalue(which))
    for row in range(40):
        score = LightGBMScorer(other).score(generation(row))
        assert score.uncertainty == pytest.approx(by_hand(other, generation(row)), rel=1e-9)


def test_in_a_profiles_units_a_bundle_scores_like_one_of_other_traffic(blending: Bundle, generation: Row) -> None:
    profile = AdaptedProfile(
        bundle=blending.digest,
        model=blending.metadata.model,
        wordings=blending.metadata.wordings,
        traffic=blending.traffic,
        uncertainties=tuple(share / 20 for share in range(20)),
    )
    scorer, other = LightGBMScorer(blending, profile), adapted(blending)
    for row in range(10):
        score = scorer.score(generation(row))
        assert score.uncertainty == pytest.approx(by_hand(other, generation(row)), rel=1e-9)
        assert score.departures == ("traffic",)


def test_on_other_traffic_a_less_probable_answer_is_less_certain(of_maps_only: Bundle, generation: Row) -> None:
    scorer, row = LightGBMScorer(adapted(of_maps_only)), generation(0)
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


def test_log_probabilities_are_found_in_any_statistics_columns(maps: Maps) -> None:
    statistics = np.arange(900, dtype=np.float64).reshape(300, 3)
    known: list[Statistic] = ["logprob_mean", "entropy_mean", "logprob_sum"]
    blocks = columns_of(["statistics"], "answer", maps, statistics, known).blocks
    assert blocks["logprobs"].tolist() == statistics[:, [2, 0]].tolist()
    assert "logprobs" not in columns_of(["prompt"], "prompt", maps, statistics, known).blocks
    assert "logprobs" not in columns_of(["statistics"], "answer", maps, statistics[:, :2], known[:2]).blocks


@pytest.mark.parametrize("linear", [(), LINEAR[:-1], (*LINEAR, 0.0)], ids=["none", "one less", "one more"])
def test_a_bundle_whose_linear_model_has_another_width_is_refused(linear: tuple[float, ...], blending: Bundle) -> None:
    other = blending.metadata.blending.model_copy(update={"linear": linear})
    metadata = blending.metadata.model_copy(update={"blending": other})
    with pytest.raises(BundleError, match=f"blending of the bundle .* has {len(linear)} coefficients.* 28 features"):
        LightGBMScorer(dataclasses.replace(blending, metadata=metadata))


def test_blending_round_trips_to_the_last_digit(
    metadata: BundleMetadata,
    trees: str,
    calibration_set: CalibrationSet,
    traffic: TrafficProfile,
    generation: Row,
    tmp_path: Path,
) -> None:
    known = Blending(trees_spread=0.1 + 0.2, linear=(1 / 3,) * WIDTH, linear_weight=1 / 3, adapted=True)
    blending = metadata.model_copy(update={"blending": known})
    write_bundle(blending, trees, calibration_set, traffic, tmp_path / "blending")
    back = read_bundle(str(tmp_path / "blending"))
    assert back.metadata == blending
    assert back.metadata.blending == known
    unwritten = Bundle(metadata=blending, trees=trees, calibration_set=calibration_set, traffic=traffic, digest="")
    assert LightGBMScorer(back).score(generation(5)) == LightGBMScorer(unwritten).score(generation(5))


def test_a_bundle_without_blending_is_refused(folder: Path) -> None:
    envelope = json.loads((folder / "bundle.json").read_text())
    del envelope["blending"]
    (folder / "bundle.json").write_text(json.dumps(envelope))
    with pytest.raises(BundleError, match="blending"):
        read_bundle(str(folder))
