"""Conversations and wordings through the commands, with a real chat model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ilis_guard.lab import metrics
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.wordings import read_wordings
from ilis_guard.scoring import read_bundle
from ilis_guard.types import Message, Wording
from tests.conftest import FEW_WORDS, SMOLLM2
from tests.lab.synthetic import synthetic_answers, write_harvest
from tests.lab.test_wordings import YAML

if TYPE_CHECKING:  # importing it imports torch
    from ilis_guard.models.local import LocalModel

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
TURNS = [
    {"role": "user", "content": "What is the capital of Norway?"},
    {"role": "assistant", "content": "Oslo."},
    {"role": "user", "content": "And of Sweden?"},
    {"role": "assistant", "content": "Stockholm."},
]
LAST = {"role": "user", "content": "What is the capital of France?"}
TIER = {"name": "small", "model": SMOLLM2, "prompt": FEW_WORDS, "max_new_tokens": 8}


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "guard.yaml").write_text(json.dumps({"version": 1, "policy": "default", "tiers": [TIER]}))
    (tmp_path / "w.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps({"id": f"q{n}", **line}) + "\n" for n, line in enumerate(lines)))


@pytest.mark.usefixtures("real_model")
def test_a_chat_models_rows_are_of_the_very_conversations(
    room: Path, run: Callable[..., Any], smollm2_full: "LocalModel"
) -> None:
    talks = [[LAST], [SYSTEM, LAST], [*TURNS, LAST], [SYSTEM, *TURNS, LAST]]
    write(room / "talks.jsonl", *({"messages": talk, "answers": ["Paris"]} for talk in talks))
    result = run("harvest", "talks.jsonl", "--tier", "small", "--to", "rows.parquet", "--config", "guard.yaml")
    assert result.status == 0, result.err
    table = read_attempts(room / "rows.parquet")
    tokenizer = smollm2_full.checkpoint.tokenizer
    worded = {**LAST, "content": FEW_WORDS.replace("{question}", LAST["content"])}
    sent = [tokenizer.apply_chat_template([*talk[:-1], worded], add_generation_prompt=True) for talk in talks]
    assert table.table["prompt_tokens"].to_pylist() == [len(ids["input_ids"]) for ids in sent]
    assert table.table["wrong"].to_pylist() == [False] * 4
    prompt = table.harvest.tapped().prompt
    assert table.wordings() == [
        Wording.of([Message(**turn) for turn in talk], prompt=prompt)  # type: ignore[arg-type]  # roles
        for talk in talks
    ]


@pytest.mark.usefixtures("real_model")
def test_plain_questions_are_put_in_wordings_that_the_command_counts(room: Path, run: Callable[..., Any]) -> None:
    cities = ("France", "Norway", "Peru", "Japan", "Chile", "Spain")
    write(room / "q.jsonl", *({"question": f"What is the capital of {of}?", "answers": ["Paris"]} for of in cities))
    command = ("--tier", "small", "--to", "rows.parquet", "--config", "guard.yaml", "--wordings", "w.yaml")
    result = run("harvest", "q.jsonl", *command)
    assert result.status == 0, result.err
    counted = [int(line.rpartition(" ")[2]) for line in result.out.splitlines() if line.startswith("in the wording")]
    assert sum(counted) == len(cities)
    assert "in the wording 'second turn': " in result.out
    wordings = read_attempts(room / "rows.parquet").harvest.wordings
    assert wordings == read_wordings(room / "w.yaml")
    write(room / "talks.jsonl", {"messages": [SYSTEM, LAST], "answers": ["Paris"]})
    refused = run("harvest", "talks.jsonl", *command)
    assert refused.status == 2
    assert "'q0' has 'messages', which are sent as they are" in " ".join(refused.err.split())


@pytest.mark.usefixtures("fitted_model")
def test_harvests_in_two_prompts_make_one_bundle(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 60)
    files = []
    for seed, prompt in enumerate(("cd", "ef")):
        rows = synthetic_answers({"set": 400}, seed=seed, signal=1.0)
        fingerprint = replace(rows.manifest.tapped(), prompt=prompt)
        rows = replace(rows, manifest=rows.manifest.model_copy(update={"fingerprint": fingerprint}))
        files.append(str(write_harvest(rows, tmp_path / f"{prompt}.parquet")))
    result = run("fit", *files, "--to", str(tmp_path / "bundle"))
    assert result.status == 0, result.err
    assert "rows: 800 in 400 groups" in result.flat
    assert "calibrated in 2 wordings: prompt " in result.flat
    found = read_bundle(str(tmp_path / "bundle")).metadata.wordings
    assert set(found) == {Wording(prompt="cd"), Wording(prompt="ef")}
