"""Bundles of models that can't be tapped: the statistics of their answers are all that is looked at."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ilis_guard.errors import BundleError, BundleMismatchError, FitError, ScoringError
from ilis_guard.lab import calibration_rows, metrics, recalibrate
from ilis_guard.lab.fit import fit
from ilis_guard.lab.typicality import typicality_reference
from ilis_guard.scoring import Bundle, BundleMetadata, LightGBMScorer, certify, read_bundle, write_bundle
from ilis_guard.scoring.typicality import TypicalityEstimator
from ilis_guard.types import Generation, RemoteFingerprint, Statistics
from tests.lab.test_recalibrate import FakeTable
from tests.provider import towns_harvest

pytestmark = pytest.mark.usefixtures("fitted_model")

FINGERPRINT = RemoteFingerprint(chat_model="vendor:Chat", model="town-clerk", arguments={"logprobs": True})
ROWS = towns_harvest(FINGERPRINT, 600)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "towns"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "RESAMPLES", 60)
        fit(ROWS, folder)
    return read_bundle(str(folder))


def said(share: float, *, entropy: float = math.nan, margin: float | None = None) -> Generation:
    """An answer of two tokens, the first of such a probability."""
    total = math.log(share) + math.log(0.99)
    likely = max(share - (1 - share) / 2, (1 - share) / 2 - share) if margin is None else margin
    statistics = Statistics(logprob_sum=total, logprob_mean=total / 2, entropy_mean=entropy, margin_min=likely)
    return Generation(text="T1", tokens=2, prompt_tokens=9, finish_reason="stop", seconds=0.1, statistics=statistics)


def test_metadata_of_a_remote_bundle_names_features_and_metrics(bundle: Bundle) -> None:
    metadata = bundle.metadata
    assert metadata.features == ("statistics",)
    assert metadata.statistics == ("logprob_sum", "logprob_mean", "margin_min")
    assert (metadata.fingerprint, metadata.max_new_tokens) == (FINGERPRINT, None)
    splits = {"train": 300, "validation": 60, "calibration": 120, "test": 120}
    assert metadata.rows == splits | {"unanswered": 0, "rare_wordings": 0}
    assert metadata.held_out.auroc.low > 0.6
    assert metadata.held_out.rows == metadata.baseline.rows == 120
    assert bundle.calibration_set.typical is None


def test_uncertainty_matches_the_share_of_wrong_answers(bundle: Bundle) -> None:
    scorer = LightGBMScorer(bundle)
    assert scorer.score(said(0.97)).uncertainty < 0.25
    assert scorer.score(said(0.1)).uncertainty > 0.75
    fresh = towns_harvest(FINGERPRINT, 1400)
    uncertainty = np.array(
        [
            scorer.score(said(math.exp(total) / 0.99, margin=margin)).uncertainty
            for total, _, margin in fresh.statistics[600:].tolist()
        ]
    )
    for low, high in ((0, 0.35), (0.35, 0.65), (0.65, 1)):
        inside = (uncertainty >= low) & (uncertainty <= high)
        assert inside.sum() > 100
        assert fresh.wrong[600:][inside].mean() == pytest.approx(uncertainty[inside].mean(), abs=0.12)


def test_unknown_statistics_play_no_part(bundle: Bundle) -> None:
    scorer = LightGBMScorer(bundle)
    assert scorer.score(said(0.6)) == scorer.score(said(0.6, entropy=2.0))


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (replace(said(0.9), statistics=None), r"no output statistics \(2 answer tokens.*reply came without logprobs"),
        (said(0.9, margin=math.nan), r"aren't all finite: \{'logprob_sum': .*'margin_min': nan\}"),
    ],
)
def test_a_reply_that_does_not_tell_them_has_no_score(generation: Generation, message: str, bundle: Bundle) -> None:
    with pytest.raises(ScoringError, match=message):
        LightGBMScorer(bundle).score(generation)


def test_another_model_or_argument_is_refused_by_its_name(bundle: Bundle) -> None:
    scorer = LightGBMScorer(bundle)
    scorer.check_fits(replace(FINGERPRINT))
    with pytest.raises(BundleMismatchError, match=r"running model: model, arguments\.logprobs differ"):
        scorer.check_fits(replace(FINGERPRINT, model="mayor", arguments={}))


def test_typicality_is_uniform_on_exchangeable_answers_only() -> None:
    rows = towns_harvest(FINGERPRINT, 4000)
    place = np.random.default_rng(0).permutation(4000)
    columns = rows.typicality_columns("answer")
    detector = TypicalityEstimator(typicality_reference(columns, place < 500, (place >= 500) & (place < 2500)))
    typicality = detector.typicality(columns[place >= 2500])
    assert stats.kstest(typicality, "uniform").pvalue > 0.05
    longer = replace(rows, statistics=rows.statistics * [20, 1, 1])
    assert np.median(detector.typicality(longer.typicality_columns("answer"))) < 0.02


def test_the_calibration_rows_carry_a_certificate(bundle: Bundle) -> None:
    known = bundle.calibration_set
    found = certify(np.array(known.uncertainty), np.array(known.wrong), max_error=0.35, confidence=0.9)
    assert found.threshold is not None
    assert 0 < found.coverage < 1


def test_there_is_nothing_to_fit_to_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="'town-clerk' can't be tapped, so nothing is known of it before"):
        fit(ROWS, tmp_path / "bundle", stage="prompt")
    assert list(tmp_path.iterdir()) == []


def test_new_rows_recalibrate_a_remote_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = towns_harvest(FINGERPRINT, 1100).take(np.arange(600, 1100))
    monkeypatch.setattr(calibration_rows, "read_attempts", lambda _path: FakeTable(fresh))
    labelled = calibration_rows.read_calibration_rows(bundle, tmp_path / "rows.parquet")
    recalibrate.recalibrate(bundle, labelled, tmp_path / "ours")
    again = read_bundle(str(tmp_path / "ours"))
    assert len(again.calibration_set.typicality.distances) == 500
    LightGBMScorer(again).score(said(0.5))

    less = replace(fresh, statistics=fresh.statistics[:, :2], known=("logprob_sum", "logprob_mean"))
    monkeypatch.setattr(calibration_rows, "read_attempts", lambda _path: FakeTable(less))
    with pytest.raises(FitError, match=r"looks at the output statistics .*'margin_min'.* and of the rows"):
        calibration_rows.read_calibration_rows(bundle, tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ("statistics", "mean")}, "can't be tapped there is the feature 'statistics' and no other"),
        ({"statistics": ("logprob_sum", "logprob_sum")}, "stands twice"),
        ({"statistics": ()}, "at least 1"),
        ({"statistics": ("surprise",)}, "Input should be 'logprob_sum'"),
        ({"max_new_tokens": 8}, "max_new_tokens belongs to a model that can be tapped"),
        ({"stage": "prompt"}, "at stage 'prompt'"),
    ],
    ids=str,
)
def test_metadata_that_cannot_be_is_refused(changes: dict[str, object], message: str, bundle: Bundle) -> None:
    with pytest.raises(ValueError, match=message):
        BundleMetadata.model_validate({**dict(bundle.metadata), **changes})


def test_a_typicality_reference_of_another_width_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    known = bundle.calibration_set.model_dump()
    known["typicality"] |= {"mean": [0.0] * 4, "precision": np.eye(4).tolist()}
    narrower = type(bundle.calibration_set).model_validate(known)
    write_bundle(bundle.metadata, bundle.trees, narrower, bundle.traffic, tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"'typicality': 3, .* reference in calibration\.json 4"):
        LightGBMScorer(read_bundle(str(tmp_path / "bundle")))
