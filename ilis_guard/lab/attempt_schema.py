"""The columns of a table of attempts, its manifest, and what is checked of both."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from ilis_guard.errors import AttemptsError, FitError, RequestError
from ilis_guard.lab.wordings import NamedWording
from ilis_guard.types import (
    POSITIONS,
    STAGES,
    STATISTICS,
    Fingerprint,
    FinishReason,
    Labels,
    RemoteFingerprint,
    Request,
    Wording,
)

VERSION: Final = 1
METADATA_KEY: Final = b"ilis_guard_attempts"
SHARES: Final = (
    *("uncertainty", "typicality", "rank", "prompt_uncertainty", "prompt_typicality", "prompt_rank", "probability"),
)
"""Columns of numbers from 0 to 1."""
CALIBRATED: Final = ("calibrated", "prompt_calibrated")
"""Columns that say whether an uncertainty is calibrated; null where there is none."""
AMOUNTS: Final = (
    *("tokens", "prompt_tokens", "seconds", "cost", "prompt_seconds", "prompt_cost", "prompt_length", "text_length"),
)
"""Columns of numbers from 0."""

Split = Literal["unknown", "train", "validation", "calibration", "test", "unseen"]
"""How the fit of the tier's bundles used a row, from the use that flatters its score most to the one that flatters it
least: not known; training the trees; stopping their training; calibrating their score; figures only; not at all."""
HELD_OUT: Final[frozenset[Split]] = frozenset({"test", "unseen"})
"""The splits of rows to which nothing was fitted."""

COLUMNS: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tier", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        *(pa.field(name, pa.float64()) for name in SHARES[:-1]),
        *(pa.field(name, pa.bool_()) for name in CALIBRATED),
        *(pa.field(name, pa.float64()) for name in STATISTICS),
        pa.field("tokens", pa.int64()),
        pa.field("prompt_tokens", pa.int64()),
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
        pa.field("probability", pa.float64()),
    ]
)
"""The columns of every table; docs/simulation.md documents each."""
_ALLOWED: Final[Mapping[str, Sequence[str]]] = {
    "split": get_args(Split),
    "stage": STAGES,
    "finish_reason": ("", *get_args(FinishReason)),
}


class HarvestManifest(BaseModel):
    """How the answers of a harvest were generated and graded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    fingerprint: Fingerprint | RemoteFingerprint
    prompt: str
    max_new_tokens: int | None
    """None where the model's own arguments bound its answers."""
    versions: Mapping[str, str]
    questions: str
    """SHA-256 of the questions with their answers, hexadecimal."""
    judge: str
    """What graded the answers: the rules of `lab.grading`, or the import path of the user's own callable."""
    group_by: str | None = None
    """The column of the questions that, beside their texts, groups rows which depend on one another."""
    wordings: tuple[NamedWording, ...] = ()
    """Of which each question was put in one; empty where all were put as they are."""

    def tapped(self) -> Fingerprint:
        """Return the fingerprint of a model whose layers were tapped.

        Raises:
            FitError: the model is remote, so its layers weren't tapped.
        """
        if isinstance(self.fingerprint, RemoteFingerprint):
            raise FitError(
                f"the rows of {self.model!r} hold no maps, and there are no weights to run again: a model behind a "
                "network can't be tapped. `fit`, `score` and `recalibrate` work with such rows, this doesn't"
            )
        return self.fingerprint

    def wording(self, *, system: str, history: bool) -> Wording:
        """The wording of a row."""
        prompt = self.fingerprint.prompt if isinstance(self.fingerprint, Fingerprint) else ""
        return Wording(prompt=prompt, system=system, history=history)

    @property
    def layers(self) -> int:
        """Number of tapped layers; 0 of a remote model."""
        return self.fingerprint.layers if isinstance(self.fingerprint, Fingerprint) else 0


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AttemptTier(_Strict):
    """One tier of a table."""

    name: str = Field(min_length=1)
    bundle: str | None = None
    """Digest of the bundle that gave `uncertainty`; None where there is none, or it isn't known."""
    prompt_bundle: str | None = None
    """Digest of the bundle that gave `prompt_uncertainty`."""


class AttemptManifest(_Strict):
    """How the rows of a table came about; stored in the Parquet file's metadata."""

    version: Literal[1] = VERSION
    origin: Literal["harvest", "decisions", "verdicts"]
    """Labelled questions put to each tier, decisions of a guard, or only the attempts that people gave verdicts on."""
    tiers: tuple[AttemptTier, ...] = Field(min_length=1)
    """From small to large."""
    harvest: HarvestManifest | None = None
    """None in tables that hold no generated texts."""


def schema_of(manifest: AttemptManifest) -> pa.Schema:
    """Return the columns of a table with this manifest, and the manifest as their metadata."""
    fields = list(COLUMNS)
    if manifest.harvest is not None:
        layers = manifest.harvest.layers
        cells = pa.list_(pa.float32(), layers * layers)
        fields += [
            pa.field("text", pa.string(), nullable=False),
            pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
            pa.field("system", pa.string(), nullable=False),
            pa.field("history", pa.bool_(), nullable=False),
            *(pa.field(position, cells) for position in (POSITIONS if layers else ())),
        ]
    return pa.schema(fields, metadata={METADATA_KEY: manifest.model_dump_json()})


def parse_labels(text: str | None) -> Labels | None:
    """Parse labels as a table holds them.

    Raises:
        ValueError: the text isn't a JSON object of labels.
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


def check(table: pa.Table, manifest: AttemptManifest, path: str) -> None:
    """Check a table against its schema.

    Raises:
        AttemptsError: it doesn't fit; the message names all wrong columns, or else the first row of each kind of
            mistake.
    """
    problems = list(_column_problems(table, schema_of(manifest)))
    if not problems and not table.num_rows:
        problems = ["there are no rows"]
    problems = problems or [*_value_problems(table, manifest), *_request_problems(table)]
    if problems:
        raise AttemptsError("\n".join(f"{path}: {problem}" for problem in problems))


def _column_problems(table: pa.Table, schema: pa.Schema) -> Iterator[str]:
    for name, times in Counter(table.schema.names).items():
        if times > 1:
            yield f"the column {name!r} stands twice"
            return
    for field in schema:
        if field.name not in table.schema.names:
            yield f"the column {field.name!r} ({field.type}) is missing"
        elif (got := table.schema.field(field.name).type) != field.type:
            yield f"the column {field.name!r} must be of type {field.type}, got {got}"
        elif not field.nullable and (nulls := table[field.name].null_count):
            yield f"the column {field.name!r} has no value in {nulls} rows"
    if unknown := sorted(set(table.schema.names) - set(schema.names)):
        yield f"there is no column {unknown[0]!r} in this table of attempts; take it out"


def _value_problems(table: pa.Table, manifest: AttemptManifest) -> Iterator[str]:
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
    # A harvest keeps what a tapped model gave, even an overflow, which `fit` refuses.
    for name in STATISTICS if manifest.harvest is None else ():
        yield from refused(name, pc.invert(pc.is_finite(table[name])), "a finite number, or null")
    for name, allowed in {**_ALLOWED, "tier": [tier.name for tier in manifest.tiers]}.items():
        yield from refused(name, pc.invert(pc.is_in(table[name], pa.array(allowed))), f"one of {list(allowed)!r}")
    if manifest.harvest is not None:
        yield from refused("wrong", pc.is_null(table["wrong"]), "true or false in a harvest")
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
    for name in ("labels", "prompt_length", "group"):
        codes = table[name].combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy()
        of_request = np.zeros(requests, dtype=np.int64)
        of_request[of] = codes
        if (differs := of_request[of] != codes).any():
            row = int(np.argmax(differs))
            yield f"{name!r} is a request's, and differs between the tiers of the id {table['id'][row].as_py()!r:.60}"


def _are_labels(text: str) -> bool:
    try:
        parse_labels(text)
    except (ValueError, RecursionError):
        return False
    return True
