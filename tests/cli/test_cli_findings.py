"""What a person is told of a score that is no better than chance, and of rows that repeat others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilis_guard.lab import metrics
from ilis_guard.lab.attempts import Answers
from ilis_guard.scoring import read_bundle, write_bundle
from tests.cli.test_cli_recalibrate import BUNDLE
from tests.guard.test_doubted_scores import GUARDED, doubted_bundle
from tests.lab.synthetic import synthetic_answers, write_harvest

pytestmark = pytest.mark.usefixtures("fitted_model")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 60)


def twice(rows: Answers) -> Answers:
    again = rows.take(np.tile(np.arange(len(rows)), 2))
    again.ids[:] = [f"row-{number}" for number in range(len(again))]
    return again


def test_a_score_by_chance_is_refused_and_written_where_it_is_accepted(run: Callable[..., Any], tmp_path: Path) -> None:
    rows = synthetic_answers({"a": 300}, signal=0.0, seed=6)
    noise = np.random.default_rng(1).normal(size=rows.statistics.shape)
    rows.statistics[:] = noise
    harvest = str(write_harvest(rows, tmp_path / "rows.parquet"))
    refused = run("fit", harvest, "--to", str(tmp_path / "bundle"))
    assert refused.status == 2
    assert "no bundle was written" in refused.err
    assert "0.5 is chance; harvest more questions, or other ones" in " ".join(refused.err.split())
    assert "--accept" in refused.err
    assert not (tmp_path / "bundle").exists()
    accepted = run("fit", harvest, "--to", str(tmp_path / "bundle"), "--accept")
    assert accepted.status == 0, accepted.err
    assert "accepted: the score isn't shown to rank wrong answers above right ones" in accepted.flat
    assert "by_chance" in {finding.kind for finding in read_bundle(str(tmp_path / "bundle")).metadata.findings}


def test_a_fit_says_how_many_rows_repeat_others(run: Callable[..., Any], tmp_path: Path) -> None:
    rows = twice(synthetic_answers({"a": 300}, signal=1.5))
    harvest = str(write_harvest(rows, tmp_path / "rows.parquet"))
    fitted = run("fit", harvest, "--to", str(tmp_path / "bundle"))
    assert fitted.status == 0, fitted.err
    assert "rows: 600 in 300 groups; 300 repeat others, or have the same owner, and don't count" in fitted.flat
    assert "120 held-out rows, 60 of them independent" in fitted.flat
    assert "warning: 60 independent rows are held out, and at least 100 are needed" in fitted.flat
    lacking = run("fit", harvest, "--to", str(tmp_path / "other"), "--group-by", "document")
    assert lacking.status == 2
    assert "there is no column 'document' of texts to group by" in " ".join(lacking.err.split())


def test_recalibrating_on_useless_verdicts_is_refused_and_says_who_repeats_whom(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    rows = [
        {
            "id": f"t{place}",
            "dataset": "review",
            "messages": [{"role": "user", "content": f"What is {place % 200}?"}],
            "labels": {"user": f"u{place % 100}"},
            "text": "!",
            "tier": "small",
            "uncertainty": float(random.random()),
            "typicality": 0.5,
            "rank": None,
            "departures": [],
            "tokens": 1,
            "finish_reason": "stop",
            "redacted": False,
            "correct": bool(random.random() < 0.5),
            "probability": 0.5,
        }
        for place in range(400)
    ]
    path = tmp_path / "verdicts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    to = str(tmp_path / "ours")
    refused = run("recalibrate", BUNDLE, str(path), "--to", to)
    assert refused.status == 2
    assert "AUROC" in refused.err or "wrong way round" in refused.err
    assert not (tmp_path / "ours").exists()
    for row in rows:
        row["correct"] = bool(random.random() > row["uncertainty"])  # type: ignore[operator]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("recalibrate", BUNDLE, str(path), "--to", to)
    assert done.status == 0, done.err
    assert "rows: 400 in 200 groups; 200 repeat others" in done.flat
    by_user = run("recalibrate", BUNDLE, str(path), "--to", to, "--group-by", "labels.user", "--accept")
    assert by_user.status == 0, by_user.err
    assert "rows: 400 in 100 groups" in by_user.flat
    assert run("recalibrate", BUNDLE, str(path), "--to", to, "--group-by", "labels.team").status == 2


def test_policy_check_repeats_findings_and_idle_thresholds(run: Callable[..., Any], tmp_path: Path) -> None:
    doubted = doubted_bundle()
    write_bundle(doubted.metadata, doubted.trees, doubted.calibration_set, doubted.traffic, tmp_path / "doubted")
    (tmp_path / "policy.yaml").write_text(GUARDED)
    (tmp_path / "guard.yaml").write_text(
        "version: 1\npolicy: ./policy.yaml\n"
        "tiers: [{name: small, model: packaged:smollm2-135m-instruct, bundle: ./doubted}]\n"
    )
    policy, config = str(tmp_path / "policy.yaml"), str(tmp_path / "guard.yaml")
    result = run("policy", "check", policy, "-c", config)
    assert result.status == 0, result.err
    assert "its AUROC is 0.520 (0.450 to 0.600), and 0.5 is chance" in result.flat
    assert f"{policy}:4:21: rule 'odd': the typicality's threshold 0.01 never acts on the tier 'small'" in result.flat
    assert run("policy", "check", policy, "-c", config, "--strict").status == 1
