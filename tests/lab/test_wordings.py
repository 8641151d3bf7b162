"""Harvests and fits in several wordings: drawn for plain questions, kept with each row, listed by bundles."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.errors import ConfigError, FitError, ModelError, QuestionError
from ilis_guard.lab import metrics
from ilis_guard.lab.attempts import Answers, read_answers, read_attempts
from ilis_guard.lab.baselines.observations import read_observations
from ilis_guard.lab.baselines.observe import observe
from ilis_guard.lab.calibration_rows import read_calibration_rows
from ilis_guard.lab.fit import fit
from ilis_guard.lab.harvest import ConcurrentRemoteModel, harvest
from ilis_guard.lab.questions import Question
from ilis_guard.lab.recalibrate import recalibrate
from ilis_guard.lab.splits import MIN_OF_WORDING
from ilis_guard.lab.wordings import NamedWording, Turn, conversation_of, draw_wording, read_wordings
from ilis_guard.models.remote import RemoteModel
from ilis_guard.scoring import read_bundle
from ilis_guard.scoring.bundle import row_digest
from ilis_guard.types import Generation, Message, Wording
from tests.lab.synthetic import synthetic_answers, write_harvest
from tests.lab.test_harvest import QUESTIONS, FakeTapped
from tests.provider import provider, town

YAML = """
wordings:
  - name: plain
  - name: assistant
    messages:
      - {role: system, content: You are a helpful assistant.}
  - name: second turn
    messages:
      - {role: user, content: "What is the capital of Norway?"}
      - {role: assistant, content: Oslo.}
"""
PLAIN = NamedWording(name="plain")
HELPFUL = NamedWording(name="assistant", messages=(Turn(role="system", content="You are a helpful assistant."),))
SECOND = NamedWording(
    name="second turn",
    messages=(
        Turn(role="user", content="What is the capital of Norway?"),
        Turn(role="assistant", content="Oslo."),
    ),
)
ALL = (PLAIN, HELPFUL, SECOND)
MANY = [Question(id=f"q{number}", question=f"What is {number}?", answers=("yes",)) for number in range(300)]


class Listener(FakeTapped):
    """Keeps the conversations that it is sent."""

    def __init__(self, fail_at: int = -1) -> None:
        super().__init__(fail_at=fail_at)
        self.heard: list[tuple[Message, ...]] = []

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation]:
        self.heard += map(tuple, conversations)
        return super().generate_batch([turns[-1:] for turns in conversations])


def worded(rows: Answers, *wordings: tuple[Wording, int]) -> Answers:
    """The rows, the first so many in the first wording, and so on."""
    column = np.empty(len(rows), dtype=object)
    column[:] = [wording for wording, count in wordings for _ in range(count)]
    return replace(rows, wordings=column)


A = Wording(prompt="cd")
B = Wording(prompt="cd", system="0123456789abcdef")
C = Wording(prompt="cd", history=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 60)


def test_a_file_of_wordings_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(YAML)
    assert read_wordings(tmp_path / "w.yaml") == ALL


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("wordings: []\n", ":1:11:", "there must be at least one"),
        ("wordings:\n  - name: a\n  - name: a\n", ":3:11:", "duplicate name 'a'"),
        ("wordings:\n  - name: a\n    system: b\n", ":3:5:", "unknown key 'system'"),
        ("- name: a\n", ":1:1:", "the top level must be a mapping"),
        (
            "wordings:\n  - name: a\n    messages:\n      - {role: tool, content: b}\n",
            ":4:16:",
            "should be 'system', 'user' or 'assistant'",
        ),
        (
            'wordings:\n  - name: a\n    messages:\n      - {role: user, content: "\\ud800"}\n',
            ":",
            "half a character",
        ),
    ],
)
def test_a_wrong_file_of_wordings_is_refused_with_its_place(text: str, where: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_wordings(tmp_path / "w.yaml")
    assert f"w.yaml{where}" in str(caught.value)
    assert what in str(caught.value)


def test_each_question_is_put_once_in_a_wording_drawn_by_its_id(tmp_path: Path) -> None:
    model, path = Listener(), tmp_path / "rows.parquet"
    manifest = harvest(model, MANY, path, name="fake", wordings=ALL)
    assert manifest.wordings == read_attempts(path).harvest.wordings == ALL
    assert sorted(model.heard, key=str) == sorted((conversation_of(one, ALL) for one in MANY), key=str)
    drawn = Counter(draw_wording(ALL, one).name for one in MANY)
    assert len(drawn) == 3
    assert min(drawn.values()) > 70
    by_id = {row["id"]: (row["system"], row["history"]) for row in pq.read_table(path).to_pylist()}
    helpful = Wording.of([*HELPFUL.before(Message(role="user", content="x"))], prompt="").system
    expected = {"plain": ("", False), "assistant": (helpful, False), "second turn": ("", True)}
    assert by_id == {one.id: expected[draw_wording(ALL, one).name] for one in MANY}
    rows = read_attempts(path).answers()
    assert set(rows.row_wordings()) == {Wording(prompt="cd", system=s, history=h) for s, h in expected.values()}
    assert read_attempts(path).wordings() == rows.row_wordings().tolist()


def test_equal_questions_in_unlike_wordings_are_one_group(tmp_path: Path) -> None:
    same = [Question(id=f"q{number}", question="Is it raining in Bergen?", answers=("yes",)) for number in range(12)]
    harvest(Listener(), same, tmp_path / "rows.parquet", name="fake", wordings=ALL)
    table = read_attempts(tmp_path / "rows.parquet")
    assert len(set(table.wordings())) == 3
    assert len(set(table.table["group"].to_pylist())) == 1


def test_a_run_with_other_wordings_does_not_continue_an_unfinished_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with pytest.raises(ModelError):
        harvest(Listener(fail_at=1), QUESTIONS, path, name="fake", batch_size=4, wordings=ALL)
    with pytest.raises(FitError, match="made differently"):
        harvest(Listener(), QUESTIONS, path, name="fake", batch_size=4, wordings=ALL[:2])
    harvest(Listener(), QUESTIONS, path, name="fake", batch_size=4, wordings=ALL)
    assert len(read_attempts(path)) == len(QUESTIONS)


def test_a_conversation_keeps_its_own_wording_and_takes_no_other(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    own = Question.model_validate({"id": "q", "messages": talk, "answers": ["yes"]})
    model, path = Listener(), tmp_path / "rows.parquet"
    with pytest.raises(QuestionError, match="'q' has 'messages', which are sent as they are: leave the wordings out"):
        harvest(model, [own], path, name="fake", wordings=ALL)
    assert model.heard == []
    harvest(model, [own, *QUESTIONS], path, name="fake")
    assert own.conversation() in model.heard
    row, *others = read_attempts(path).wordings()
    assert row == Wording.of(own.conversation(), prompt="cd")
    assert set(others) == {A}


def test_a_remote_model_is_sent_every_turn_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain_openai import ChatOpenAI

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with provider() as serving:
        remote = RemoteModel(ChatOpenAI(**serving.arguments()))
        model = ConcurrentRemoteModel(remote, ModelCaller("remote"), max_concurrent=2)
        towns = [town(number) for number in range(12)]
        harvest(model, towns, tmp_path / "rows.parquet", name="clerk", wordings=ALL)
        sent = [[(turn["role"], turn["content"]) for turn in body["messages"]] for body in serving.asked]
    wanted = [[(turn.role, turn.content) for turn in conversation_of(one, ALL)] for one in towns]
    assert sorted(sent) == sorted(wanted)
    assert {wording.prompt for wording in read_attempts(tmp_path / "rows.parquet").wordings()} == {""}
    assert len(set(read_attempts(tmp_path / "rows.parquet").wordings())) == 3


@pytest.mark.usefixtures("real_model")
def test_worded_answers_are_observed_with_the_prompts_that_were_sent(tmp_path: Path) -> None:
    # Importing these imports torch, which the other tests do without.
    from ilis_guard.models.local import LocalModel
    from tests.lab.tiny_models import make

    model = LocalModel.load(str(make(tmp_path / "model", "llama", seed=1)), prompt="{question} w1", max_new_tokens=5)
    asked = [Question(id=f"q{number}", question=f"w{number} w2", answers=("w1",)) for number in range(9)]
    harvest(model, asked, tmp_path / "rows.parquet", name="tiny", wordings=ALL)
    rows = read_attempts(tmp_path / "rows.parquet")
    lengths = [len(model.prompt_tokens(conversation_of(one, ALL))) for one in asked]
    assert rows.table["prompt_tokens"].to_pylist() == lengths
    assert len(set(lengths)) == 3
    observe(model, tmp_path / "rows.parquet", asked, tmp_path / "observed.parquet")
    assert list(read_observations(tmp_path / "observed.parquet").ids) == rows.answers().ids.tolist()


@pytest.mark.usefixtures("fitted_model", "quick")
def test_a_bundle_lists_the_wordings_that_calibrate_it_and_rarer_rows_only_train(tmp_path: Path) -> None:
    rows = synthetic_answers({"set": 600}, signal=1.0)
    order = np.random.default_rng(1).permutation(600)
    rows = worded(rows, (A, 350), (B, 200), (C, 50))
    rows = replace(rows, wordings=rows.row_wordings()[order])
    metadata = fit(rows, tmp_path / "bundle")
    assert metadata.wordings == read_bundle(str(tmp_path / "bundle")).metadata.wordings == (A, B)
    splits = read_bundle(str(tmp_path / "bundle")).calibration_set.splits
    assert splits is not None
    rare = {row_digest(id_) for id_, one in zip(rows.ids.tolist(), rows.row_wordings(), strict=True) if one == C}
    assert rare & set(splits["train"])
    assert not rare & ({*splits["calibration"]} | {*splits["test"]})
    assert metadata.rows["rare_wordings"] == len(rare) - len(rare & ({*splits["train"]} | {*splits["validation"]})) > 0
    assert sum(metadata.rows.values()) == 600
    assert metadata.held_out.rows == metadata.rows["test"]


@pytest.mark.usefixtures("fitted_model", "quick")
def test_copies_of_one_question_lend_a_wording_no_weight(tmp_path: Path) -> None:
    rows = worded(synthetic_answers({"set": 600}, signal=1.0), (A, 400), (B, 200))
    owners = np.array([id_ if row < 400 else "one user" for row, id_ in enumerate(rows.ids.tolist())], dtype=object)
    metadata = fit(replace(rows, owners=owners), tmp_path / "bundle")
    assert metadata.wordings == (A,)


@pytest.mark.usefixtures("fitted_model", "quick")
def test_where_no_wording_has_enough_rows_nothing_is_written(tmp_path: Path) -> None:
    rows = synthetic_answers({"set": 400}, signal=1.0)
    column = np.empty(400, dtype=object)
    column[:] = [Wording(prompt="cd", system=str(row % 16)) for row in range(400)]
    with pytest.raises(FitError, match=rf"have 16 wordings .* none has {MIN_OF_WORDING} independent calibration rows"):
        fit(replace(rows, wordings=column), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def harvested(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Answers, name: str, **changes: Any) -> Path:
        manifest = rows.manifest.model_copy(update={"fingerprint": replace(rows.manifest.tapped(), **changes)})
        return write_harvest(replace(rows, manifest=manifest, wordings=None), tmp_path / name)

    return write


def test_harvests_of_tiers_whose_prompts_differ_are_read_together(harvested: Callable[..., Path]) -> None:
    rows = synthetic_answers({"set": 60})
    first, second = harvested(rows, "a.parquet"), harvested(rows, "b.parquet", prompt="other")
    together = read_answers([first, second], any_prompt=True)
    assert together.ids.tolist() == rows.ids.tolist() * 2
    assert together.row_wordings().tolist() == [A] * 60 + [Wording(prompt="other")] * 60
    with pytest.raises(FitError, match="they differ in prompt; read each by itself"):
        read_answers([first, second])
    with pytest.raises(FitError, match="60 ids come twice"):
        read_answers([first, first], any_prompt=True)
    third = harvested(rows, "c.parquet", decoding='{"do_sample": true}', prompt="other")
    with pytest.raises(FitError, match="they differ in decoding; read each by itself"):
        read_answers([first, third], any_prompt=True)


@pytest.mark.usefixtures("fitted_model", "quick")
def test_one_question_in_two_prompts_is_one_group_of_a_fit(harvested: Callable[..., Path], tmp_path: Path) -> None:
    rows = synthetic_answers({"set": 400}, signal=1.0)
    again = synthetic_answers({"set": 400}, seed=2, signal=1.0)
    files = [harvested(rows, "a.parquet"), harvested(again, "b.parquet", prompt="other")]
    metadata = fit(read_answers(files, any_prompt=True), tmp_path / "bundle")
    assert set(metadata.wordings) == {A, Wording(prompt="other")}
    assert sum(metadata.rows.values()) == 800
    assert sum(metadata.groups.values()) == 400


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    fit(synthetic_answers({"set": 600}, signal=1.0), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.usefixtures("fitted_model", "quick")
def test_recalibrating_on_rows_in_other_wordings_makes_them_the_bundles(calibrated: Path, tmp_path: Path) -> None:
    bundle = read_bundle(str(calibrated))
    assert bundle.metadata.wordings == (A,)
    fresh = synthetic_answers({"new": 300}, seed=7, signal=1.0)
    rows = worded(fresh, (B, 290), (C, 10))
    path = write_harvest(rows, tmp_path / "rows.parquet")
    found = read_calibration_rows(bundle, path)
    assert len(found) == 290
    metadata = recalibrate(bundle, found, tmp_path / "new")
    assert metadata.wordings == read_bundle(str(tmp_path / "new")).metadata.wordings == (B,)
