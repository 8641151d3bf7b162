import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ilis_guard.scoring import read_bundle

BUNDLE = "packaged:smollm2-135m-instruct-full"


def verdicts(path: Path, *, audited: float) -> Path:
    """Every other request was escalated; of the others, this share was audited."""
    random = np.random.default_rng(0)
    rows = [
        {
            "id": f"t{place}",
            "dataset": "review",
            "messages": [{"role": "user", "content": f"What is {place}?"}],
            "labels": {},
            "text": "!",
            "tier": "small",
            "uncertainty": uncertainty,
            "typicality": 0.5,
            "rank": None,
            "departures": [],
            "tokens": 1,
            "finish_reason": "stop",
            "redacted": False,
            "correct": bool(random.random() > uncertainty / 2),
            "probability": 1.0 if place % 2 else audited,
        }
        for place, uncertainty in enumerate(random.random(400).tolist())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_recalibrating_writes_a_bundle_that_says_so(run: Callable[..., Any], tmp_path: Path) -> None:
    rows = verdicts(tmp_path / "verdicts.jsonl", audited=0.5)
    done = run("recalibrate", BUNDLE, str(rows), "--to", str(tmp_path / "ours"), "--tier", "small")
    assert done.status == 0, done.err
    new = read_bundle(str(tmp_path / "ours"))
    assert new.metadata.recalibrated is not None
    assert new.metadata.recalibrated.bundle == read_bundle(BUNDLE).digest
    kept = len(new.calibration_set.wrong)
    assert 250 < kept < 350
    assert f"calibrated on 400 rows; {kept} of them are a random sample" in done.flat
    # Half as often wrong as the old map says.
    assert np.mean(new.calibration_set.uncertainty) < 0.35


def test_rows_of_which_none_was_chosen_by_chance_are_one_message(run: Callable[..., Any], tmp_path: Path) -> None:
    rows = verdicts(tmp_path / "verdicts.jsonl", audited=1.0)
    done = run("recalibrate", BUNDLE, str(rows), "--to", str(tmp_path / "ours"))
    assert (done.status, done.out) == (2, "")
    assert "audit" in done.err
    assert not (tmp_path / "ours").exists()
