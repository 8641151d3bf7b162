"""The observation file: what one more forward pass over each harvested answer gives, for the baselines."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Float32, Float64
from pydantic import BaseModel, ConfigDict

from ilis_guard.errors import FitError
from ilis_guard.lab.attempt_schema import HarvestManifest
from ilis_guard.lab.attempts import Answers
from ilis_guard.types import Site

METADATA_KEY: Final = b"ilis_guard_observations"
SITES: Final[tuple[Site, ...]] = ("mlp", "residual")
UNIT: Final[Mapping[Site, float]] = {"mlp": 1.0, "residual": 16.0}
"""The unit in which activations are stored: float16 ends at 65504, and Gemma 3's residual stream doesn't."""
SCORES: Final = (
    *("neg_logprob_sum", "perplexity", "entropy_mean", "margin", "self_certainty", "rauq", "layer_information"),
    "p_true",
)
"""Columns of unsupervised scores, higher for more uncertain; `lab.baselines.scores` defines them."""
LensSite = Literal["attention", "mlp", "residual"]
LENS_SITES: Final[tuple[LensSite, ...]] = get_args(LensSite)
"""What the logit lens reads of each layer: the output of attention and of the MLP, and what is added up behind both."""
LENS: Final = "lens"
"""The column of the entropies that it finds."""


class ObservationManifest(BaseModel):
    """How rows were observed; stored in the Parquet file's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    harvest: HarvestManifest
    """The harvest's own: its model is the one that ran again."""
    harvest_sha256: str
    """Of the harvest's file, hexadecimal."""
    rauq_alpha: float
    p_true_prompt: str
    versions: Mapping[str, str]
    """Of the packages that ran the observation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """The observations, a row for each answered row of the harvest, in its order."""

    manifest: ObservationManifest
    ids: tuple[str, ...]
    scores: Mapping[str, Float64[np.ndarray, " rows"]]
    activations: Mapping[Site, Float16[np.ndarray, "rows layers hidden"]]
    """In the `UNIT` of their site."""
    lens: Float32[np.ndarray, "rows sites layers"]
    """Entropies of `LENS_SITES`, nats."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def observation_schema(manifest: ObservationManifest) -> pa.Schema:
    """Return the columns, and the manifest as their metadata."""
    fingerprint = manifest.harvest.tapped()
    cells = fingerprint.layers * fingerprint.hidden
    fields = [
        pa.field("id", pa.string(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in SCORES),
        *(pa.field(site, pa.list_(pa.float16(), cells), nullable=False) for site in SITES),
        pa.field(LENS, pa.list_(pa.float32(), len(LENS_SITES) * fingerprint.layers), nullable=False),
    ]
    return pa.schema(fields).with_metadata({METADATA_KEY: manifest.model_dump_json()})


def observation_table(rows: Sequence[Mapping[str, Any]], manifest: ObservationManifest) -> pa.Table:
    """Build a table of rows: each holds its id, scores, activations [layers, hidden] and entropies [sites, layers]."""
    schema = observation_schema(manifest)
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in ("id", *SCORES)}
    for name in (*SITES, LENS):
        flat = np.concatenate([row[name].ravel() for row in rows])
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), schema.field(name).type.list_size)
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

    def arrays(name: str, *shape: int) -> np.ndarray:
        flat: np.ndarray = table[name].combine_chunks().flatten().to_numpy()
        return flat.reshape(table.num_rows, *shape)

    return Observations(
        manifest=manifest,
        ids=tuple(table["id"].to_pylist()),
        scores={name: table[name].to_numpy() for name in SCORES},
        activations={site: arrays(site, fingerprint.layers, fingerprint.hidden) for site in SITES},
        lens=arrays(LENS, len(LENS_SITES), fingerprint.layers),
    )


def read_observation_manifest(path: Path) -> ObservationManifest:
    """Read the manifest of an observation file.

    Raises:
        FitError: it isn't one.
    """
    try:
        return ObservationManifest.model_validate_json((pq.read_schema(path).metadata or {})[METADATA_KEY])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _no_observations(path, error) from error


def with_observations(answers: Answers, harvests: Sequence[Path], observations: Sequence[Path]) -> Answers:
    """Add the observations to answers.

    Args:
        answers: all rows of these harvests, or some.
        harvests: the files that the answers were read from.
        observations: a file for each harvest that a row comes from, in any order; there may be more.

    Raises:
        FitError: a row wasn't observed, or twice, or a file isn't one of observations of these harvests.
    """
    digests = {file_digest(path) for path in harvests}
    read = [read_observations(path) for path in observations]
    if foreign := [
        path for path, of in zip(observations, read, strict=True) if of.manifest.harvest_sha256 not in digests
    ]:
        raise FitError(
            f"{_list(foreign)} aren't the observations of {_list(harvests)} as they are now: observe these anew, or "
            "leave out those of other harvests"
        )
    ids = [id_ for of in read for id_ in of.ids]
    place = {id_: number for number, id_ in enumerate(ids)}
    if len(place) < len(ids):
        raise FitError(f"{len(ids) - len(place)} ids come twice in {_list(observations)}: name each file once")
    if unseen := [id_ for id_ in answers.ids.tolist() if id_ not in place]:
        raise FitError(
            f"{len(unseen)} answers weren't observed, such as {unseen[0]!r:.60}: observe each harvest that counts, and "
            "name all of these observations"
        )
    taken = np.array([place[id_] for id_ in answers.ids.tolist()])
    return replace(
        answers,
        unsupervised={name: np.concatenate([of.scores[name] for of in read])[taken] for name in SCORES},
        activations={site: np.concatenate([of.activations[site] for of in read])[taken] for site in SITES},
        lens=np.concatenate([of.lens for of in read])[taken],
    )


def _list(paths: Sequence[Path]) -> str:
    return ", ".join(repr(str(path)) for path in paths)


def _no_observations(path: Path, error: Exception) -> FitError:
    return FitError(f"{str(path)!r} isn't a file of observations: {type(error).__name__}: {error}")
