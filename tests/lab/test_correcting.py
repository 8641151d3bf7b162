"""Corrections: what few labels of another traffic teach a bundle, and what no guarantee may rest on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.metrics import roc_auc_score

from ilis_guard import Guard, Policy, Tier
from ilis_guard.errors import AttemptsError, FitError, UnacceptedFindingsError
from ilis_guard.lab.adapt import Traffic, adapt
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.calibration_rows import CalibrationRows, read_calibration_rows
from ilis_guard.lab.correcting import FOLDS, CorrectionRows
from ilis_guard.lab.fit import fit
from ilis_guard.lab.recalibrate import correct
from ilis_guard.scoring import Bundle, LightGBMScorer, read_bundle
from ilis_guard.scoring.correction import Correction
from ilis_guard.testing import FakeModel
from ilis_guard.types import STATISTICS
from tests.lab.synthetic import synthetic_answers, write_harvest
from tests.lab.test_fit import generation

pytestmark = pytest.mark.usefixtures("fitted_model", "few_resamples")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Fitted to answers that are wrong where their maps are large."""
    folder = tmp_path_factory.mktemp("prior") / "bundle"
    fit(
        synthetic_answers({"a": 250, "b": 250}, signal=0.8),
        folder,
        features=("mean-prompt", "last-prompt", "statistics"),
    )
    return read_bundle(str(folder))


def traffic(count: int, *, seed: int = 7) -> Answers:
    """Answers to other questions, wrong where their maps are small."""
    return synthetic_answers({"c": count}, seed=seed, signal=-0.8)


def labelled(bundle: Bundle, count: int, tmp_path: Path, **options: Any) -> CalibrationRows:
    return read_calibration_rows(bundle, write_harvest(traffic(count), tmp_path / "rows.parquet"), **options)


def learned(bundle: Bundle, rows: CalibrationRows, folder: Path, **options: Any) -> Bundle:
    correct(bundle, rows, folder, **options)
    return read_bundle(str(folder))


def uncertainties(bundle: Bundle, rows: Answers) -> list[float]:
    scorer = LightGBMScorer(bundle)
    return [scorer.score(generation(rows, row)).uncertainty for row in range(len(rows))]


def test_few_labels_turn_a_misleading_score_round(bundle: Bundle, tmp_path: Path) -> None:
    unseen = traffic(300, seed=8)
    before = roc_auc_score(unseen.wrong, uncertainties(bundle, unseen))
    after = [
        roc_auc_score(unseen.wrong, uncertainties(learned(bundle, rows, tmp_path / str(len(rows))), unseen))
        for rows in (labelled(bundle, count, tmp_path) for count in (25, 200))
    ]
    assert before < 0.5
    assert min(after) > 0.8


def test_a_correction_is_the_linear_model_that_it_says(bundle: Bundle, tmp_path: Path) -> None:
    corrected = learned(bundle, labelled(bundle, 60, tmp_path), tmp_path / "new")
    correction = corrected.metadata.correction
    assert correction is not None
    plain = dataclasses.replace(corrected, metadata=corrected.metadata.model_copy(update={"correction": None}))
    (kind,) = corrected.traffic.kinds
    moments = kind.moments["features"]
    rows, before, after = traffic(20, seed=9), LightGBMScorer(plain), LightGBMScorer(corrected)
    for row in range(20):
        made = generation(rows, row)
        earlier = corrected.metadata.calibration.invert(np.array([before.score(made).uncertainty]))[0]
        features = after.columns(made).blocks["features"][0]
        units = [
            np.clip((value - mean) / spread, -20, 20)
            for value, mean, spread in zip(features, moments.mean, moments.spread, strict=True)
        ]
        odds = correction.intercept + correction.score * np.log(earlier / (1 - earlier))
        odds += float(np.dot(correction.features, units))
        expected = corrected.metadata.calibration.apply(np.array([1 / (1 + np.exp(-odds))]))[0]
        assert after.score(made).uncertainty == pytest.approx(expected, abs=1e-6)


coefficients = st.floats(-3, 3)
corrections = st.builds(
    Correction,
    intercept=coefficients,
    score=st.floats(0.1, 2),
    features=st.tuples(coefficients, coefficients, coefficients),
)


@given(first=corrections, second=corrections, seed=st.integers(0, 99))
def test_two_corrections_are_one(first: Correction, second: Correction, seed: int) -> None:
    random = np.random.default_rng(seed)
    raw, features = random.uniform(0.2, 0.8, 5), random.normal(size=(5, 3)) / 4
    twice = second.apply(first.apply(raw, features), features)
    np.testing.assert_allclose(second.after(first).apply(raw, features), twice, atol=1e-4)
    assert second.after(None) == second


def test_each_row_calibrates_by_a_correction_that_it_had_no_part_in() -> None:
    """Noise alone: corrections rank the rows that taught them, and no others."""
    known, held_out = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        noise, wrong = random.normal(size=(100, 40)), random.random(100) < 0.5
        rows = CorrectionRows(
            np.full(100, 0.5), noise, [(40, True)], wrong=wrong, weights=np.ones(100), groups=np.arange(100)
        )
        correction, scores = rows.fit()
        known.append(roc_auc_score(wrong, correction.apply(np.full(100, 0.5), noise)))
        held_out.append(roc_auc_score(wrong, scores))
    assert np.mean(known) > 0.75
    assert np.mean(held_out) == pytest.approx(0.5, abs=0.06)


def test_rows_of_a_group_are_in_one_fold() -> None:
    random = np.random.default_rng(0)
    groups, wrong = np.repeat(np.arange(20), 5), np.repeat(random.random(20) < 0.5, 5)
    # Each group has a column of its own: only a correction that knew the group could use it.
    own = np.eye(20)[groups]
    rows = CorrectionRows(np.full(100, 0.5), own, [(20, True)], wrong=wrong, weights=np.ones(100), groups=groups)
    _, held_out = rows.fit()
    assert len(np.unique(held_out.round(12))) <= FOLDS


def test_kept_rows_teach_nothing_and_carry_the_certificate(bundle: Bundle, tmp_path: Path) -> None:
    rows = labelled(bundle, 200, tmp_path)
    new = learned(bundle, rows, tmp_path / "new")
    known = new.metadata.recalibrated
    assert known is not None
    assert (known.groups, known.corrected_by, known.kept) == (200, 120, 80)
    assert len(new.calibration_set.wrong) == 80
    splits = new.calibration_set.splits
    assert splits is not None
    kept = np.array([digest in splits["calibration"] for digest in _digests(rows)])
    assert kept.sum() == 80
    # Other labels of some kept rows, and other answers, change neither the correction nor the units.
    flipped = kept & (np.arange(len(kept)) % 3 == 0)
    columns = rows.columns
    assert columns is not None
    moved = {name: np.where(kept[:, None], 3 * values, values) for name, values in columns.blocks.items()}
    other = dataclasses.replace(
        rows, wrong=np.where(flipped, ~rows.wrong, rows.wrong), columns=dataclasses.replace(columns, blocks=moved)
    )
    again = learned(bundle, other, tmp_path / "other", accept=True)
    assert again.metadata.correction == new.metadata.correction
    assert again.traffic == new.traffic
    certificate = new.certify(max_error=0.3)
    assert certificate.rows == 80
    assert certificate.threshold is not None


def _digests(rows: CalibrationRows) -> list[str]:
    from ilis_guard.scoring.bundle import row_digest

    return [row_digest(each) for each in rows.ids]


POLICY = """
version: 1
name: certified-or-a-person
guarantee: {max_error: 0.3}
rules:
  - {id: sure, when: certified, do: answer}
  - {id: no, do: abstain}
"""


def test_no_guarantee_rests_on_rows_that_all_taught(bundle: Bundle, tmp_path: Path) -> None:
    new = learned(bundle, labelled(bundle, 99, tmp_path), tmp_path / "new")
    known = new.metadata.recalibrated
    assert known is not None
    assert (known.corrected_by, known.kept) == (99, 0)
    certificate = new.certify(max_error=0.3)
    assert (certificate.threshold, certificate.coverage) == (None, 0)
    assert "no guarantee can rest on these" in certificate.reason
    rows = traffic(40, seed=9)
    surest = int(np.argmin(uncertainties(new, rows)))
    model = FakeModel(generation(rows, surest), fingerprint=new.metadata.fingerprint)
    tier = Tier(name="small", model=model, scorer=LightGBMScorer(new))
    with Guard(tiers=[tier], policy=Policy.parse(POLICY), review=None) as guard:
        assert guard.decide("Who?").rule == "no"
    assert (
        learned(bundle, labelled(bundle, 99, tmp_path), tmp_path / "kept", kept=0.5).certify(max_error=0.3).rows == 50
    )


def test_a_certified_share_of_errors_holds_in_new_traffic(bundle: Bundle, tmp_path: Path) -> None:
    """Teams label 100 rows each, and count errors in new answers: at most 5 % of them may see a promise of 95 % broken.

    Of 24, four or more do in 3 % of all trials if each does with 5 %.
    """
    unseen = traffic(400, seed=1000)
    broken = certified = 0
    for team in range(24):
        rows = traffic(100, seed=2000 + team)
        path = write_harvest(rows, tmp_path / "rows.parquet")
        new = learned(bundle, read_calibration_rows(bundle, path), tmp_path / "team", accept=True)
        threshold = new.certify(max_error=0.25).threshold
        if threshold is not None:
            certified += 1
            answered = np.array(uncertainties_at_once(new, unseen)) <= threshold
            broken += bool(unseen.wrong[answered].mean() > 0.25)
    assert certified > 8
    assert broken < 4


def uncertainties_at_once(bundle: Bundle, rows: Answers) -> np.ndarray:
    from ilis_guard.lab.traffic import columns_of_answers
    from ilis_guard.scoring.scorer import blended_trees
    from ilis_guard.scoring.traffic import Normaliser

    columns, normaliser = columns_of_answers(rows, bundle.metadata.features, "answer"), Normaliser(bundle.traffic)
    normal = normaliser.normalise(columns, normaliser.nearest_kinds(columns.prompt))
    return bundle.metadata.calibration.apply(blended_trees(bundle).raw_scores(normal))


@pytest.mark.parametrize(
    ("count", "rate", "message"),
    [
        (24, 0.5, "learns from 25 independent labels or more, got 24"),
        (60, 0.0, "learning needs at least 5 of each"),
    ],
)
def test_too_few_labels_are_refused(count: int, rate: float, message: str, bundle: Bundle, tmp_path: Path) -> None:
    rows = labelled(bundle, count, tmp_path)
    one_class = dataclasses.replace(rows, wrong=rows.wrong & (rate > 0))
    with pytest.raises(FitError, match=message):
        correct(bundle, one_class, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_labels_that_tell_nothing_make_no_bundle(bundle: Bundle, tmp_path: Path) -> None:
    rows = labelled(bundle, 90, tmp_path)
    shuffled = dataclasses.replace(rows, wrong=np.random.default_rng(3).permutation(rows.wrong))
    with pytest.raises((UnacceptedFindingsError, FitError)):
        correct(bundle, shuffled, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def exported(bundle: Bundle, rows: Answers, path: Path, *, signatures: bool = True) -> Path:
    """Verdicts on the rows, as `queue export --signatures` writes them."""
    scorer = LightGBMScorer(bundle)
    lines = []
    for row, name in enumerate(rows.ids.tolist()):
        score = scorer.score(generation(rows, row))
        lines.append(
            {
                "id": f"ticket-{row}",
                "dataset": "queue",
                "messages": [{"role": "user", "content": f"What about {name}?"}],
                "labels": {},
                "text": f"answer {name}",
                "correct": not rows.wrong[row],
                "tier": "small",
                "uncertainty": score.uncertainty,
                "typicality": score.typicality,
                "rank": None,
                "departures": [],
                "tokens": 3,
                "finish_reason": "stop",
                "probability": 0.5,
                "redacted": False,
                **dict(zip(STATISTICS, rows.statistics[row].tolist(), strict=True)),
                **(
                    {position: maps[row].ravel().tolist() for position, maps in rows.signatures.items()}
                    if signatures
                    else {}
                ),
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_verdicts_with_their_signatures_teach_as_a_harvest_does(bundle: Bundle, tmp_path: Path) -> None:
    rows = traffic(60)
    harvested = learned(bundle, labelled(bundle, 60, tmp_path), tmp_path / "harvest")
    verdicts = read_calibration_rows(bundle, exported(bundle, rows, tmp_path / "verdicts.jsonl"), tier="small")
    judged = learned(bundle, verdicts, tmp_path / "verdicts")
    assert judged.traffic == harvested.traffic
    assert judged.metadata.correction == harvested.metadata.correction
    assert judged.calibration_set.typicality == harvested.calibration_set.typicality
    assert judged.calibration_set.uncertainty == pytest.approx(harvested.calibration_set.uncertainty, abs=1e-9)


def test_verdicts_without_signatures_only_calibrate(bundle: Bundle, tmp_path: Path) -> None:
    path = exported(bundle, traffic(60), tmp_path / "verdicts.jsonl", signatures=False)
    with pytest.raises(FitError, match=r"no signatures to learn from: export them \(`queue export --signatures`\)"):
        correct(bundle, read_calibration_rows(bundle, path), tmp_path / "new")


def test_a_map_of_an_export_that_is_no_square_is_named(bundle: Bundle, tmp_path: Path) -> None:
    path = exported(bundle, traffic(30), tmp_path / "verdicts.jsonl")
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"mean": [1.0] * 24}), *others]))
    with pytest.raises(AttemptsError, match=r"verdicts\.jsonl:1: .*mean: .*24 numbers make no square"):
        read_calibration_rows(bundle, path)


def test_verdicts_that_another_profile_scored_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    answers = [dataclasses.replace(generation(traffic(60), row), text="an answer") for row in range(60)]
    profile = adapt(bundle, Traffic(answers=[({}, answer) for answer in answers]))
    path = exported(bundle, traffic(60), tmp_path / "verdicts.jsonl")
    with pytest.raises(FitError, match="weren't scored by this traffic profile, such as 'ticket-0' with the rank None"):
        read_calibration_rows(bundle, path, profile=profile)
    scorer = LightGBMScorer(bundle, profile)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for row, line in enumerate(lines):
        score = scorer.score(answers[row])
        line |= {"uncertainty": score.uncertainty, "rank": score.rank, "departures": ["traffic"]}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FitError, match="scored by a traffic profile, such as 'ticket-0': name the profile"):
        read_calibration_rows(bundle, path)
    rows = read_calibration_rows(bundle, path, profile=profile)
    assert rows.traffic == profile.traffic
    assert learned(bundle, rows, tmp_path / "new").traffic == profile.traffic
