"""Harvest: run a model over labelled questions and keep what was seen inside it, with whether it was right."""

import hashlib
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Float64
from pydantic import BaseModel, ConfigDict

from ilis_guard.errors import FitError, ModelError, QuestionError
from ilis_guard.lab.answering import HarvestedModel, check_told, check_whole
from ilis_guard.lab.judging import RULES, Judge, judged
from ilis_guard.lab.matching import is_correct
from ilis_guard.lab.questions import Question
from ilis_guard.lab.unfinished import Unfinished
from ilis_guard.scoring.typicality import profile, statistics_profile
from ilis_guard.types import (
    POSITIONS,
    STATISTICS,
    Fingerprint,
    Generation,
    Message,
    Position,
    RemoteFingerprint,
    Stage,
    Statistic,
    Statistics,
)

METADATA_KEY: Final = b"ilis_guard"
TOKEN_IDS: Final = "token_ids"  # noqa: S105 - no password
"""The column of what was generated, up to the end token: other methods read the very same answer again."""
GIVEN_UP_AFTER: Final = 20
"""So many answers in a row that can't be had: nothing comes any more, and the rest isn't asked for."""
RECORDED_VERSIONS: Final = ("ilis-guard", "torch", "transformers", "bitsandbytes")

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Told (questions done, questions in all)."""


class Manifest(BaseModel):
    """How rows were harvested; it stands in the Parquet file's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    fingerprint: Fingerprint | RemoteFingerprint
    prompt: str
    max_new_tokens: int | None
    """None where the model's own arguments bound its answers."""
    versions: Mapping[str, str]
    questions: str = ""
    """Digest of the questions with their answers, hexadecimal; empty in files from before it was kept."""
    judge: str = RULES
    """Who said what is right: the rules of `lab.matching`, or the path of a user's own callable."""

    def tapped(self) -> Fingerprint:
        """The fingerprint of a model that was tapped.

        Raises:
            FitError: this one wasn't.
        """
        if isinstance(self.fingerprint, RemoteFingerprint):
            raise FitError(
                f"the rows of {self.model!r} hold no maps, and there are no weights to run again: a model behind a "
                "network can't be tapped. `fit`, `score` and `recalibrate` work with such rows, this doesn't"
            )
        return self.fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """Harvested rows. Rows without a scored answer (nothing was generated) aren't among them."""

    manifest: Manifest
    ids: tuple[str, ...]
    datasets: tuple[str, ...]
    wrong: Bool[np.ndarray, " rows"]
    signatures: Mapping[Position, Float32[np.ndarray, "rows layers layers"]]
    """Empty where the model can't be tapped."""
    statistics: Float64[np.ndarray, "rows statistics"]
    """Columns in the order of `known`."""
    unanswered: int
    """Rows left out because the model generated nothing that could be scored."""
    known: tuple[Statistic, ...] = STATISTICS
    """The output statistics that there are; of a model that can't be tapped, those that its logprobs told."""

    @property
    def layers(self) -> int:
        """Of the maps; 0 where there are none."""
        return next((maps.shape[-1] for maps in self.signatures.values()), 0)

    def profiles(self, stage: Stage) -> Float64[np.ndarray, "rows profile"]:
        """What typicality compares of each row: its maps, or, where there are none, its output statistics."""
        return profile(self.signatures, stage) if self.signatures else statistics_profile(self.statistics)


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestedRow:
    """One harvested row, as the model said it."""

    id: str
    correct: bool
    generation: Generation
    """Its `seconds` say nothing: batches don't tell what one answer takes alone."""


def harvest(
    model: HarvestedModel,
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
    it again: what was harvested isn't asked again. Where some answers can't be had, the others are asked for before
    that is said.

    Args:
        model: asked as its tier says, in batches of questions of like length.
        questions: labelled.
        path: the Parquet file.
        name: what the model is called in the manifest.
        batch_size: questions asked together.
        judge: says whether an answer is right.
        judged_by: what the judge is called in the manifest.
        progress: told at first, and after each batch.

    Raises:
        QuestionError: two questions have the same id, or the judge failed.
        FitError: an unfinished harvest stands beside the file, and was made otherwise; or the model can't be tapped,
            and its replies hold no logprobs.
        OSError: the file can't be written; as far as can be told, that is said before anything is asked.
        ModelError: the model failed on a batch, or some of its answers couldn't be had.
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
    schema = _schema(model.fingerprint).with_metadata({METADATA_KEY: manifest.model_dump_json()})
    unfinished = Unfinished(path, schema)
    done = unfinished.begin()
    left = [asked for asked in questions if asked.id not in done]
    missing: dict[str, ModelError] = {}
    in_a_row = 0
    progress(len(done), len(questions))
    try:
        for batch in _batches(left, batch_size):
            answers = model.generate_batch([[Message(role="user", content=asked.prompt())] for asked in batch])
            said = {asked.id: answer for asked, answer in zip(batch, answers, strict=True)}
            failed = {id_: answer for id_, answer in said.items() if isinstance(answer, ModelError)}
            missing |= failed
            if len(failed) == len(batch):
                in_a_row += len(failed)
                if in_a_row >= GIVEN_UP_AFTER:
                    break
                continue
            in_a_row = 0
            check_told(model.fingerprint, said.values())
            rows = [
                _row(asked, answer, judge=judge)
                for asked in batch
                if not isinstance(answer := said[asked.id], ModelError)
            ]
            unfinished.add(pa.Table.from_pylist(rows, schema=schema))
            done = done.union(said.keys() - failed.keys())
            progress(len(done), len(questions))
        check_whole(missing)
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
        schema = _schema(manifest.fingerprint)
        if TOKEN_IDS not in table.column_names:  # harvested before they were kept
            table = table.append_column(schema.field(TOKEN_IDS), pa.nulls(table.num_rows, schema.field(TOKEN_IDS).type))
        return build(table.select(schema.names).cast(schema), manifest)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _no_harvest(path, error) from error


def _harvest(table: pa.Table, manifest: Manifest) -> Harvest:
    layers = _layers(manifest.fingerprint)
    positions, known = (POSITIONS, STATISTICS) if layers else ((), _known(table))
    scored = table.select(["id", "dataset", "correct", *known, *positions]).drop_null()
    return Harvest(
        manifest=manifest,
        ids=tuple(scored["id"].to_pylist()),
        datasets=tuple(scored["dataset"].to_pylist()),
        wrong=~scored["correct"].to_numpy(zero_copy_only=False),
        signatures={position: _maps(scored[position], layers) for position in positions},
        statistics=np.column_stack([scored[name].to_numpy() for name in known]),
        unanswered=table.num_rows - scored.num_rows,
        known=known,
    )


def _known(table: pa.Table) -> tuple[Statistic, ...]:
    """The output statistics that any row has; where none has any, there are no rows that it could matter to."""
    return tuple(name for name in STATISTICS if table[name].null_count < table.num_rows) or STATISTICS


def _maps(column: pa.ChunkedArray, layers: int) -> Float32[np.ndarray, "rows layers layers"]:
    maps: Float32[np.ndarray, "rows layers layers"] = column.combine_chunks().flatten().to_numpy()
    return maps.reshape(-1, layers, layers)


def _harvested(table: pa.Table, manifest: Manifest) -> Iterator[HarvestedRow]:
    layers = _layers(manifest.fingerprint)
    maps = {position: table[position].combine_chunks() for position in POSITIONS} if layers else {}
    for index, row in enumerate(table.drop_columns(list(POSITIONS)).to_pylist()):
        flat = {position: column[index].values for position, column in maps.items()}
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
                    position: values.to_numpy().reshape(layers, layers)
                    for position, values in flat.items()
                    if values is not None
                },
                statistics=_statistics([row[name] for name in STATISTICS]),
            ),
        )


def _statistics(told: Sequence[float | None]) -> Statistics | None:
    if all(value is None for value in told):
        return None
    values = (math.nan if value is None else value for value in told)
    return Statistics(**dict(zip(STATISTICS, values, strict=True)))


def _batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Questions of like length together, so that little is padded.

    The longest come first: a batch that is too large for the memory fails at once.
    """
    ordered = sorted(questions, key=lambda asked: len(asked.prompt()), reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _row(asked: Question, answer: Generation, *, judge: Judge) -> dict[str, Any]:
    statistics = {} if answer.statistics is None else answer.statistics.to_dict()
    if not answer.signatures:  # what logprobs don't tell; of a tapped model, it is an overflow, which `fit` refuses
        statistics = {name: value for name, value in statistics.items() if not math.isnan(value)}
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


def _layers(fingerprint: Fingerprint | RemoteFingerprint) -> int:
    """0 where the model can't be tapped."""
    return fingerprint.layers if isinstance(fingerprint, Fingerprint) else 0


def _schema(fingerprint: Fingerprint | RemoteFingerprint) -> pa.Schema:
    layers = _layers(fingerprint)
    cells = pa.list_(pa.float32(), layers * layers) if layers else pa.null()
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
            *(pa.field(position, cells) for position in POSITIONS),
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
