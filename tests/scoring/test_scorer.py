import dataclasses
import math
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import pytest

from ilis_guard.errors import BundleError, BundleMismatchError, ScoringError
from ilis_guard.scoring import Bundle, LightGBMScorer
from ilis_guard.scoring.columns import columns_of
from ilis_guard.scoring.features import FeatureGroup, Maps
from ilis_guard.types import POSITIONS, STATISTICS, Fingerprint, Generation, Position, Statistics
from tests.scoring.by_hand import normalised, pairs, share_as_far, traffic_of, trees_alone, typicality_columns

LAYERS = 4
Row = Callable[[int], Generation]


@pytest.fixture
def scorer(bundle: Bundle) -> LightGBMScorer:
    return LightGBMScorer(bundle)


@pytest.fixture
def scorer_of(bundle: Bundle, maps: Maps, statistics: np.ndarray) -> Callable[[FeatureGroup], LightGBMScorer]:
    """A scorer that looks at one group of features only."""

    def scorer(group: FeatureGroup) -> LightGBMScorer:
        random = np.random.default_rng(0)
        columns = columns_of([group], "answer", maps, statistics, STATISTICS)
        width = columns.blocks["features"].shape[1]
        booster = lightgbm.train(
            {"objective": "binary", "num_threads": 1, "verbosity": -1},
            lightgbm.Dataset(random.random((60, 2 * width)), label=random.random(60) < 0.5),
            num_boost_round=3,
        )
        metadata = bundle.metadata.model_copy(update={"features": (group,), "blending": trees_alone(width)})
        return LightGBMScorer(
            dataclasses.replace(bundle, metadata=metadata, trees=booster.model_to_string(), traffic=traffic_of(columns))
        )

    return scorer


def altered(generation: Generation, position: Position, cell: float) -> Generation:
    signature = generation.signatures[position].copy()
    signature[1, 2] = cell
    return dataclasses.replace(generation, signatures={**generation.signatures, position: signature})


def without(generation: Generation, position: Position) -> Generation:
    signatures = {name: each for name, each in generation.signatures.items() if name != position}
    return dataclasses.replace(generation, signatures=signatures)


def by_hand(bundle: Bundle, generation: Generation) -> tuple[float, float]:
    prompt, last, mean = (generation.signatures[position] for position in POSITIONS)
    features = [float(each[pair] - prompt[pair]) for each in (mean, last) for pair in pairs(LAYERS)]
    statistics = generation.statistics
    assert statistics is not None
    features += [statistics.logprob_sum, statistics.logprob_mean, statistics.entropy_mean, statistics.margin_min]
    (kind,) = bundle.traffic.kinds
    features += normalised(features, kind.moments["features"])
    raw = float(np.asarray(lightgbm.Booster(model_str=bundle.trees).predict(np.array([features])))[0])
    beta = bundle.metadata.calibration
    uncertainty = 1 / (1 + math.exp(-(beta.a * math.log(raw) - beta.b * math.log(1 - raw) + beta.c)))

    reference = bundle.calibration_set.typicality
    columns = normalised(typicality_columns(generation, LAYERS), kind.moments["typicality"])
    return uncertainty, share_as_far(columns, reference, reference.distances)


def test_a_score_equals_features_trees_calibration_and_typicality_by_hand(
    scorer: LightGBMScorer, bundle: Bundle, generation: Row
) -> None:
    for row in range(30):
        score = scorer.score(generation(row))
        uncertainty, typicality = by_hand(bundle, generation(row))
        assert score.uncertainty == pytest.approx(uncertainty, rel=1e-12)
        assert score.typicality == typicality


def test_wrong_answers_are_more_uncertain(scorer: LightGBMScorer, generation: Row, wrong: np.ndarray) -> None:
    uncertainty = np.array([scorer.score(generation(row)).uncertainty for row in range(100)])
    assert uncertainty[wrong[:100]].min() > 0.5 > uncertainty[~wrong[:100]].max()


def test_a_generation_unlike_the_reference_has_the_least_typicality(scorer: LightGBMScorer, generation: Row) -> None:
    usual = generation(0)
    far = {position: each * 1000 for position, each in usual.signatures.items()}
    assert scorer.score(dataclasses.replace(usual, signatures=far)).typicality == 1 / 7
    assert max(scorer.score(generation(row)).typicality for row in range(20)) > 1 / 7


CHANGES: dict[str, Any] = {
    "weights": "ef" * 16,
    "precision": "full",
    "dtype": "bfloat16",
    "layers": 5,
    "hidden": 65,
    "site": "residual",
    "taps": "model.layers.*.feed_forward",
    "decoding": '{"do_sample": true}',
    "temperature": 0.3,  # the bundle's 0.1 + 0.2 is another number
    "prompt": "01" * 16,
}


def test_a_model_with_the_bundles_fingerprint_fits(scorer: LightGBMScorer, bundle: Bundle) -> None:
    scorer.check_fits(dataclasses.replace(bundle.metadata.fingerprint))


SOFT = {"decoding": ("decoding",), "prompt": ("wording",)}


@pytest.mark.parametrize("field", sorted(CHANGES.keys() - SOFT.keys()))
def test_other_model_is_refused_with_fingerprints_and_differing_field(
    field: str, scorer: LightGBMScorer, bundle: Bundle
) -> None:
    fitted = bundle.metadata.fingerprint
    running = dataclasses.replace(fitted, **{field: CHANGES[field]})
    with pytest.raises(BundleMismatchError) as caught:
        scorer.check_fits(running)
    message = str(caught.value)
    assert f"running model: {field} differ." in message
    assert str(fitted) in message
    assert str(running) in message
    assert f"{field} {CHANGES[field]}" in message


@pytest.mark.parametrize("field", sorted(SOFT))
def test_another_wording_or_decoding_departs_and_is_not_refused(
    field: str, scorer: LightGBMScorer, bundle: Bundle
) -> None:
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(Fingerprint)}
    fitted = bundle.metadata.fingerprint
    running = dataclasses.replace(fitted, **{field: CHANGES[field]})
    scorer.check_fits(running)
    assert fitted.departures(running) == SOFT[field]
    assert fitted.hard_differences(running) == ()


def test_all_fields_that_differ_are_listed(scorer: LightGBMScorer, bundle: Bundle) -> None:
    fitted: Any = bundle.metadata.fingerprint
    running = dataclasses.replace(fitted, layers=5, hidden=65)
    with pytest.raises(BundleMismatchError, match="running model: layers, hidden differ"):
        scorer.check_fits(running)


@pytest.mark.parametrize("position", POSITIONS)
def test_missing_signature_is_named_with_the_generation(
    position: Position, scorer: LightGBMScorer, generation: Row
) -> None:
    with pytest.raises(ScoringError, match=rf"no signature '{position}' \(2 answer tokens, finish reason 'stop'\)"):
        scorer.score(without(generation(0), position))


def test_missing_output_statistics_are_named(scorer: LightGBMScorer, generation: Row) -> None:
    with pytest.raises(ScoringError, match=r"no output statistics \(0 answer tokens, finish reason 'length'\)"):
        scorer.score(dataclasses.replace(generation(0), statistics=None, tokens=0, finish_reason="length"))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("cell", [float("nan"), float("inf"), float("-inf"), -0.5])
def test_map_with_an_invalid_divergence_is_never_scored(
    position: Position, cell: float, scorer: LightGBMScorer, generation: Row
) -> None:
    with pytest.raises(ScoringError, match=f"signature '{position}' holds a value that isn't a finite divergence"):
        scorer.score(altered(generation(0), position, cell))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Statistics)])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_statistics_that_are_not_finite_are_never_scored(
    field: str, value: float, scorer: LightGBMScorer, generation: Row
) -> None:
    row = generation(0)
    assert row.statistics is not None
    changed: dict[str, Any] = {field: value}
    with pytest.raises(ScoringError, match="statistics aren't all finite"):
        scorer.score(dataclasses.replace(row, statistics=dataclasses.replace(row.statistics, **changed)))


def test_a_map_that_only_the_typicality_looks_at_is_checked_too(
    scorer_of: Callable[[FeatureGroup], LightGBMScorer], generation: Row
) -> None:
    scorer = scorer_of("statistics")
    assert 0 < scorer.score(generation(0)).uncertainty < 1
    with pytest.raises(ScoringError, match="signature 'mean'"):
        scorer.score(altered(generation(0), "mean", float("nan")))


def test_a_map_that_nothing_looks_at_may_be_missing(
    scorer_of: Callable[[FeatureGroup], LightGBMScorer], generation: Row
) -> None:
    row = generation(0)
    assert scorer_of("mean-prompt").score(without(row, "last")) == scorer_of("mean-prompt").score(row)
    with pytest.raises(ScoringError, match="no signature 'last'"):
        scorer_of("last-prompt").score(without(row, "last"))


def test_a_map_of_other_layers_is_never_scored(scorer: LightGBMScorer, generation: Row) -> None:
    row = generation(0)
    larger = {**row.signatures, "last": np.zeros((5, 5), dtype=np.float32)}
    with pytest.raises(ScoringError, match=r"'last' has the shape \(5, 5\); the bundle was fitted to 4 layers"):
        scorer.score(dataclasses.replace(row, signatures=larger))


def test_a_bundle_whose_typicality_reference_is_of_other_maps_is_refused(bundle: Bundle) -> None:
    typicality = bundle.calibration_set.typicality.model_copy(update={"mean": (0.0,), "precision": ((1.0,),)})
    other = bundle.calibration_set.model_copy(update={"typicality": typicality})
    with pytest.raises(
        BundleError, match=r"bundle [0-9a-f]{16} looks at .*'typicality': 6.* reference in calibration.json 1:"
    ):
        LightGBMScorer(dataclasses.replace(bundle, calibration_set=other))
