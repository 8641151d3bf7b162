"""The observation file: beside a harvest, what one more pass over each of its answers showed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Float64
from pydantic import BaseModel, ConfigDict

from ilis_guard.errors import FitError
from ilis_guard.lab.harvest import Manifest
from ilis_guard.types import Site

METADATA_KEY: Final = b"ilis_guard_observations"
SITES: Final[tuple[Site, ...]] = ("mlp", "residual")
UNIT: Final[Mapping[Site, float]] = {"mlp": 1.0, "residual": 16.0}
"""What activations are kept in: float16 ends at 65504, and Gemma 3's residual stream goes on."""
SCORES: Final = ("neg_logprob_sum", "perplexity", "entropy_mean", "margin", "self_certainty", "rauq", "p_true")
"""Columns of unsupervised scores, higher for more uncertain; `unsupervised` and `p_true` say how they come about."""


class ObservationManifest(BaseModel):
    """How rows were observed; it stands in the Parquet file's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    harvest: Manifest
    """The harvest's own: its model is the one that ran again."""
    harvest_sha256: str
    """Of the harvest's file, hexadecimal."""
    rauq_alpha: float
    p_true_prompt: str
    versions: Mapping[str, str]
    """Of what ran now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What was observed, a row for each answered row of the harvest, in its order."""

    manifest: ObservationManifest
    ids: tuple[str, ...]
    scores: Mapping[str, Float64[np.ndarray, " rows"]]
    activations: Mapping[Site, Float16[np.ndarray, "rows layers hidden"]]
    """In their site's `UNIT`."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def observation_schema(manifest: ObservationManifest) -> pa.Schema:
    """The columns, and the manifest with them."""
    fingerprint = manifest.harvest.tapped()
    cells = fingerprint.layers * fingerprint.hidden
    fields = [
        pa.field("id", pa.string(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in SCORES),
        *(pa.field(site, pa.list_(pa.float16(), cells), nullable=False) for site in SITES),
    ]
    return pa.schema(fields).with_metadata({METADATA_KEY: manifest.model_dump_json()})


def observation_table(rows: Sequence[Mapping[str, Any]], manifest: ObservationManifest) -> pa.Table:
    """Rows as a table; each holds its id, its scores, and its activations as arrays of layers and hidden."""
    schema = observation_schema(manifest)
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ("id", *SCORES)}
    for site in SITES:
        flat = np.concatenate([row[site].ravel() for row in rows])
        columns[site] = pa.FixedSizeListArray.from_arrays(pa.array(flat), schema.field(site).type.list_size)
    return pa.table(columns, schema=schema)


def read_observations(path: Path) -> Observations:
    """Read an observation file.

    Raises:
        FitError: it isn't one.
    """
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        manifest = ObservationManifest.model_validate_json((table.schema.metadata or {})[METADATA_KEY])
        table = table.select(observation_schema(manifest).names).cast(observation_schema(manifest))
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _no_observations(path, error) from error
    fingerprint = manifest.harvest.tapped()
    shape = (table.num_rows, fingerprint.layers, fingerprint.hidden)
    return Observations(
        manifest=manifest,
        ids=tuple(table["id"].to_pylist()),
        scores={name: table[name].to_numpy() for name in SCORES},
        activations={site: table[site].combine_chunks().flatten().to_numpy().reshape(shape) for site in SITES},
    )


def read_observation_manifest(path: Path) -> ObservationManifest:
    """How what stands in an observation file came about.

    Raises:
        FitError: it isn't one.
    """
    try:
        return ObservationManifest.model_validate_json((pq.read_schema(path).metadata or {})[METADATA_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _no_observations(path, error) from error


def _no_observations(path: Path, error: Exception) -> FitError:
    return FitError(f"{str(path)!r} isn't a file of observations: {type(error).__name__}: {error}")
