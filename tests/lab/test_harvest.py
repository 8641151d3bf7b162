import os
import random
import re
import signal
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ilis_guard.errors import AttemptsError, FitError, ModelError, QuestionError
from ilis_guard.lab.attempt_schema import COLUMNS, METADATA_KEY
from ilis_guard.lab.attempts import Answers, read_attempts
from ilis_guard.lab.grading import is_correct, load_judge
from ilis_guard.lab.harvest import harvest
from ilis_guard.lab.questions import Question
from ilis_guard.types import Fingerprint, Generation, Message, Position, Signature, Statistics
from tests.processes import ended, forked

LAYERS = 3
POSITIONS: tuple[Position, ...] = ("prompt", "last", "mean")
SILENT = "Say nothing."


def question(number: int, text: str = "", dataset: str = "") -> Question:
    """Longer or shorter than its neighbours, so that asking by length isn't asking in order."""
    text = text or f"What is {number}" + "?" * (number * 7 % 11)
    return Question(id=f"q{number}", dataset=dataset or f"d{number % 3}", question=text, answers=("yes",))


QUESTIONS = [question(number) for number in range(10)]


def signature(prompt: str, position: Position) -> Signature:
    cells = np.random.default_rng(zlib.crc32(f"{prompt} {position}".encode())).random((LAYERS, LAYERS), np.float32)
    np.fill_diagonal(cells, 0)
    return cells


def statistics(prompt: str) -> Statistics:
    low, high, middle, last = np.random.default_rng(zlib.crc32(prompt.encode())).random(4).tolist()
    return Statistics(logprob_sum=-low, logprob_mean=-high, entropy_mean=middle, margin_min=last)


def is_right(prompt: str) -> bool:
    return zlib.crc32(prompt.encode()) % 2 == 0


class FakeTapped:
    """Says yes (which is right) or no, and shows maps that depend on the question alone."""

    prompt = "{question} Yes or no?"
    max_new_tokens = 8
    fingerprint = Fingerprint(
        weights="ab",
        precision="nf4",
        dtype="float32",
        layers=LAYERS,
        hidden=9,
        site="mlp",
        taps="layers.*.mlp",
        temperature=1.0,
        decoding="greedy",
        prompt="cd",
    )

    def __init__(self, missing: Sequence[Position] = ("last", "mean"), fail_at: int = -1) -> None:
        self.batches: list[list[str]] = []
        self._missing = missing
        self._fail_at = fail_at
        self.error: BaseException = ModelError("the model is gone")

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation]:
        assert all(len(turns) == 1 and turns[0].role == "user" for turns in conversations)
        self.batches.append([turns[0].content for turns in conversations])
        if len(self.batches) - 1 == self._fail_at:
            raise self.error
        return [self._answer(turns[0].content) for turns in conversations]

    def _answer(self, prompt: str) -> Generation:
        silent = prompt == SILENT
        return Generation(
            text="" if silent else "Yes." if is_right(prompt) else "No.",
            tokens=0 if silent else 2,
            token_ids=() if silent else (7 if is_right(prompt) else 8, 1),
            prompt_tokens=len(prompt),
            finish_reason="stop",
            seconds=0.1,
            signatures={
                position: signature(prompt, position)
                for position in POSITIONS
                if not (silent and position in self._missing)
            },
            statistics=None if silent and "last" in self._missing else statistics(prompt),
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows" / "capitals.parquet"


@pytest.fixture
def rows(path: Path) -> Answers:
    harvest(FakeTapped(), QUESTIONS, path, name="packaged:fake", batch_size=3)
    return read_attempts(path).answers()


def assert_rows_are(rows: Answers, questions: Sequence[Question]) -> None:
    """Every column of every row belongs to its question."""
    prompts = [asked.prompt() for asked in questions]
    assert rows.ids.tolist() == [asked.id for asked in questions]
    assert rows.datasets.tolist() == [asked.dataset for asked in questions]
    assert rows.wrong.tolist() == [not is_right(prompt) for prompt in prompts]
    for position in POSITIONS:
        np.testing.assert_array_equal(
            rows.signatures[position], np.array([signature(prompt, position) for prompt in prompts])
        )
    expected = [
        [said.logprob_sum, said.logprob_mean, said.entropy_mean, said.margin_min] for said in map(statistics, prompts)
    ]
    assert rows.statistics.tolist() == expected


def test_rows_come_back_in_the_questions_order_each_with_its_own_numbers(rows: Answers) -> None:
    assert_rows_are(rows, QUESTIONS)
    assert rows.unanswered == 0


def test_right_and_wrong_answers_both_occur_and_wrong_is_not_correct(rows: Answers, path: Path) -> None:
    wrong = pq.read_table(path)["wrong"].to_pylist()
    assert {True, False} == set(wrong)
    assert rows.wrong.tolist() == wrong
    assert rows.wrong.dtype == np.bool_


def test_numbers_keep_their_kinds(rows: Answers) -> None:
    assert {each.dtype for each in rows.signatures.values()} == {np.dtype(np.float32)}
    assert rows.statistics.dtype == np.float64


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (10, [10]), (99, [10])])
def test_questions_are_asked_in_batches_the_longest_first(batch_size: int, sizes: list[int], path: Path) -> None:
    model = FakeTapped()
    harvest(model, QUESTIONS, path, name="fake", batch_size=batch_size)
    asked = [len(prompt) for batch in model.batches for prompt in batch]
    assert [len(batch) for batch in model.batches] == sizes
    assert asked == sorted(asked, reverse=True)
    assert len(set(asked)) > 5
    assert_rows_are(read_attempts(path).answers(), QUESTIONS)


def test_progress_rises_to_the_total(path: Path) -> None:
    told: list[tuple[int, int]] = []
    harvest(FakeTapped(), QUESTIONS, path, name="fake", batch_size=4, progress=lambda *done: told.append(done))
    assert told == [(0, 10), (4, 10), (8, 10), (10, 10)]


def test_the_manifest_says_how_the_rows_were_made(path: Path) -> None:
    manifest = harvest(FakeTapped(), QUESTIONS, path, name="packaged:fake")
    assert read_attempts(path).harvest == manifest
    assert manifest.model == "packaged:fake"
    assert manifest.fingerprint == FakeTapped.fingerprint
    assert (manifest.prompt, manifest.max_new_tokens) == (FakeTapped.prompt, FakeTapped.max_new_tokens)
    assert {"ilis-guard", "torch", "transformers", "bitsandbytes", "python"} == set(manifest.versions)
    assert all(manifest.versions.values())


def test_the_files_format_is_stable(path: Path) -> None:
    harvest(FakeTapped(), QUESTIONS, path, name="fake")
    cells = pa.list_(pa.float32(), LAYERS * LAYERS)
    assert {field.name: field.type for field in pq.read_schema(path)} == {
        **{field.name: field.type for field in COLUMNS},
        "text": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "system": pa.string(),
        "history": pa.bool_(),
        "prompt": cells,
        "last": cells,
        "mean": cells,
    }
    row = pq.read_table(path).to_pylist()[3]
    assert (row["id"], row["text"] in ("Yes.", "No."), row["tokens"]) == ("q3", True, 2)
    assert row["prompt"] == signature(QUESTIONS[3].prompt(), "prompt").ravel().tolist()


@pytest.mark.parametrize("missing", [("last", "mean"), ("mean",), ("last",), ("prompt",)])
def test_unanswered_rows_are_counted_and_left_out(missing: tuple[Position, ...], path: Path) -> None:
    silent = [question(number, SILENT, "d") for number in (20, 21, 22)]
    asked = [silent[0], *QUESTIONS[:4], silent[1], *QUESTIONS[4:], silent[2]]
    harvest(FakeTapped(missing), asked, path, name="fake", batch_size=4)
    rows = read_attempts(path).answers()
    assert rows.unanswered == 3
    assert_rows_are(rows, QUESTIONS)
    assert pq.read_table(path)["id"].to_pylist() == [each.id for each in asked]


def test_where_nothing_was_answered_there_are_no_rows(path: Path) -> None:
    harvest(FakeTapped(), [question(1, SILENT)], path, name="fake")
    rows = read_attempts(path).answers()
    assert (rows.ids.tolist(), rows.unanswered) == ([], 1)
    assert rows.signatures["mean"].shape == (0, LAYERS, LAYERS)
    assert rows.statistics.shape == (0, 4)


def test_questions_with_the_same_id_are_refused_before_anything_is_asked(path: Path) -> None:
    model = FakeTapped()
    with pytest.raises(QuestionError, match="1 ids are given to several questions, such as 'q3'"):
        harvest(model, [*QUESTIONS, question(3, "Another?")], path, name="fake")
    assert model.batches == []
    assert not path.exists()


@pytest.mark.parametrize("error", [ModelError("gone"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_the_old_file_and_is_gone_on_with(error: BaseException, path: Path) -> None:
    harvest(FakeTapped(), QUESTIONS, path, name="old")
    before = path.read_bytes()
    model = FakeTapped(fail_at=1)
    model.error = error
    with pytest.raises(type(error)):
        harvest(model, QUESTIONS, path, name="new", batch_size=4)
    assert path.read_bytes() == before

    told: list[tuple[int, int]] = []
    again = FakeTapped()
    harvest(again, QUESTIONS, path, name="new", batch_size=4, progress=lambda *done: told.append(done))
    assert told == [(4, 10), (8, 10), (10, 10)]
    asked = [prompt for batch in (model.batches[0], *again.batches) for prompt in batch]
    assert sorted(asked) == sorted(each.prompt() for each in QUESTIONS)
    assert_rows_are(read_attempts(path).answers(), QUESTIONS)
    assert list(path.parent.iterdir()) == [path]


def test_a_run_that_got_nowhere_leaves_nothing(path: Path) -> None:
    with pytest.raises(ModelError):
        harvest(FakeTapped(fail_at=0), QUESTIONS, path, name="fake", batch_size=4)
    assert list(path.parent.iterdir()) == []


def test_a_run_of_other_questions_does_not_continue_an_unfinished_one(path: Path) -> None:
    with pytest.raises(ModelError):
        harvest(FakeTapped(fail_at=1), QUESTIONS, path, name="fake", batch_size=4)
    model = FakeTapped()
    with pytest.raises(FitError, match="unfinished table that was made differently"):
        harvest(model, QUESTIONS[1:], path, name="fake", batch_size=4)
    with pytest.raises(FitError, match="unfinished table that was made differently"):
        harvest(model, QUESTIONS, path, name="fake", batch_size=4, judged_by="other")
    assert model.batches == []


def test_a_half_written_part_is_harvested_again(path: Path) -> None:
    with pytest.raises(ModelError):
        harvest(FakeTapped(fail_at=2), QUESTIONS, path, name="fake", batch_size=4)
    folder = path.with_name(".capitals.parquet.unfinished")
    (folder / ".000002.parquet.0123").write_bytes(b"PAR1 and half a ro")
    harvest(FakeTapped(), QUESTIONS, path, name="fake", batch_size=4)
    assert_rows_are(read_attempts(path).answers(), QUESTIONS)


def test_an_unfinished_part_that_is_damaged_is_named(path: Path) -> None:
    with pytest.raises(ModelError):
        harvest(FakeTapped(fail_at=2), QUESTIONS, path, name="fake", batch_size=4)
    damaged = path.with_name(".capitals.parquet.unfinished") / "000001.parquet"
    damaged.write_bytes(b"no")
    with pytest.raises(FitError, match=re.escape(str(damaged))):
        harvest(FakeTapped(), QUESTIONS, path, name="fake", batch_size=4)
    damaged.unlink()
    harvest(FakeTapped(), QUESTIONS, path, name="fake", batch_size=4)
    assert_rows_are(read_attempts(path).answers(), QUESTIONS)


@pytest.mark.usefixtures("process")
def test_a_run_killed_at_any_instant_loses_nothing(path: Path) -> None:
    """Child processes, each killed by the system at an instant of its own, until one finishes."""
    path.parent.mkdir(parents=True)
    log = path.parent / "done.log"

    class Slow(FakeTapped):
        def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation]:
            time.sleep(0.01)
            return super().generate_batch(conversations)

    def record(done: int, _all: int) -> None:
        with log.open("a") as file:
            file.write(f"{done}\n")

    def run() -> None:
        harvest(Slow(), QUESTIONS, path, name="fake", batch_size=2, progress=record)

    instants = random.Random(0)
    kills = 0
    for _ in range(60):
        child = forked(run)
        time.sleep(instants.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        kills += ended(child) == -signal.SIGKILL
        if path.exists():
            break
    harvest(FakeTapped(), QUESTIONS, path, name="fake", batch_size=2)
    assert_rows_are(read_attempts(path).answers(), QUESTIONS)
    assert kills >= 2
    done = [int(line) for line in log.read_text().split()]
    assert done == sorted(done), "rows that were on disk stayed there"


def test_a_judge_of_ones_own_grades_the_answers(path: Path) -> None:
    def never(asked: Question, text: str) -> bool:
        assert (asked in QUESTIONS, text in ("Yes.", "No.")) == (True, True)
        return False

    manifest = harvest(FakeTapped(), QUESTIONS, path, name="fake", judge=never, judged_by="ours:never")
    assert manifest.judge == "ours:never"
    assert read_attempts(path).answers().wrong.all()


def test_a_judge_that_says_neither_is_refused(path: Path) -> None:
    def unsure(_asked: Question, _text: str) -> Any:
        return 0.5

    def failing(_asked: Question, text: str) -> bool:
        raise ValueError(text)

    with pytest.raises(QuestionError, match="must return True or False, got a float for the question 'q"):
        harvest(FakeTapped(), QUESTIONS, path, name="fake", judge=unsure)
    with pytest.raises(QuestionError, match=r"the judge failed at the question 'q.': ValueError$"):
        harvest(FakeTapped(), QUESTIONS, path, name="fake", judge=failing)


def test_a_judge_is_found_by_its_path() -> None:
    assert load_judge(None) == ("rules", is_correct)
    assert load_judge("ilis_guard.lab.grading:is_correct") == ("ilis_guard.lab.grading:is_correct", is_correct)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "package.module:function"),
        ("nowhere.at:all", "can't be imported"),
        ("ilis_guard.lab.grading:nothing", "can't be imported"),
        ("ilis_guard.lab.grading:RULES", "is a str, which can't be called"),
    ],
)
def test_a_path_that_leads_to_no_judge_is_refused(path: str, said: str) -> None:
    with pytest.raises(QuestionError, match=said):
        load_judge(path)


@pytest.mark.parametrize("failing", ["write_table", "replace"])
def test_a_write_that_fails_leaves_no_litter(failing: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq if failing == "write_table" else Path, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        harvest(FakeTapped(), QUESTIONS, path, name="fake")
    assert list(path.parent.iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = FakeTapped()
    for path in (tmp_path, tmp_path / "file" / "rows.parquet"):
        with pytest.raises(OSError, match=str(tmp_path)):
            harvest(model, QUESTIONS, path, name="fake")
    assert model.batches == []


def test_a_finished_file_has_the_rights_that_any_new_file_has(path: Path) -> None:
    harvest(FakeTapped(), QUESTIONS, path, name="fake")
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


def test_folders_named_like_columns_are_only_names(tmp_path: Path) -> None:
    path = tmp_path / "dataset=x" / "more=1" / "rows.parquet"
    harvest(FakeTapped(), QUESTIONS, path, name="fake")
    assert_rows_are(read_attempts(path).answers(), QUESTIONS)


def refusal(path: Path) -> str:
    with pytest.raises(AttemptsError) as caught:
        read_attempts(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"id,correct\n1,true\n", b"PAR1" * 10])
def test_other_files_than_parquet_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(content)
    refusal(tmp_path / "rows")


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "nowhere")
    refusal(tmp_path)


def test_a_truncated_file_is_refused(rows: Answers, path: Path) -> None:
    assert len(rows)
    path.write_bytes(path.read_bytes()[:-30])
    refusal(path)


@pytest.mark.parametrize("metadata", [{}, {METADATA_KEY: b"{}"}, {METADATA_KEY: b"\xff"}, {b"other": b"1"}])
def test_parquet_without_a_manifest_is_refused(metadata: dict[bytes, bytes], rows: Answers, path: Path) -> None:
    assert len(rows)
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    refusal(path)


@pytest.mark.parametrize("column", ["mean", "prompt", "wrong", "logprob_sum", "id"])
def test_a_missing_column_is_named(column: str, rows: Answers, path: Path) -> None:
    assert len(rows)
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    assert column in refusal(path)


def test_maps_of_other_layers_than_the_manifest_says_are_refused(rows: Answers, path: Path) -> None:
    table = pq.read_table(path)
    assert rows.layers == 3
    manifest = table.schema.metadata[METADATA_KEY].replace(b'"layers":3', b'"layers":2')
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: manifest}), path)
    refusal(path)


def test_generated_token_ids_are_kept(tmp_path: Path) -> None:
    harvest(FakeTapped(), QUESTIONS, tmp_path / "rows.parquet", name="fake")
    answers = dict(read_attempts(tmp_path / "rows.parquet").generations())
    assert {answer.text: answer.token_ids for answer in answers.values()} == {"Yes.": (7, 1), "No.": (8, 1)}
