"""The table of attempts: what is refused, with its place, and what is left out of a simulation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ilis_guard.errors import AttemptsError, FitError, SimulationError
from ilis_guard.lab.attempt_schema import METADATA_KEY, AttemptManifest, AttemptTier, schema_of
from ilis_guard.lab.attempts import AttemptTable, read_attempts, write_attempts
from ilis_guard.lab.simulate import simulation_sample
from ilis_guard.policy.recordings import ANSWERED, NEVER_RUN, STOPPED_AT_PROMPT

MANIFEST = AttemptManifest(origin="harvest", tiers=(AttemptTier(name="small"), AttemptTier(name="large")))
SCHEMA = schema_of(MANIFEST)


def row(id_: str, tier: str = "small", **other: Any) -> dict[str, Any]:
    known = {
        "dataset": "",
        "split": "unseen",
        "stage": "answer",
        "tokens": 1,
        "finish_reason": "stop",
        "error": "",
        "labels": "{}",
    }
    return {"id": id_, "tier": tier, **known, **other}


def test_a_written_table_is_read_and_arranged_by_request(tmp_path: Path) -> None:
    rows = [
        row("b", "large", uncertainty=0.2, wrong=False, labels='{"vip": true}', seconds=1.5),
        row("a", uncertainty=0.5, typicality=0.25, wrong=True, prompt_length=7, text_length=3, cost=0.5),
        row("b", stage="prompt", prompt_uncertainty=0.9, labels='{"vip": true}', prompt_seconds=0.1),
        row("c", error="ModelError: down", labels=None, margin_min=0.5),
    ]
    write_attempts(tmp_path / "t.parquet", AttemptTable.of_rows(MANIFEST, rows))
    attempts = read_attempts(tmp_path / "t.parquet")
    assert attempts.manifest == MANIFEST
    with pytest.raises(FitError, match="without their answers"):
        attempts.answers()
    recorded = simulation_sample(attempts).recording
    b, a, c = (list(recorded.ids).index(name) for name in "bac")
    small, large = recorded.tiers
    assert [small.reached[at] for at in (a, b, c)] == [ANSWERED, STOPPED_AT_PROMPT, ANSWERED]
    assert [large.reached[at] for at in (a, b, c)] == [NEVER_RUN, ANSWERED, NEVER_RUN]
    assert [recorded.labels[at] for at in (a, b, c)] == [{}, {"vip": True}, None]
    assert recorded.prompt_length[[a, b, c]].tolist() == [7, -1, -1]
    told = small.attempt(a, "answer")
    assert (told.uncertainty, told.typicality, told.text_length, told.cost, told.finish_reason) == (
        0.5,
        0.25,
        3,
        0.5,
        "stop",
    )
    assert small.attempt(b, "prompt").uncertainty == 0.9
    assert (large.attempt(b, "answer").uncertainty, large.attempt(b, "answer").seconds) == (0.2, 1.5)
    assert small.error[c] == "ModelError: down"
    assert [small.wrong[at] for at in (a, b, c)] == [1, -1, -1]
    assert large.wrong[b] == 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.drop_columns(["typicality"]), "the column 'typicality' (double) is missing"),
        (lambda t: t.append_column("answer", pa.array(["x", "y"])), "there is no column 'answer' in this table"),
        (lambda t: cast(t, "tokens", pa.string()), "the column 'tokens' must be of type int64, got string"),
        (lambda t: put(t, "tier", ["small", None]), "the column 'tier' has no value in 1 rows"),
        (
            lambda t: put(t, "uncertainty", [0.5, float("nan")]),
            "'uncertainty' must be a number from 0 to 1, or null, got nan in row 2 (id 'b'), 1 row in all",
        ),
        (
            lambda t: put(t, "typicality", [1.5, -1.0]),
            "'typicality' must be a number from 0 to 1, or null, got 1.5 in row 1 (id 'a'), 2 rows in all",
        ),
        (
            lambda t: put(t, "seconds", [float("inf"), 1.0]),
            "'seconds' must be a finite number from 0, got inf in row 1",
        ),
        (lambda t: put(t, "tokens", [1, -1]), "'tokens' must be a finite number from 0, got -1 in row 2"),
        (
            lambda t: put(t, "margin_min", [None, float("nan")]),
            "'margin_min' must be a finite number, or null, got nan in row 2",
        ),
        (lambda t: put(t, "split", ["test", "held out"]), "'split' must be one of ["),
        (lambda t: put(t, "tier", ["small", "huge"]), "'tier' must be one of ['small', 'large'], got 'huge' in row 2"),
        (
            lambda t: put(t, "finish_reason", ["stop", "eos"]),
            "'finish_reason' must be one of ['', 'stop', 'length'], got 'eos'",
        ),
        (
            lambda t: put(t, "labels", ["{}", "[1]"]),
            "'labels' must be a JSON object of labels, or null, got '[1]' in row 2",
        ),
        (lambda t: put(t, "labels", ["{}", '{"a b": 1}']), "'labels' must be a JSON object of labels, or null"),
        (lambda t: put(t, "labels", ["{}", "[" * 5000]), "'labels' must be a JSON object of labels, or null"),
        (
            lambda t: put(t, "id", ["a", "a"]),
            "the id 'a' stands 2 times with the tier 'small'; a tier attempts a request once",
        ),
        (
            lambda t: put(put(put(t, "id", ["a", "a"]), "tier", ["small", "large"]), "prompt_length", [1, 2]),
            "'prompt_length' is a request's, and differs between the tiers of the id 'a'",
        ),
        (lambda t: t.slice(0, 0), "there are no rows"),
    ],
)
def test_a_wrong_table_is_refused_with_the_column_and_the_row(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], complaint: str
) -> None:
    table = change(pa.Table.from_pylist([row("a"), row("b")], schema=SCHEMA))
    path = tmp_path / "t.parquet"
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: MANIFEST.model_dump_json()}), path)
    with pytest.raises(AttemptsError) as error:
        read_attempts(path)
    assert str(error.value).startswith(f"{path}: ")
    assert complaint in str(error.value)


def put(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = SCHEMA.field(name).with_nullable(True)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def cast(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({}, "isn't a table of attempts: there is no 'ilis_guard_attempts' in its metadata"),
        ({METADATA_KEY: b'{"version": 2, "origin": "harvest", "tiers": []}'}, "its manifest is wrong at 'version'"),
        ({METADATA_KEY: b"{"}, "its manifest is wrong"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, metadata: dict[bytes, bytes], complaint: str) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist([row("a")], schema=SCHEMA).replace_schema_metadata(metadata), path)
    with pytest.raises(AttemptsError, match="ilis-guard score") as error:
        read_attempts(path)
    assert complaint in str(error.value)


def test_no_parquet_file_and_no_file_are_said(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("id,tier\n")
    with pytest.raises(AttemptsError, match=r"t\.parquet: isn't a Parquet file"):
        read_attempts(tmp_path / "t.parquet")
    with pytest.raises(AttemptsError, match="No such file"):
        read_attempts(tmp_path / "none.parquet")


def test_requests_of_a_fit_are_left_out_by_their_most_flattering_use() -> None:
    splits = {"a": ("test", "test"), "b": ("test", "train"), "c": ("calibration", "test"), "d": ("unseen", "unseen")}
    splits |= {"e": ("unknown", "test"), "f": ("calibration", "validation")}
    rows = [
        row(id_, tier, split=split)
        for id_, pair in splits.items()
        for tier, split in zip(("small", "large"), pair, strict=True)
    ]
    table = AttemptTable.of_rows(MANIFEST, rows)
    sample = simulation_sample(table)
    assert list(sample.recording.ids) == ["a", "d"]
    assert sample.left_out == {"train": 1, "validation": 1, "calibration": 1, "unknown": 1}
    everything = simulation_sample(table, all_rows=True)
    assert (len(everything.recording), everything.left_out) == (6, {})
    assert everything.flattering == sample.left_out
    seen = AttemptTable.of_rows(MANIFEST, [row("a", split="train")])
    with pytest.raises(SimulationError, match=r"none of the 1 requests is held out \(train 1\)"):
        simulation_sample(seen)
