"""The scored table: a Parquet file with a row for each attempt of each request, which simulations run on.

A row holds what policies are told of an attempt, and whether its answer was wrong where that is known. Prompts and
answers don't stand in it. What isn't known is null, and never made up.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ilis_guard.errors import RequestError, SimulationError
from ilis_guard.lab.tables import write_table
from ilis_guard.types import STAGES, STATISTICS, FinishReason, Labels, Request

VERSION: Final = 1
METADATA_KEY: Final = b"ilis_guard_scored"
SHARES: Final = ("uncertainty", "typicality", "prompt_uncertainty", "prompt_typicality")
"""Columns of numbers from 0 to 1."""
AMOUNTS: Final = ("tokens", "seconds", "cost", "prompt_seconds", "prompt_cost", "prompt_length", "text_length")
"""Columns of numbers from 0."""

Split = Literal["unknown", "train", "validation", "calibration", "test", "unseen"]
"""What the fit of the tier's bundles did with a row, from what may flatter most to what flatters least: nobody can
tell; it trained the trees, stopped their training, calibrated their score, looked at it for figures only, or never saw
it."""
HELD_OUT: Final[frozenset[Split]] = frozenset({"test", "unseen"})
"""The rows that nothing was fitted to."""

SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tier", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("uncertainty", pa.float64()),
        pa.field("typicality", pa.float64()),
        pa.field("prompt_uncertainty", pa.float64()),
        pa.field("prompt_typicality", pa.float64()),
        *(pa.field(name, pa.float64()) for name in STATISTICS),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64()),
        pa.field("cost", pa.float64()),
        pa.field("prompt_seconds", pa.float64()),
        pa.field("prompt_cost", pa.float64()),
        pa.field("prompt_length", pa.int64()),
        pa.field("text_length", pa.int64()),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("labels", pa.string()),
        pa.field("wrong", pa.bool_()),
    ]
)
"""docs/simulation.md says what each column means."""
_ONE_OF: Final[Mapping[str, Sequence[str]]] = {
    "split": get_args(Split),
    "stage": STAGES,
    "finish_reason": ("", *get_args(FinishReason)),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ScoredTier(_Part):
    """One tier of a scored table."""

    name: str = Field(min_length=1)
    bundle: str | None
    """Digest of the bundle that gave `uncertainty`; None where there is none, or where that isn't known."""
    prompt_bundle: str | None
    """As `bundle`, of `prompt_uncertainty`."""


class ScoredManifest(_Part):
    """How rows came about; it stands in the Parquet file's metadata."""

    version: Literal[1] = VERSION
    origin: Literal["harvest", "decisions", "verdicts"]
    """Labelled questions put to each tier; what a guard decided; or only what people gave verdicts on."""
    tiers: tuple[ScoredTier, ...] = Field(min_length=1)
    """From small to large."""


def write_scored(path: Path, manifest: ScoredManifest, rows: Sequence[Mapping[str, Any]] | pa.Table) -> None:
    """Write a scored table; the file appears when it is complete.

    Raises:
        SimulationError: the rows are no scored table.
        OSError: the file can't be written.
    """
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.replace_schema_metadata({METADATA_KEY: manifest.model_dump_json()})
    check(table, manifest, str(path))
    write_table(table, path)


def read_scored(path: Path) -> tuple[ScoredManifest, pa.Table]:
    """Read a scored table and check all of it.

    Raises:
        SimulationError: it isn't one, or a row is wrong; the first such row is named.
    """
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else "isn't a Parquet file"
        raise SimulationError(f"{path}: {what}; make a scored table with `ilis-guard score`") from error
    manifest = _manifest(path, table.schema.metadata or {})
    check(table, manifest, str(path))
    return manifest, table


def labels_of(text: str | None) -> Labels | None:
    """Labels as they stand in a table.

    Raises:
        ValueError: it isn't a JSON object of labels.
    """
    if text is None:
        return None
    labels = json.loads(text)
    if not isinstance(labels, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  # as json.loads does
    try:
        return Request.of("a question", labels).labels
    except RequestError as error:
        raise ValueError(str(error)) from None


def check(table: pa.Table, manifest: ScoredManifest, path: str) -> None:
    """See that a table is what its schema says.

    Raises:
        SimulationError: it isn't; all wrong columns are named, or else the first row of each kind of mistake.
    """
    if problems := list(_column_problems(table)):
        raise SimulationError("\n".join(f"{path}: {problem}" for problem in problems))
    if table.num_rows == 0:
        raise SimulationError(f"{path}: there are no rows")
    if problems := [*_value_problems(table, manifest), *_request_problems(table)]:
        raise SimulationError("\n".join(f"{path}: {problem}" for problem in problems))


def _manifest(path: Path, metadata: Mapping[bytes, bytes]) -> ScoredManifest:
    if METADATA_KEY not in metadata:
        is_harvest = b"ilis_guard" in metadata
        is_none = f"isn't a scored table: there is no {METADATA_KEY.decode()!r} in its metadata"
        what = "holds harvested rows" if is_harvest else is_none
        remedy = f"`ilis-guard score {path.name} --tier NAME`" if is_harvest else "`ilis-guard score`"
        raise SimulationError(f"{path}: {what}; make a scored table with {remedy}")
    try:
        return ScoredManifest.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SimulationError(
            f"{path}: its manifest is wrong at {where!r}: {first['msg']}; make it anew with `ilis-guard score`"
        ) from error


def _column_problems(table: pa.Table) -> Iterator[str]:
    for name in table.schema.names:
        if table.schema.names.count(name) > 1:
            yield f"the column {name!r} stands twice"
            return
    for field in SCHEMA:
        if field.name not in table.schema.names:
            yield f"the column {field.name!r} ({field.type}) is missing"
        elif (got := table.schema.field(field.name).type) != field.type:
            yield f"the column {field.name!r} must be of type {field.type}, got {got}"
        elif not field.nullable and (nulls := table[field.name].null_count):
            yield f"the column {field.name!r} has no value in {nulls} rows"
    if unknown := sorted(set(table.schema.names) - set(SCHEMA.names)):
        yield f"there is no column {unknown[0]!r} in a scored table; take it out"


def _value_problems(table: pa.Table, manifest: ScoredManifest) -> Iterator[str]:
    def refused(name: str, bad: pa.ChunkedArray, wanted: str) -> Iterator[str]:
        where = np.flatnonzero(bad.fill_null(False).to_numpy())
        if len(where):
            row = int(where[0])
            got, of = table[name][row].as_py(), table["id"][row].as_py()
            count = "1 row" if len(where) == 1 else f"{len(where)} rows"
            yield f"{name!r} must be {wanted}, got {got!r:.60} in row {row + 1} (id {of!r:.60}), {count} in all"

    for name in SHARES:
        inside = pc.and_(pc.greater_equal(table[name], 0.0), pc.less_equal(table[name], 1.0))
        yield from refused(name, pc.invert(inside), "a number from 0 to 1, or null")
    for name in AMOUNTS:
        inside = pc.and_(pc.greater_equal(table[name], 0), pc.is_finite(table[name]))
        yield from refused(name, pc.invert(inside), "a finite number from 0")
    for name in STATISTICS:
        yield from refused(name, pc.invert(pc.is_finite(table[name])), "a finite number, or null")
    for name, allowed in {**_ONE_OF, "tier": [tier.name for tier in manifest.tiers]}.items():
        yield from refused(name, pc.invert(pc.is_in(table[name], pa.array(allowed))), f"one of {list(allowed)!r}")
    labels = table["labels"].combine_chunks().dictionary_encode()
    wrong = [text for text in labels.dictionary.to_pylist() if not _are_labels(text)]
    yield from refused(
        "labels", pc.is_in(table["labels"], pa.array(wrong, pa.string())), "a JSON object of labels, or null"
    )


def _request_problems(table: pa.Table) -> Iterator[str]:
    ids = table["id"].combine_chunks().dictionary_encode()
    requests, of = len(ids.dictionary), ids.indices.to_numpy()
    tiers = table["tier"].combine_chunks().dictionary_encode().indices.to_numpy()
    attempts = of.astype(np.int64) * (int(tiers.max()) + 1) + tiers
    _, first, times = np.unique(attempts, return_index=True, return_counts=True)
    if (times > 1).any():
        row = int(first[np.argmax(times > 1)])
        name, tier = table["id"][row].as_py(), table["tier"][row].as_py()
        yield f"the id {name!r:.60} stands {times.max()} times with the tier {tier!r}; a tier attempts a request once"
    for name in ("labels", "prompt_length"):
        codes = table[name].combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy()
        of_request = np.zeros(requests, dtype=np.int64)
        of_request[of] = codes
        if (differs := of_request[of] != codes).any():
            row = int(np.argmax(differs))
            yield f"{name!r} is a request's, and differs between the tiers of the id {table['id'][row].as_py()!r:.60}"


def _are_labels(text: str) -> bool:
    try:
        labels_of(text)
    except (ValueError, RecursionError):
        return False
    return True
