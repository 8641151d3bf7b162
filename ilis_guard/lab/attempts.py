"""The table of attempts, which `harvest` and `score` write and `fit`, `evaluate`, `recalibrate` and `simulate` read.

A row is one tier's attempt at one request. A table that `harvest` wrote also holds what the model generated and the
maps of its layers; no other table holds texts. What isn't known is null, and never made up.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float16, Float32, Float64, Int64
from pydantic import ValidationError

from ilis_guard.errors import AttemptsError, FitError
from ilis_guard.lab.attempt_schema import COLUMNS, METADATA_KEY, AttemptManifest, HarvestManifest, check, schema_of
from ilis_guard.lab.storage import write_table
from ilis_guard.scoring.typicality import statistics_columns, typicality_columns
from ilis_guard.types import (
    POSITIONS,
    STATISTICS,
    Generation,
    Position,
    Site,
    Stage,
    Statistic,
    Statistics,
    Wording,
)

Mask = Bool[np.ndarray, " rows"]
_REMEDY: Final = "make a table of attempts with `ilis-guard harvest` or `ilis-guard score`"
DATASET: Final = "dataset"
"""The label that harvested answers have: the name of their questions' dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Labelled answers of one model, in columns. Rows without a scored answer aren't among them."""

    manifest: HarvestManifest
    ids: np.ndarray
    """Strings."""
    datasets: np.ndarray
    """Strings."""
    wrong: Mask
    signatures: Mapping[Position, Float32[np.ndarray, "rows layers layers"]]
    """Empty where the model can't be tapped."""
    statistics: Float64[np.ndarray, "rows statistics"]
    """Columns in the order of `known`."""
    known: tuple[Statistic, ...] = STATISTICS
    """The output statistics that there are; of a remote model, those that its log-probabilities give."""
    probability: Float64[np.ndarray, " rows"] | None = None
    """With which each row's request was chosen from the traffic; None where that isn't known of all rows."""
    wordings: np.ndarray | None = None
    """Each row's `Wording`; None where all were put alone, in the tier's own."""
    groups: np.ndarray | None = None
    """Strings: rows with the same one depend on one another, as the table says; None where it doesn't say."""
    owners: np.ndarray | None = None
    """Strings: rows with the same one have one owner, by a column of the table; None where no column was named, of all
    rows or of those of one harvest among several."""
    group_by: str | None = None
    """The column that groups rows beside their texts and features."""
    unanswered: int = 0
    """Rows left out because the model generated nothing that could be scored."""
    unsupervised: Mapping[str, Float64[np.ndarray, " rows"]] | None = None
    """Scores by name, higher for more uncertain; None where the answers weren't observed."""
    activations: Mapping[Site, Float16[np.ndarray, "rows layers hidden"]] | None = None
    """At the last answer token, in the `UNIT` of observations; None where the answers weren't observed."""
    lens: Float32[np.ndarray, "rows sites layers"] | None = None
    """At the last answer token, entropies through the logit lens; None where the answers weren't observed."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def layers(self) -> int:
        """Number of layers of the maps; 0 where there are none."""
        return self.manifest.layers

    def row_wordings(self) -> np.ndarray:
        """Each row's `Wording`."""
        if self.wordings is not None:
            return self.wordings
        return _objects([self.manifest.wording(system="", history=False)] * len(self))

    def typicality_columns(self, stage: Stage) -> Float64[np.ndarray, "rows columns"]:
        """Return what typicality compares of each row: its maps, or, without maps, its output statistics."""
        return typicality_columns(self.signatures, stage) if self.signatures else statistics_columns(self.statistics)

    def take(self, which: Mask | Int64[np.ndarray, " taken"]) -> Self:
        """Select rows by a mask or by their indices."""
        return replace(
            self,
            ids=self.ids[which],
            datasets=self.datasets[which],
            wrong=self.wrong[which],
            signatures={position: maps[which] for position, maps in self.signatures.items()},
            statistics=self.statistics[which],
            probability=None if self.probability is None else self.probability[which],
            wordings=None if self.wordings is None else self.wordings[which],
            groups=None if self.groups is None else self.groups[which],
            owners=None if self.owners is None else self.owners[which],
            unsupervised=None if self.unsupervised is None else {k: of[which] for k, of in self.unsupervised.items()},
            activations=None if self.activations is None else {k: of[which] for k, of in self.activations.items()},
            lens=None if self.lens is None else self.lens[which],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptTable:
    """Attempts with their manifest."""

    manifest: AttemptManifest
    table: pa.Table
    """With the columns of `schema_of`."""

    @classmethod
    def of_rows(cls, manifest: AttemptManifest, rows: Sequence[Mapping[str, Any]]) -> Self:
        """Build a table from rows by column name; missing columns are null."""
        return cls(manifest=manifest, table=pa.Table.from_pylist(list(rows), schema=schema_of(manifest)))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def harvest(self) -> HarvestManifest:
        """The manifest of harvested answers.

        Raises:
            FitError: the table holds no answers.
        """
        if self.manifest.harvest is None:
            raise FitError("the table holds scored attempts without their answers; give one that `harvest` wrote")
        return self.manifest.harvest

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows with the columns that every table has."""
        rows: list[dict[str, Any]] = self.table.select(COLUMNS.names).to_pylist()
        return rows

    def answers(self, group_by: str | None = None) -> Answers:
        """Return the answers that can be scored, in columns.

        Args:
            group_by: a column of texts whose equal values mean that rows depend on one another, or the one that the
                questions were grouped by when they were harvested.

        Raises:
            FitError: the table holds no answers, or no such column without gaps.
        """
        manifest = self.harvest
        is_grouped = group_by in (None, manifest.group_by)
        layers = manifest.layers
        positions, known = (POSITIONS, STATISTICS) if layers else ((), self._known_statistics())
        is_scored = reduce(pc.and_, (pc.is_valid(self.table[name]) for name in ("wrong", *known, *positions)))
        scored = self.table.filter(is_scored)
        return Answers(
            manifest=manifest,
            # Python's strings: numpy's own drop null characters at their end.
            ids=np.array(scored["id"].to_pylist(), dtype=object),
            datasets=np.array(scored["dataset"].to_pylist(), dtype=np.str_),
            wrong=scored["wrong"].to_numpy(zero_copy_only=False).astype(bool),
            signatures={position: _maps(scored[position], layers) for position in positions},
            statistics=np.column_stack([scored[name].to_numpy() for name in known]),
            probability=None if scored["probability"].null_count else scored["probability"].to_numpy(),
            unanswered=len(self) - scored.num_rows,
            known=known,
            wordings=_objects(_wordings(manifest, scored)),
            groups=np.array(scored["group"].to_pylist(), dtype=object),
            owners=None if is_grouped else self._owners(str(group_by))[is_scored.to_numpy()],
            group_by=group_by or manifest.group_by,
        )

    def generations(self) -> Iterator[tuple[str, Generation]]:
        """Return every answer with its id, as the model generated it.

        Their `seconds` are 0: a batch doesn't show how long one answer takes alone.

        Raises:
            FitError: the table holds no answers.
        """
        layers = self.harvest.layers
        maps = {position: self.table[position].combine_chunks() for position in (POSITIONS if layers else ())}
        for index, row in enumerate(self.table.drop_columns(list(maps)).to_pylist()):
            flat = {position: column[index].values for position, column in maps.items()}
            yield (
                row["id"],
                Generation(
                    text=row["text"],
                    tokens=row["tokens"],
                    prompt_tokens=row["prompt_tokens"],
                    finish_reason=row["finish_reason"] or None,
                    seconds=0.0,
                    token_ids=tuple(row["token_ids"]),
                    signatures={
                        position: values.to_numpy().reshape(layers, layers)
                        for position, values in flat.items()
                        if values is not None
                    },
                    statistics=_statistics([row[name] for name in STATISTICS]),
                ),
            )

    def wordings(self) -> list[Wording]:
        """Return each row's wording.

        Raises:
            FitError: the table holds no answers.
        """
        return _wordings(self.harvest, self.table)

    def texts(self) -> dict[str, str]:
        """Return the answers' texts by id.

        Raises:
            FitError: the table holds no answers.
        """
        assert self.harvest
        return dict(zip(self.table["id"].to_pylist(), self.table["text"].to_pylist(), strict=True))

    def _owners(self, column: str) -> np.ndarray:
        texts = [name for name in COLUMNS.names if COLUMNS.field(name).type == pa.string()]
        if column not in texts:
            raise FitError(
                f"there is no column {column!r:.60} of texts to group by; the table has {texts!r}. A column of the "
                f"questions is kept where they are harvested: ilis-guard harvest --group-by {column!s:.60}"
            )
        values = self.table[column].to_pylist()
        if empty := sum(not value for value in values):
            raise FitError(f"the column {column!r} is empty in {empty} of {len(values)} rows: nothing groups these")
        return np.array(values, dtype=object)

    def _known_statistics(self) -> tuple[Statistic, ...]:
        """The output statistics that any row has; all of them where no row has any."""
        return tuple(name for name in STATISTICS if self.table[name].null_count < len(self)) or STATISTICS


def write_attempts(path: Path, attempts: AttemptTable) -> None:
    """Write a table; the file appears when it is complete.

    Raises:
        AttemptsError: the rows don't fit the schema.
        OSError: the file can't be written.
    """
    check(attempts.table, attempts.manifest, str(path))
    write_table(attempts.table.replace_schema_metadata(schema_of(attempts.manifest).metadata), path)


def read_attempts(path: Path) -> AttemptTable:
    """Read a table and check all of it.

    Raises:
        AttemptsError: the file isn't a table of attempts, or a row is wrong; the message names the first such row.
    """
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else "isn't a Parquet file"
        raise AttemptsError(f"{path}: {what}; {_REMEDY}") from error
    attempts = AttemptTable(manifest=_manifest(path, table.schema.metadata or {}), table=table)
    check(attempts.table, attempts.manifest, str(path))
    return attempts


def read_answers(paths: Sequence[Path], *, group_by: str | None = None, any_prompt: bool = False) -> Answers:
    """Read several harvests of one model as one set of rows, in the order of the files.

    Args:
        paths: of the files.
        group_by: as `AttemptTable.answers`.
        any_prompt: accept harvests whose tiers differ in `prompt`, and then the same question in each of them.

    Raises:
        AttemptsError: a file isn't a table of attempts.
        FitError: a file wasn't harvested, the models differ or give other statistics, or an id occurs twice.
    """
    if not paths:
        raise FitError("there are no rows without a harvest: name at least one file")
    parts = [read_attempts(path).answers(group_by) for path in paths]
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if differing := [name for name in _differences(first, part) if not (any_prompt and name == "prompt")]:
            raise FitError(
                f"{str(paths[0])!r} and {str(path)!r} are harvests of different models: they differ in "
                f"{', '.join(differing)}; read each by itself"
            )
    ids = np.concatenate([part.ids for part in parts])
    wordings = np.concatenate([part.row_wordings() for part in parts])
    keys = zip(ids.tolist(), wordings.tolist() if any_prompt else ids.tolist(), strict=True)
    if repeated := [id_ for (id_, _), times in Counter(keys).items() if times > 1]:
        raise FitError(
            f"{len(repeated)} ids come twice in {', '.join(repr(str(path)) for path in paths)}, such as "
            f"{repeated[0]!r:.60}"
        )
    return replace(
        first,
        ids=ids,
        datasets=np.concatenate([part.datasets for part in parts]),
        wrong=np.concatenate([part.wrong for part in parts]),
        signatures={name: np.concatenate([part.signatures[name] for part in parts]) for name in first.signatures},
        statistics=np.concatenate([part.statistics for part in parts]),
        probability=None,  # chances of several draws aren't those of one
        wordings=wordings,
        groups=np.concatenate([part.groups for part in parts if part.groups is not None]),
        owners=np.concatenate([_objects([None] * len(part)) if part.owners is None else part.owners for part in parts]),
        group_by=next((part.group_by for part in parts if part.group_by is not None), None),
        unanswered=sum(part.unanswered for part in parts),
    )


def _differences(first: Answers, other: Answers) -> list[str]:
    """Names of what two harvests of one model can't differ in."""
    own = {"max_new_tokens": first.manifest.max_new_tokens, "statistics": first.known}
    others = {"max_new_tokens": other.manifest.max_new_tokens, "statistics": other.known}
    return [
        *first.manifest.fingerprint.differences(other.manifest.fingerprint),
        *(name for name in own if own[name] != others[name]),
    ]


def _manifest(path: Path, metadata: Mapping[bytes, bytes]) -> AttemptManifest:
    if METADATA_KEY not in metadata:
        raise AttemptsError(
            f"{path}: isn't a table of attempts: there is no {METADATA_KEY.decode()!r} in its metadata; {_REMEDY}"
        )
    try:
        return AttemptManifest.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AttemptsError(f"{path}: its manifest is wrong at {where!r}: {first['msg']}; {_REMEDY}") from error


def _wordings(manifest: HarvestManifest, rows: pa.Table) -> list[Wording]:
    columns = zip(rows["system"].to_pylist(), rows["history"].to_pylist(), strict=True)
    return [manifest.wording(system=system, history=history) for system, history in columns]


def _objects(values: Sequence[object]) -> np.ndarray:
    """An array of objects, which numpy would take apart."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _maps(column: pa.ChunkedArray, layers: int) -> Float32[np.ndarray, "rows layers layers"]:
    maps: Float32[np.ndarray, "rows layers layers"] = column.combine_chunks().flatten().to_numpy()
    return maps.reshape(-1, layers, layers)


def _statistics(values: Sequence[float | None]) -> Statistics | None:
    if all(value is None for value in values):
        return None
    known = (math.nan if value is None else value for value in values)
    return Statistics(**dict(zip(STATISTICS, known, strict=True)))
