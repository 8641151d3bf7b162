import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from ilis_guard.errors import AttemptsError, BundleMismatchError, FitError
from ilis_guard.lab import calibration_rows
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.calibration_rows import CalibrationRows, Circumstances, read_calibration_rows
from ilis_guard.lab.fit import fit
from ilis_guard.lab.recalibrate import recalibrate
from ilis_guard.scoring import Bundle, LightGBMScorer, certify, read_bundle
from ilis_guard.scoring.calibration import BetaCalibration, calibration_terms
from ilis_guard.types import Message, Wording
from tests.lab.test_fit import generation, made

pytestmark = pytest.mark.usefixtures("fitted_model", "few_resamples")

MAX_ERROR, CONFIDENCE = 0.2, 0.9
AUDITED = 0.1
DRAWS = 40


def circumstances(bundle: Bundle) -> Circumstances:
    """Those of the bundle's own rows."""
    known = bundle.metadata
    return Circumstances(
        fingerprint=known.fingerprint,
        prompt=known.prompt,
        max_new_tokens=known.max_new_tokens,
        wordings=known.wordings,
    )


VERDICT: dict[str, Any] = {
    "id": "ticket-0",
    "dataset": "review",
    "messages": [{"role": "user", "content": "Who?"}],
    "labels": {},
    "text": "Me",
    "correct": True,
    "tier": "small",
    "uncertainty": 0.5,
    "typicality": None,
    "rank": None,
    "departures": [],
    "tokens": 1,
    "finish_reason": "stop",
    "probability": 0.5,
    "redacted": False,
}
"""As ``queue export`` writes it."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("recalibrate") / "bundle"
    fit(made(600, signal=0.6), folder)
    return read_bundle(str(folder))


class FakeTable:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def answers(self, _group_by: str | None = None) -> Answers:
        return self._answers


class Traffic:
    """Requests of which all is known. Every clinical one is escalated, though the model is good at them."""

    def __init__(self, bundle: Bundle, seed: int, count: int) -> None:
        random = np.random.default_rng(seed)
        self.raw = random.random(count)
        self.uncertainty = bundle.metadata.calibration.apply(self.raw)
        clinical = random.random(count) < 0.3
        self.wrong = random.random(count) < np.where(clinical, 0.1 * self.raw, 0.15 + 0.6 * self.raw)
        answered = ~clinical & (self.raw < 0.6)
        self.probability = np.where(answered, AUDITED, 1.0)
        self.labelled = random.random(count) < self.probability

    def rows(self) -> list[dict[str, Any]]:
        """As ``queue export`` has them."""
        return [
            {
                **VERDICT,
                "id": f"ticket-{place}",
                "messages": [{"role": "user", "content": f"Who is number {place}?"}],
                "text": f"Somebody {place}",
                "correct": not self.wrong[place],
                "uncertainty": float(self.uncertainty[place]),
                "probability": float(self.probability[place]),
                "verdict": "reject" if self.wrong[place] else "accept",
            }
            for place in np.flatnonzero(self.labelled)
        ]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def taken_at_face_value(labelled: CalibrationRows) -> CalibrationRows:
    return replace(labelled, probability=np.ones(len(labelled.wrong)))


def test_the_promise_holds_on_synthetic_traffic_only_with_weights(bundle: Bundle, tmp_path: Path) -> None:
    everything = Traffic(bundle, seed=1000, count=400_000)
    order = np.argsort(everything.raw)
    raws, errors = everything.raw[order], np.cumsum(everything.wrong[order])
    broken = {"ours": 0, "naive": 0}
    certified = 0
    off: dict[str, list[float]] = {"ours": [], "naive": []}
    for seed in range(DRAWS):
        path = written(tmp_path / "rows.jsonl", Traffic(bundle, seed, 8000).rows())
        labelled = read_calibration_rows(bundle, path)
        for name, rows in (("ours", labelled), ("naive", taken_at_face_value(labelled))):
            recalibrate(bundle, rows, tmp_path / name, accept=True)
            made_anew = read_bundle(str(tmp_path / name))
            known = made_anew.calibration_set
            threshold = certify(known.uncertainty, known.wrong, max_error=MAX_ERROR, confidence=CONFIDENCE).threshold
            calibration = made_anew.metadata.calibration
            off[name].append(float(calibration.apply(everything.raw).mean() - everything.wrong.mean()))
            if threshold is not None:
                answered = int((calibration.apply(raws) <= threshold).sum())
                broken[name] += errors[answered - 1] / answered > MAX_ERROR
                certified += name == "ours"
    most = binom.ppf(1 - 1e-4, DRAWS, 1 - CONFIDENCE)
    assert broken["ours"] <= most
    assert broken["naive"] > most
    assert certified > DRAWS / 4
    assert abs(np.mean(off["ours"])) < 0.01
    assert abs(np.mean(off["naive"])) > 0.03


def test_the_new_map_is_a_weighted_logistic_regression(bundle: Bundle, tmp_path: Path) -> None:
    traffic = Traffic(bundle, 0, 3000)
    labelled = read_calibration_rows(bundle, written(tmp_path / "rows.jsonl", traffic.rows()))
    # Near 0 and 1 an uncertainty's digits tell the raw score less sharply.
    np.testing.assert_allclose(labelled.raw, traffic.raw[traffic.labelled], atol=1e-3)
    calibration = recalibrate(bundle, labelled, tmp_path / "new").calibration
    rows = np.column_stack(calibration_terms(labelled.raw))
    weights = 1 / labelled.probability
    kept = [place for place, slope in enumerate((calibration.a, calibration.b)) if slope]
    model = LogisticRegression(C=1e6).fit(rows[:, kept], labelled.wrong, sample_weight=weights / weights.mean())
    np.testing.assert_allclose(calibration.apply(labelled.raw), model.predict_proba(rows[:, kept])[:, 1], atol=1e-6)


def test_the_calibration_set_is_a_random_sample_of_the_requests(bundle: Bundle, tmp_path: Path) -> None:
    """All audits, and of the escalated ones as many as there would be had they been audited."""
    traffic = Traffic(bundle, 0, 8000)
    labelled = read_calibration_rows(bundle, written(tmp_path / "rows.jsonl", traffic.rows()))
    metadata = recalibrate(bundle, labelled, tmp_path / "new")
    known = read_bundle(str(tmp_path / "new")).calibration_set
    audits = traffic.labelled & (traffic.probability < 1)
    kept = set(known.uncertainty)
    assert set(metadata.calibration.apply(labelled.raw[labelled.probability < 1]).tolist()) <= kept
    escalated = int((traffic.probability == 1).sum())
    assert abs(len(kept) - audits.sum() - AUDITED * escalated) < 4 * np.sqrt(AUDITED * escalated)


def test_recalibration_keeps_trees_metrics_and_typicality_reference(bundle: Bundle, tmp_path: Path) -> None:
    labelled = read_calibration_rows(bundle, written(tmp_path / "rows.jsonl", Traffic(bundle, 0, 3000).rows()))
    recalibrate(bundle, labelled, tmp_path / "new")
    new = read_bundle(str(tmp_path / "new"))
    assert new.trees == bundle.trees
    assert new.calibration_set.typicality == bundle.calibration_set.typicality
    assert new.metadata.held_out == bundle.metadata.held_out
    assert new.metadata.recalibrated is not None
    assert new.metadata.recalibrated.model_dump(exclude={"auroc", "brier_skill"}) == {
        "bundle": bundle.digest,
        "rows": len(labelled.wrong),
        "groups": len(labelled.wrong),
        "group_by": None,
        "fitted_to": 0,
        "corrected_by": 0,
        "kept": len(new.calibration_set.wrong),
        "least_probability": AUDITED,
    }
    assert bundle.metadata.recalibrated is None
    assert new.digest != bundle.digest
    LightGBMScorer(new).score(generation(made(5), 0))


def test_a_harvest_recalibrates_scores_and_typicality(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = made(200, seed=5, signal=0.6, share=0.3)
    rows = replace(rows, ids=np.array([f"new-{row}" for row in range(200)], dtype=object))
    monkeypatch.setattr(calibration_rows, "read_attempts", lambda _path: FakeTable(rows))
    recalibrate(bundle, read_calibration_rows(bundle, tmp_path / "rows.parquet"), tmp_path / "new")
    new = read_bundle(str(tmp_path / "new"))
    scorer = LightGBMScorer(new)
    scores = [scorer.score(generation(rows, place)) for place in range(200)]
    assert tuple(score.uncertainty for score in scores) == new.calibration_set.uncertainty
    # The rows are the calibration rows: their shifts are 2/201, 3/201, ... 1.
    assert sorted(score.typicality for score in scores) == [(place + 2) / 201 for place in range(200)]
    assert np.mean(new.calibration_set.uncertainty) == pytest.approx(0.3, abs=0.01)


def test_a_harvest_of_another_model_is_refused(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made(200)
    other = rows.manifest.model_copy(update={"fingerprint": replace(rows.manifest.tapped(), precision="full")})
    monkeypatch.setattr(calibration_rows, "read_attempts", lambda _path: FakeTable(replace(rows, manifest=other)))
    with pytest.raises(BundleMismatchError, match="precision"):
        read_calibration_rows(bundle, tmp_path / "rows.parquet")
    with pytest.raises(FitError, match="chooses among the rows of an export"):
        read_calibration_rows(bundle, tmp_path / "rows.parquet", tier="small")


def test_a_harvest_in_another_wording_calibrates_for_that_one(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = made(200, seed=5, signal=0.6, share=0.3)
    rows = replace(rows, ids=np.array([f"new-{row}" for row in range(200)], dtype=object))
    fingerprint = replace(rows.manifest.tapped(), prompt="0123456789abcdef", decoding='{"top_k": 3}')
    other = rows.manifest.model_copy(
        update={"fingerprint": fingerprint, "prompt": "{question}!", "max_new_tokens": 999}
    )
    monkeypatch.setattr(calibration_rows, "read_attempts", lambda _path: FakeTable(replace(rows, manifest=other)))
    new = recalibrate(bundle, read_calibration_rows(bundle, tmp_path / "rows.parquet"), tmp_path / "new")
    assert new.wordings == (Wording(prompt="0123456789abcdef"),)
    assert (new.fingerprint, new.prompt, new.max_new_tokens) == (fingerprint, "{question}!", other.max_new_tokens)
    known = bundle.metadata
    assert new.departures(fingerprint, other.max_new_tokens) == ()
    assert new.departures(known.fingerprint, known.max_new_tokens) == ("decoding", "length")
    assert new.wording_departures(known.wordings[0]) == ("wording",)


def test_verdicts_after_a_system_message_calibrate_for_it_too(bundle: Bundle, tmp_path: Path) -> None:
    system = {"role": "system", "content": "You are a helpful assistant."}
    rows = [
        row | {"messages": [system, *row["messages"]], "departures": ["system"]} if place % 2 else row
        for place, row in enumerate(Traffic(bundle, 0, 3000).rows())
    ]
    new = recalibrate(bundle, read_calibration_rows(bundle, written(tmp_path / "r.jsonl", rows)), tmp_path / "new")
    prompt = bundle.metadata.wordings[0].prompt
    turns = [Message(role="system", content=system["content"]), Message(role="user", content="Who?")]
    helpful = Wording.of(turns, prompt=prompt)
    assert set(new.wordings) == {Wording(prompt=prompt), helpful}
    assert new.fingerprint == bundle.metadata.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"departures": ["wording"]}, r"otherwise than the bundle's own rows \(wording\)"),
        ({"departures": ["length", "system"]}, r"otherwise than the bundle's own rows \(length\)"),
        ({"departures": ["history"], "redacted": True}, "1 redacted rows with another system message"),
    ],
)
def test_verdicts_whose_wording_nobody_knows_are_refused(
    changes: dict[str, Any], message: str, bundle: Bundle, tmp_path: Path
) -> None:
    rows = Traffic(bundle, 0, 1000).rows()
    path = written(tmp_path / "rows.jsonl", [rows[0] | changes, *rows[1:]])
    with pytest.raises(FitError, match=message):
        read_calibration_rows(bundle, path)


def test_one_tiers_rows_are_chosen_and_two_tiers_are_not_mixed(bundle: Bundle, tmp_path: Path) -> None:
    rows = Traffic(bundle, 0, 1000).rows()
    mixed = [row | {"tier": "large" if place % 2 else "small"} for place, row in enumerate(rows)]
    path = written(tmp_path / "rows.jsonl", mixed)
    with pytest.raises(FitError, match=r"tiers \['large', 'small'\]"):
        read_calibration_rows(bundle, path)
    assert len(read_calibration_rows(bundle, path, tier="large").wrong) == len(rows) // 2
    with pytest.raises(FitError, match="no row with an uncertainty of the tier 'none'"):
        read_calibration_rows(bundle, path, tier="none")


def test_rows_without_a_score_are_left_out(bundle: Bundle, tmp_path: Path) -> None:
    rows = Traffic(bundle, 0, 1000).rows()
    unscored = {**rows[0], "id": "another", "uncertainty": None, "tier": None}
    assert len(read_calibration_rows(bundle, written(tmp_path / "r.jsonl", [*rows, unscored])).wrong) == len(rows)


def test_escalated_rows_alone_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    rows = [row for row in Traffic(bundle, 0, 1000).rows() if row["probability"] == 1]
    with pytest.raises(FitError, match="of those that were answered it says nothing"):
        read_calibration_rows(bundle, written(tmp_path / "rows.jsonl", rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability": 0.0}, r"rows\.jsonl:2: .*queue export.*: probability: .*greater than 0"),
        ({"probability": 1.5}, r"rows\.jsonl:2: .*: probability"),
        ({"probability": float("nan")}, r"rows\.jsonl:2: "),
        ({"uncertainty": 1.5}, r"rows\.jsonl:2: .*: uncertainty"),
        ({"correct": "yes"}, r"rows\.jsonl:2: .*: correct"),
        ({"id": "ticket-0"}, "1 rows are there more than once, such as 'ticket-0'"),
    ],
)
def test_a_row_that_is_none_is_refused_with_its_place(
    changes: dict[str, Any], message: str, bundle: Bundle, tmp_path: Path
) -> None:
    path = written(tmp_path / "rows.jsonl", [VERDICT, {**VERDICT, "id": "ticket-1"} | changes])
    with pytest.raises((AttemptsError, FitError), match=message):
        read_calibration_rows(bundle, path)


def test_an_export_without_probabilities_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{name: VERDICT[name] for name in VERDICT if name != "probability"}])
    with pytest.raises(AttemptsError, match=r"rows\.jsonl:1: .*: probability: Field required"):
        read_calibration_rows(bundle, path)


def test_too_few_of_a_kind_are_refused_and_nothing_is_written(bundle: Bundle, tmp_path: Path) -> None:
    rows = CalibrationRows(
        ids=[f"q{row}" for row in range(100)],
        raw=np.linspace(0.1, 0.9, 100),
        wrong=np.arange(100) >= 81,
        probability=np.full(100, 0.5),
        distances=None,
        groups=np.arange(100),
        circumstances=circumstances(bundle),
        traffic=bundle.traffic,
        adapted=False,
        columns=None,
        labels=[{}] * 100,
    )
    with pytest.raises(FitError, match="81 are right and 19 wrong; recalibrating needs at least 20"):
        recalibrate(bundle, rows, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("calibration", [(1, 1, 0), (0.5, 2, -1), (0, 3, 0.5), (2, 0, 1)])
def test_a_calibration_map_is_undone(calibration: tuple[float, float, float]) -> None:
    a, b, c = calibration
    known, raw = BetaCalibration(a=a, b=b, c=c), np.linspace(0.001, 0.999, 200)
    np.testing.assert_allclose(known.invert(known.apply(raw)), raw, atol=1e-9)
