"""Harvesting and plain generation are given the same work: what is timed, no test may say."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import harvest_throughput
from benchmarks.harvest_throughput import measure
from ilis_guard.lab.questions import Question
from ilis_guard.models.local import LocalModel
from ilis_guard.types import Message
from tests.lab.tiny_models import make

pytestmark = pytest.mark.usefixtures("real_model")

QUESTIONS = [
    Question(
        id=f"q{number}", question=" ".join(f"w{number * word % 53}" for word in range(2, 4 + number)), answers=("w1",)
    )
    for number in range(10)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"), "llama", seed=1)


def test_both_are_given_the_same_batches_and_answer_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel.load(str(folder), prompt="{question} w1", max_new_tokens=7)
    asked: dict[str, list[list[str]]] = {"generate_batch": [], "generate_bare_batch": []}
    for name, batches in asked.items():
        known = getattr(LocalModel, name)

        def watched(
            self: LocalModel,
            conversations: Sequence[Sequence[Message]],
            known: object = known,
            batches: list[list[str]] = batches,
        ) -> object:
            batches.append([turns[-1].content for turns in conversations])
            assert callable(known)
            return known(self, conversations)

        monkeypatch.setattr(LocalModel, name, watched)
    measured = measure(model, QUESTIONS, tier="tiny", set_="made", batch_size=4, rounds=3)
    assert asked["generate_batch"] == asked["generate_bare_batch"]
    assert [len(batch) for batch in asked["generate_batch"]] == [4, 4, 2] * 4
    assert measured.alike == len(measured.rows) == len(QUESTIONS)
    assert len(measured.harvested) == len(measured.plain) == 3
    assert 0 < measured.tokens < measured.prompt_tokens


def test_an_answer_that_plain_generation_gives_otherwise_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel.load(str(folder), prompt="{question} w1", max_new_tokens=7)
    known = LocalModel.generate_bare_batch
    monkeypatch.setattr(
        LocalModel, "generate_bare_batch", lambda self, asked: [*known(self, asked)[:-1], "something else"]
    )
    measured = measure(model, QUESTIONS, tier="tiny", set_="made", batch_size=4, rounds=1)
    assert measured.alike == len(QUESTIONS) - 3


def test_the_command_writes_a_line_a_round(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "bundles.yaml"
    config.write_text(
        f"version: 1\npolicy: default\ntiers:\n- name: tiny\n  model: {folder}\n"
        "  prompt: '{question} w1'\n  max_new_tokens: 7\n"
    )
    monkeypatch.setattr(harvest_throughput, "CONFIG", config)
    monkeypatch.setattr(harvest_throughput, "TIERS", ("tiny",))
    application = typer.Typer()
    application.command()(harvest_throughput.main)
    to = tmp_path / "results" / "rounds.csv"
    done = CliRunner().invoke(application, ["--rounds", "2", "--questions", "5", "--batch-size", "2", "--to", str(to)])
    assert done.exit_code == 0, done.output
    with to.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["tier"], row["set"], row["round"]) for row in rows] == [
        ("tiny", name, number) for name in harvest_throughput.ASKED for number in ("0", "1")
    ]
    assert all(row["alike"] == row["questions"] == "5" for row in rows)
    assert all(float(row[name]) > 0 for row in rows for name in ("harvested_wall", "plain_wall"))
