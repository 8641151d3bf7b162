"""Harvest: run a model over labelled questions and keep what was seen inside it, with whether it was right."""

import hashlib
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Float64
from pydantic import BaseModel, ConfigDict

from ilis_guard.errors import FitError, QuestionError
from ilis_guard.lab.judging import RULES, Judge, judged
from ilis_guard.lab.matching import is_correct
from ilis_guard.lab.questions import Question
from ilis_guard.lab.unfinished import Unfinished
from ilis_guard.types import POSITIONS, Fingerprint, Generation, Message, Position, Statistics

STATISTICS: Final = Statistics.__slots__
METADATA_KEY: Final = b"ilis_guard"
TOKEN_IDS: Final = "token_ids"  # noqa: S105 - no password
"""The column of what was generated, up to the end token: other methods read the very same answer again."""
RECORDED_VERSIONS: Final = ("ilis-guard", "torch", "transformers", "bitsandbytes")

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Told (questions done, questions in all)."""


class TappedModel(Protocol):
    """A local model: it answers in batches and shows its signatures."""

    fingerprint: Fingerprint
    prompt: str
    max_new_tokens: int

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation]:
        """Answer several conversations."""


class Manifest(BaseModel):
    """How rows were harvested; it stands in the Parquet file's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    fingerprint: Fingerprint
    prompt: str
    max_new_tokens: int
    versions: Mapping[str, str]
    questions: str = ""
    """Digest of the questions with their answers, hexadecimal; empty in files from before it was kept."""
    judge: str = RULES
    """Who said what is right: the rules of `lab.matching`, or the path of a user's own callable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """Harvested rows. Rows without a scored answer (nothing was generated) aren't among them."""

    manifest: Manifest
    ids: tuple[str, ...]
    datasets: tuple[str, ...]
    wrong: Bool[np.ndarray, " rows"]
    signatures: Mapping[Position, Float32[np.ndarray, "rows layers layers"]]
    statistics: Float64[np.ndarray, "rows statistics"]
    """Columns in the order of `Statistics`."""
    unanswered: int
    """Rows left out because the model generated nothing that could be scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestedRow:
    """One harvested row, as the model said it."""

    id: str
    correct: bool
    generation: Generation
    """Its `seconds` say nothing: batches don't tell what one answer takes alone."""


def harvest(
    model: TappedModel,
    questions: Sequence[Question],
    path: Path,
    *,
    name: str,
    batch_size: int = 32,
    judge: Judge = is_correct,
    judged_by: str = RULES,
    progress: Progress = lambda _done, _all: None,
) -> Manifest:
    """Ask a model all questions and write one Parquet row each; the file appears when it is complete.

    Each batch is on disk before the next is asked. A run that was stopped, killed or failed is gone on with by calling
    it again: what was harvested isn't asked again.

    Args:
        model: asked as its tier says, in batches of questions of like length.
        questions: labelled.
        path: the Parquet file.
        name: what the model is called in the manifest.
        batch_size: questions a forward pass.
        judge: says whether an answer is right.
        judged_by: what the judge is called in the manifest.
        progress: told at first, and after each batch.

    Raises:
        QuestionError: two questions have the same id, or the judge failed.
        FitError: an unfinished harvest stands beside the file, and was made otherwise.
        OSError: the file can't be written; as far as can be told, that is said before anything is asked.
        ModelError: the model failed on a batch.
        SignatureError: an activation is missing or not finite.
    """
    _check_ids(questions)
    manifest = Manifest(
        model=name,
        fingerprint=model.fingerprint,
        prompt=model.prompt,
        max_new_tokens=model.max_new_tokens,
        versions=recorded_versions(),
        questions=questions_digest(questions),
        judge=judged_by,
    )
    schema = _schema(model.fingerprint.layers).with_metadata({METADATA_KEY: manifest.model_dump_json()})
    unfinished = Unfinished(path, schema)
    done = unfinished.begin()
    left = [asked for asked in questions if asked.id not in done]
    progress(len(done), len(questions))
    try:
        for batch in _batches(left, batch_size):
            answers = model.generate_batch([[Message(role="user", content=asked.prompt())] for asked in batch])
            rows = [_row(asked, answer, judge=judge) for asked, answer in zip(batch, answers, strict=True)]
            unfinished.add(pa.Table.from_pylist(rows, schema=schema))
            done = done.union(asked.id for asked in batch)
            progress(len(done), len(questions))
        unfinished.finish([asked.id for asked in questions])
    finally:
        unfinished.drop_if_empty()
    return manifest


def read_harvest(path: Path) -> Harvest:
    """Read a harvested Parquet file.

    Raises:
        FitError: it isn't one.
    """
    return _read(path, _harvest)


def read_rows(path: Path) -> tuple[Manifest, tuple[HarvestedRow, ...]]:
    """Read a harvested Parquet file row by row, with the rows that have no scored answer.

    Raises:
        FitError: it isn't one.
    """
    return _read(path, lambda table, manifest: (manifest, tuple(_harvested(table, manifest))))


def read_manifest(path: Path) -> Manifest:
    """How the rows of a harvested Parquet file came about.

    Raises:
        FitError: it isn't one.
    """
    try:
        return Manifest.model_validate_json((pq.read_schema(path).metadata or {})[METADATA_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _no_harvest(path, error) from error


def read_texts(path: Path) -> Mapping[str, str]:
    """What was answered, by row id.

    Raises:
        FitError: it isn't a file of harvested rows.
    """
    try:
        table = pq.read_table(path, columns=["id", "text"])
        return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise _no_harvest(path, error) from error


def _no_harvest(path: Path, error: Exception) -> FitError:
    return FitError(f"{str(path)!r} isn't a file of harvested rows: {type(error).__name__}: {error}")


def _read(path: Path, build: Callable[[pa.Table, Manifest], T]) -> T:
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        manifest = Manifest.model_validate_json((table.schema.metadata or {})[METADATA_KEY])
        schema = _schema(manifest.fingerprint.layers)
        if TOKEN_IDS not in table.column_names:  # harvested before they were kept
            table = table.append_column(schema.field(TOKEN_IDS), pa.nulls(table.num_rows, schema.field(TOKEN_IDS).type))
        return build(table.select(schema.names).cast(schema), manifest)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _no_harvest(path, error) from error


def _harvest(table: pa.Table, manifest: Manifest) -> Harvest:
    layers = manifest.fingerprint.layers
    scored = table.drop_columns([TOKEN_IDS]).drop_null()
    return Harvest(
        manifest=manifest,
        ids=tuple(scored["id"].to_pylist()),
        datasets=tuple(scored["dataset"].to_pylist()),
        wrong=~scored["correct"].to_numpy(zero_copy_only=False),
        signatures={
            position: scored[position].combine_chunks().flatten().to_numpy().reshape(-1, layers, layers)
            for position in POSITIONS
        },
        statistics=np.column_stack([scored[name].to_numpy() for name in STATISTICS]),
        unanswered=table.num_rows - scored.num_rows,
    )


def _harvested(table: pa.Table, manifest: Manifest) -> Iterator[HarvestedRow]:
    shape = (manifest.fingerprint.layers, manifest.fingerprint.layers)
    maps = {position: table[position].combine_chunks() for position in POSITIONS}
    for index, row in enumerate(table.drop_columns(list(POSITIONS)).to_pylist()):
        flat = {position: column[index].values for position, column in maps.items()}
        statistics = {name: row[name] for name in STATISTICS}
        yield HarvestedRow(
            id=row["id"],
            correct=row["correct"],
            generation=Generation(
                text=row["text"],
                tokens=row["tokens"],
                prompt_tokens=row["prompt_tokens"],
                finish_reason=row["finish_reason"],
                seconds=0.0,
                token_ids=tuple(row[TOKEN_IDS] or ()),
                signatures={
                    position: values.to_numpy().reshape(shape)
                    for position, values in flat.items()
                    if values is not None
                },
                statistics=None if None in statistics.values() else Statistics(**statistics),
            ),
        )


def _batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Questions of like length together, so that little is padded.

    The longest come first: a batch that is too large for the memory fails at once.
    """
    ordered = sorted(questions, key=lambda asked: len(asked.prompt()), reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _row(asked: Question, answer: Generation, *, judge: Judge) -> dict[str, Any]:
    statistics = dict.fromkeys(STATISTICS) if answer.statistics is None else answer.statistics.to_dict()
    return {
        "id": asked.id,
        "dataset": asked.dataset,
        "text": answer.text,
        "correct": judged(judge, asked, answer.text),
        "tokens": answer.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "finish_reason": answer.finish_reason,
        TOKEN_IDS: answer.token_ids,
        **statistics,
        **{position: _flat(answer, position) for position in POSITIONS},
    }


def _flat(answer: Generation, position: Position) -> Float32[np.ndarray, " cells"] | None:
    signature = answer.signatures.get(position)
    return None if signature is None else signature.ravel()


def _schema(layers: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("dataset", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("correct", pa.bool_(), nullable=False),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("prompt_tokens", pa.int32(), nullable=False),
            pa.field("finish_reason", pa.string(), nullable=False),
            pa.field(TOKEN_IDS, pa.list_(pa.int32())),
            *(pa.field(name, pa.float64()) for name in STATISTICS),
            *(pa.field(position, pa.list_(pa.float32(), layers * layers)) for position in POSITIONS),
        ]
    )


def _check_ids(questions: Sequence[Question]) -> None:
    if repeated := sorted(id_ for id_, times in Counter(asked.id for asked in questions).items() if times > 1):
        raise QuestionError(
            f"{len(repeated)} ids are given to several questions, such as {repeated[0]!r:.60}; make them unique"
        )


def questions_digest(questions: Sequence[Question]) -> str:
    """What a manifest says of the questions: SHA-256 of them with their answers, in their order, hexadecimal."""
    lines = "\n".join(asked.model_dump_json() for asked in questions)
    return hashlib.sha256(lines.encode()).hexdigest()


def recorded_versions() -> dict[str, str]:
    """Of what runs here, by package."""
    return {package: _version(package) for package in RECORDED_VERSIONS} | {"python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
