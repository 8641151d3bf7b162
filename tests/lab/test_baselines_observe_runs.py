"""Runs of `observe`: interrupted ones, what is refused, and the command."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ilis_guard.cli.app import app
from ilis_guard.errors import BundleMismatchError, FitError, IlisGuardError, PromptTooLongError
from ilis_guard.lab.baselines import forward, observe as module
from ilis_guard.lab.baselines.observations import file_digest, read_observations
from ilis_guard.lab.baselines.observe import observe
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.questions import Question, write_questions
from ilis_guard.models.local import LocalModel
from tests.lab.test_baselines_observe import LIMIT, PROMPT, QUESTIONS, Lab, labs, llama
from tests.lab.tiny_models import make

__all__ = ["labs", "llama"]
pytestmark = pytest.mark.usefixtures("real_model")


def test_an_interrupted_run_continues_where_the_last_part_ended(
    llama: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 4)
    monkeypatch.setattr(module, "PASS_TOKENS", 50)
    read: list[int] = []
    whole = forward.ForwardRunner.run

    def cut_off(self: forward.ForwardRunner, batch: Sequence[forward.TokenizedAnswer]) -> list[forward.ForwardResult]:
        if sum(read) > 10:
            raise KeyboardInterrupt
        read.append(len(batch))
        return whole(self, batch)

    def counted(self: forward.ForwardRunner, batch: Sequence[forward.TokenizedAnswer]) -> list[forward.ForwardResult]:
        read.append(len(batch))
        return whole(self, batch)

    monkeypatch.setattr(forward.ForwardRunner, "run", cut_off)
    with pytest.raises(KeyboardInterrupt):
        observe(llama.model, llama.harvest, QUESTIONS, tmp_path / "observed.parquet")
    assert not (tmp_path / "observed.parquet").exists()
    kept = sum(pq.read_metadata(part).num_rows for part in (tmp_path / ".observed.parquet.unfinished").iterdir())
    assert 4 <= kept <= sum(read)

    read.clear()
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(forward.ForwardRunner, "run", counted)
    observe(
        llama.model,
        llama.harvest,
        QUESTIONS,
        tmp_path / "observed.parquet",
        progress=lambda done, total: told.append((done, total)),
    )
    assert sum(read) == len(llama.observations.ids) - kept
    assert 0 < told[0][0] < told[0][1] == told[-1][0]
    assert told == sorted(told)
    assert [path.name for path in tmp_path.iterdir()] == ["observed.parquet"]
    again = read_observations(tmp_path / "observed.parquet")
    assert again.ids == llama.observations.ids
    np.testing.assert_allclose(again.scores["rauq"], llama.observations.scores["rauq"], rtol=2e-4, atol=2e-5)


def test_parts_of_another_run_are_refused(llama: Lab, tmp_path: Path) -> None:
    folder = tmp_path / ".observed.parquet.unfinished"
    folder.mkdir()
    table = pq.read_table(llama.observed)
    told = table.schema.metadata[b"ilis_guard_observations"].replace(file_digest(llama.harvest).encode(), b"0" * 64)
    pq.write_table(table.replace_schema_metadata({b"ilis_guard_observations": told}), folder / "00000.parquet")
    with pytest.raises(FitError, match="unfinished table that was made differently"):
        observe(llama.model, llama.harvest, QUESTIONS, tmp_path / "observed.parquet")


def test_a_harvest_of_another_model_or_questions_is_refused(
    llama: Lab, labs: Callable[[str], Lab], tmp_path: Path
) -> None:
    to = tmp_path / "observed.parquet"
    other = [question.model_copy(update={"question": question.question + " w2"}) for question in QUESTIONS]
    refused: list[tuple[type[IlisGuardError], str, LocalModel, Path, list[Question]]] = [
        (BundleMismatchError, "differ in weights", labs("qwen3").model, llama.harvest, QUESTIONS),
        (FitError, "aren't those that were harvested", llama.model, llama.harvest, other),
        (FitError, "isn't among the questions", llama.model, llama.harvest, QUESTIONS[:1]),
    ]
    for error, message, model, harvested, questions in refused:
        with pytest.raises(error, match=message):
            observe(model, harvested, questions, to)
    assert not list(tmp_path.glob("*observed*"))


def test_a_question_too_long_to_be_judged_is_refused(tmp_path: Path) -> None:
    model = LocalModel.load(str(make(tmp_path / "model", "llama", seed=1)), prompt=PROMPT, max_new_tokens=LIMIT)
    long = [Question(id="q", question="w2 " * 240, answers=("w1",))]
    harvest(model, long, tmp_path / "harvest.parquet", name="tiny")
    with pytest.raises(PromptTooLongError):
        observe(model, tmp_path / "harvest.parquet", long, tmp_path / "observed.parquet")


def test_a_file_that_holds_no_observations_is_refused(llama: Lab, tmp_path: Path) -> None:
    (tmp_path / "empty.parquet").touch()
    for path in (llama.harvest, tmp_path / "empty.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(FitError, match="isn't a file of observations"):
            read_observations(path)


def test_the_command_observes_a_harvested_tier(llama: Lab, tmp_path: Path) -> None:
    shutil.copytree(llama.folder, tmp_path / "model")
    write_questions(tmp_path / "questions.jsonl", QUESTIONS)
    (tmp_path / "guard.yaml").write_text(
        "version: 1\npolicy: default\ntiers:\n  - name: tiny\n"
        f"    model: {tmp_path / 'model'}\n    prompt: '{PROMPT}'\n    max_new_tokens: {LIMIT}\nreview:\n  storage: sqlite:///tickets.db\n"
    )
    to = tmp_path / "observed.parquet"
    options = {
        "--questions": tmp_path / "questions.jsonl",
        "--tier": "tiny",
        "--config": tmp_path / "guard.yaml",
        "--to": to,
    }
    given = [str(part) for option in options.items() for part in option]
    run = CliRunner().invoke(app, ["observe", str(llama.harvest), *given])
    assert run.exit_code == 0, run.output
    assert read_observations(to).ids == llama.observations.ids
