"""From no label to a calibrated score, in a wording that the packaged bundle has no rows of, by real answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ilis_guard import Guard, Policy, Tier
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.questions import read_questions
from ilis_guard.lab.wordings import NamedWording, Turn
from ilis_guard.models.local import LocalModel
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.scoring.profile import read_profile
from ilis_guard.types import Message

BUNDLE = "packaged:smollm2-135m-instruct-full"
SYSTEM = "You are a geography teacher."
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Austria": "Vienna",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Iceland": "Reykjavik",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Greece": "Athens",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
    "Japan": "Tokyo",
    "China": "Beijing",
    "India": "Delhi",
    "Nepal": "Kathmandu",
    "Bhutan": "Thimphu",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Cuba": "Havana",
    "Brazil": "Brasilia",
    "Uruguay": "Montevideo",
    "Kenya": "Nairobi",
    "Ghana": "Accra",
    "Egypt": "Cairo",
    "Mali": "Bamako",
    "Chad": "N'Djamena",
    "Togo": "Lome",
    "Benin": "Porto-Novo",
    "Niger": "Niamey",
    "Gabon": "Libreville",
    "Malawi": "Lilongwe",
    "Laos": "Vientiane",
    "Oman": "Muscat",
    "Qatar": "Doha",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Fiji": "Suva",
    "Samoa": "Apia",
    "Tonga": "Nuku'alofa",
    "Palau": "Ngerulmud",
    "Nauru": "Yaren",
    "Latvia": "Riga",
    "Estonia": "Tallinn",
    "Lithuania": "Vilnius",
    "Moldova": "Chisinau",
    "Belarus": "Minsk",
}
POLICY = """
version: 1
name: calibrated-only
rules:
  - {id: failed, when: error != "", do: abstain}
  - {id: calibrated, when: calibrated && uncertainty < 0.999, do: answer}
  - {id: ranked, when: rank < 0.999, do: abstain}
  - {id: other, do: abstain}
"""
pytestmark = pytest.mark.usefixtures("real_model")


@pytest.fixture(scope="module")
def rows(smollm2_full: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty labelled answers after a system message."""
    folder = tmp_path_factory.mktemp("capitals")
    asked = (
        {"id": name, "question": f"What is the capital of {name}?", "answers": [capital], "kind": "open"}
        for name, capital in CAPITALS.items()
    )
    (folder / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    wording = NamedWording(name="teacher", messages=(Turn(role="system", content=SYSTEM),))
    questions = read_questions(folder / "questions.jsonl")
    harvest(smollm2_full, questions, folder / "rows.parquet", name="SmolLM2", wordings=(wording,))
    return folder / "rows.parquet"


def decided(model: LocalModel, scorer: LightGBMScorer, country: str) -> Any:
    tier = Tier(name="small", model=model, scorer=scorer)
    asked = [Message(role="system", content=SYSTEM), Message(role="user", content=f"What is the capital of {country}?")]
    with Guard(tiers=[tier], policy=Policy.parse(POLICY), review=None) as guard:
        return guard.decide(asked)


def test_without_a_label_it_ranks_and_with_fifty_it_is_calibrated(
    rows: Path, smollm2_full: LocalModel, run: Callable[..., Any], tmp_path: Path
) -> None:
    nothing = decided(smollm2_full, LightGBMScorer(read_bundle(BUNDLE)), "Canada")
    assert (nothing.rule, nothing.attempts[0].departures, nothing.attempts[0].rank) == ("other", ("system",), None)

    made = run("adapt", BUNDLE, "--from", str(rows), "--to", str(tmp_path / "profile.json"))
    assert made.status == 0, made.err
    profile = read_profile(tmp_path / "profile.json")
    ranked = decided(smollm2_full, LightGBMScorer(read_bundle(BUNDLE), profile), "Canada")
    assert (ranked.rule, ranked.attempts[0].departures) == ("ranked", ("system", "traffic"))
    assert 0 <= ranked.attempts[0].rank <= 1

    made = run("fit", str(rows), "--prior", BUNDLE, "--to", str(tmp_path / "ours"))
    assert made.status == 0, made.err
    ours = read_bundle(str(tmp_path / "ours"))
    learned = decided(smollm2_full, LightGBMScorer(ours), "Canada")
    assert (learned.rule, learned.attempts[0].departures, learned.attempts[0].calibrated) == ("calibrated", (), True)
    known = ours.metadata.recalibrated
    assert known is not None
    assert (known.groups, known.kept) == (50, 0)
    assert known.auroc.low > 0.5
    assert ours.certify(max_error=0.3).threshold is None


def test_a_corrected_score_ranks_the_answers_that_taught_it(
    rows: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    made = run("fit", str(rows), "--prior", BUNDLE, "--to", str(tmp_path / "ours"))
    assert made.status == 0, made.err
    scorer = LightGBMScorer(read_bundle(str(tmp_path / "ours")))
    table = read_attempts(rows)
    (wording,) = set(table.wordings())
    scores = [scorer.score(answer, wording) for _, answer in table.generations()]
    wrong = [row["wrong"] for row in table.rows()]
    assert roc_auc_score(wrong, [score.uncertainty for score in scores]) > 0.8
    assert np.mean([score.uncertainty for score in scores]) == pytest.approx(np.mean(wrong), abs=0.12)
    assert {score.departures for score in scores} == {()}


def test_options_that_go_with_a_prior_go_with_nothing_else(run: Callable[..., Any], tmp_path: Path) -> None:
    for options in (("--kept", "0.3"), ("--profile", "p.json"), ("--tier", "small")):
        refused = run("fit", "rows.parquet", "--to", str(tmp_path / "new"), *options)
        assert refused.status == 2
        assert "go with --prior BUNDLE" in " ".join(refused.err.split())
    for options in (("--stage", "prompt"), ("--features", "statistics"), ("--seed", "3")):
        refused = run("fit", "rows.parquet", "--prior", BUNDLE, "--to", str(tmp_path / "new"), *options)
        assert refused.status == 2
        assert "--prior goes with neither" in " ".join(refused.err.split())
    refused = run("fit", "a.parquet", "b.parquet", "--prior", BUNDLE, "--to", str(tmp_path / "new"))
    assert (refused.status, "one file of rows" in " ".join(refused.err.split())) == (2, True)
