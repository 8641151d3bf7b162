"""Which rows of unlabelled traffic to label next, and what becomes of their chances."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ilis_guard import Guard, Policy, Tier
from ilis_guard.errors import AttemptsError, FitError, ProfileError, QuestionError
from ilis_guard.lab.adapt import Traffic, harvested_traffic, logged_traffic
from ilis_guard.lab.attempts import AttemptTable, read_attempts, write_attempts
from ilis_guard.lab.calibration_rows import read_calibration_rows
from ilis_guard.lab.choose_rows import choose_rows, write_chosen
from ilis_guard.lab.fit import fit
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.questions import read_questions
from ilis_guard.scoring import Bundle, LightGBMScorer, read_bundle
from ilis_guard.testing import FakeModel
from ilis_guard.types import Generation
from tests.lab.synthetic import synthetic_answers, write_harvest
from tests.lab.test_adapt import answered, traffic_of
from tests.lab.test_harvest import FakeTapped

pytestmark = pytest.mark.usefixtures("fitted_model")

ROWS = synthetic_answers({"a": 200, "b": 200})
OWN = synthetic_answers({"c": 120, "d": 80}, seed=4, unlike=["d"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("choose") / "bundle"
    fit(ROWS, path, features=("mean-prompt-summary", "statistics"))
    return read_bundle(str(path))


def test_chosen_rows_have_one_chance_and_more_of_them_begin_with_the_fewer(bundle: Bundle) -> None:
    chosen = choose_rows(bundle, traffic_of(OWN), 40)
    assert (chosen.scored, chosen.probability, len(set(chosen.places))) == (200, 0.2, 40)
    assert choose_rows(bundle, traffic_of(OWN), 15).places == chosen.places[:15]


def test_more_rows_than_there_are_or_none_are_refused(bundle: Bundle) -> None:
    blank = Generation(text=" ", tokens=1, prompt_tokens=1, finish_reason="stop", seconds=0)
    traffic = Traffic(answers=[*traffic_of(OWN).answers, ({}, blank)])
    with pytest.raises(FitError, match=r"201 rows to label were asked for, and 200 of 201 answers can be scored"):
        choose_rows(bundle, traffic, 201)
    for count in (0, -3):
        with pytest.raises(FitError, match=rf"counted from 1, got {count}"):
            choose_rows(bundle, traffic, count)
    with pytest.raises(FitError, match="0 of 1 answers can be scored"):
        choose_rows(bundle, Traffic(answers=[({}, blank)]), 1)


def decisions(bundle: Bundle, path: Path) -> list[dict[str, Any]]:
    """A guard's log of OWN, with a request that nothing answered before it."""
    logged = []
    model = FakeModel(answered(OWN)[0], fingerprint=bundle.metadata.fingerprint)
    tier = Tier(name="small", model=model, scorer=LightGBMScorer(bundle))
    policy = Policy.parse("version: 1\nname: p\nrules:\n- {id: all, do: abstain}\n")
    with Guard(tiers=[tier], policy=policy, review=None) as guard:
        known = guard.decide("Who?", labels={"topic": "ä"}).to_dict()
    for number, answer in enumerate(answered(OWN)):
        (attempt,) = known["attempts"]
        maps = {name: signature.tolist() for name, signature in answer.signatures.items()}
        statistics = answer.statistics.to_dict() if answer.statistics else None
        made = attempt | {"signatures": maps, "statistics": statistics}
        logged.append(known | {"id": f"d{number}", "attempts": [made]})
    unscored = known | {"id": "none", "attempts": [known["attempts"][0] | {"uncertainty": None}]}
    logged.insert(0, unscored)
    path.write_text("".join(json.dumps(line) + "\n\n" for line in logged))
    return logged


def test_logged_decisions_are_written_as_they_are_with_their_chance(bundle: Bundle, tmp_path: Path) -> None:
    log, to = tmp_path / "log.jsonl", tmp_path / "deep" / "label.jsonl"
    logged = decisions(bundle, log)
    chosen = choose_rows(bundle, logged_traffic(bundle, log), 25)
    assert 0 not in chosen.places
    write_chosen(chosen, log, to)
    lines = [json.loads(line) for line in to.read_text().splitlines()]
    assert lines == [logged[place] | {"probability": 0.125} for place in chosen.places]
    assert "ä" in to.read_text()
    with pytest.raises(FitError, match="its other lines would be lost"):
        write_chosen(chosen, log, log)
    other = dataclasses.replace(bundle, digest="0" * 16)
    with pytest.raises(ProfileError, match=r"none of 201 decisions has an answer that the bundle '0{16}' scored"):
        logged_traffic(other, log)


def test_rows_of_a_harvest_are_named(bundle: Bundle, tmp_path: Path) -> None:
    rows, to = write_harvest(OWN, tmp_path / "rows.parquet"), tmp_path / "label.jsonl"
    chosen = choose_rows(bundle, harvested_traffic(bundle, rows), 10)
    write_chosen(chosen, rows, to)
    lines = [json.loads(line) for line in to.read_text().splitlines()]
    wanted = [(str(OWN.ids[place]), str(OWN.datasets[place])) for place in chosen.places]
    assert [(line["id"], line["dataset"], line["probability"]) for line in lines] == [(*one, 0.05) for one in wanted]


def test_a_choice_from_chosen_rows_multiplies_their_chances(bundle: Bundle, tmp_path: Path) -> None:
    asked, to = tmp_path / "asked.jsonl", tmp_path / "label.jsonl"
    lines = [{"question": f"What is {row}?", "probability": 0.5} for row in range(len(OWN))]
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = choose_rows(bundle, traffic_of(OWN), 50)
    write_chosen(chosen, asked, to)
    assert {json.loads(line)["probability"] for line in to.read_text().splitlines()} == {0.125}
    for wrong in (0, 1.5, "0.5", True, None, float("nan")):
        asked.write_text("".join(json.dumps(line) + "\n" for line in [lines[0] | {"probability": wrong}, *lines[1:]]))
        with pytest.raises(AttemptsError, match=r"asked\.jsonl:1: `probability` is the chance"):
            write_chosen(chosen, asked, to)


def test_harvested_rows_keep_the_chance_with_which_they_were_chosen(tmp_path: Path) -> None:
    path, to = tmp_path / "q.jsonl", tmp_path / "rows.parquet"
    asked = [{"id": str(row), "question": f"What is {row}?", "answers": ["w1"], "probability": 0.125} for row in (1, 2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in asked))
    harvest(FakeTapped(), read_questions(path), to, name="stub")
    answers = read_attempts(to).answers()
    assert answers.probability is not None
    assert answers.probability.tolist() == [0.125, 0.125]
    mixed = [*asked, {"id": "3", "question": "And?", "answers": ["x"]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in mixed))
    with pytest.raises(QuestionError, match="1 of 3 questions have no `probability`, such as '3'"):
        harvest(FakeTapped(), read_questions(path), tmp_path / "mixed.parquet", name="stub")
    path.write_text(json.dumps(asked[0] | {"probability": 0}))
    with pytest.raises(QuestionError, match=r"q\.jsonl:1: 'probability' is wrong, got 0"):
        read_questions(path)


def test_labelled_rows_weigh_as_many_as_they_stand_for(bundle: Bundle, tmp_path: Path) -> None:
    table = read_attempts(write_harvest(OWN, tmp_path / "rows.parquet"))
    assert (read_calibration_rows(bundle, tmp_path / "rows.parquet").probability == 1).all()
    chances = [0.1 if row < 100 else 0.4 for row in range(200)]
    place = table.table.schema.get_field_index("probability")
    weighed = table.table.set_column(place, table.table.schema.field(place), [chances])
    write_attempts(tmp_path / "rows.parquet", AttemptTable(manifest=table.manifest, table=weighed))
    rows = read_calibration_rows(bundle, tmp_path / "rows.parquet")
    assert rows.probability.tolist() == chances
    assert rows.weights[:100] == pytest.approx(4 * rows.weights[100])
