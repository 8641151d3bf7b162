"""The bundle: a folder that holds one fitted scorer. JSON and LightGBM's text format, never a pickle.

bundle.json       metadata: what it was fitted to, features, calibration, held-out figures
trees.txt         the LightGBM model
calibration.json  uncertainty and outcome of each calibration row: the trees never saw them, the calibration map (three
                  numbers, order kept) was fitted to them; and what their maps look like on average
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from jaxtyping import Float64
from pydantic import ConfigDict, FailFast, Field, model_validator

from ilis_guard.config.base import StrictModel
from ilis_guard.config.tiers import PACKAGED_PREFIX
from ilis_guard.errors import BundleError
from ilis_guard.scoring.blending import Blending
from ilis_guard.scoring.calibration import BetaCalibration
from ilis_guard.scoring.features import FeatureGroup
from ilis_guard.scoring.typicality import TypicalityReference
from ilis_guard.scoring.untrusted import parsed, read_text, unusable
from ilis_guard.types import STATISTICS, Fingerprint, RemoteFingerprint, Stage, Statistic

METADATA: Final = "bundle.json"
TREES: Final = "trees.txt"
CALIBRATION: Final = "calibration.json"
MOST_BYTES: Final = {METADATA: 2**20, TREES: 16 * 2**20, CALIBRATION: 8 * 2**20}
"""Larger files aren't read, nor written. A bundle that was fitted to 3,000 rows has a thirtieth of that."""


class _Part(StrictModel):
    model_config = ConfigDict(allow_inf_nan=False)


Count = Annotated[int, Field(ge=0)]


class Figure(_Part):
    """A held-out figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class HeldOut(_Part):
    """Figures on rows that nothing was fitted or chosen on."""

    rows: Count
    wrong: Count
    auroc: Figure
    """Over all rows; part of it is to know which datasets are hard."""
    auroc_within: Figure
    """Mean of the datasets' own: right against wrong answers to questions of one kind."""
    auprc_wrong: Figure
    """Area under the precision-recall curve, a wrong answer being the positive."""
    auprc_correct: Figure
    brier: Figure
    """Mean squared difference of uncertainty and outcome; lower is better."""
    brier_skill: Figure
    """1 - Brier / Brier of always saying the base rate; higher is better."""


class DatasetRows(_Part):
    """How the model fared on one dataset."""

    rows: Count
    right: Count
    counted: bool
    """Whether its held-out rows count in the figures: not where the model is nearly always right or nearly always
    wrong, which flatters any score that knows the dataset."""


Split = Literal["train", "validation", "calibration", "test"]
"""What a fit did with a row: trained the trees, stopped their training, calibrated their score, or looked at it for
nothing but figures."""
# Of a million numbers that are all wrong, a list that doesn't stop at the first makes a million complaints.
Divergences = Annotated[
    tuple[Annotated[tuple[Annotated[float, Field(ge=0)], ...], FailFast()], ...],
    FailFast(),
]
"""A map in JSON: rows of divergences, nats."""


class TypicalMaps(_Part):
    """What the `mean` signatures of right and of wrong calibration answers look like, for people to compare with.

    Averaged as logarithms of 1 + nats, in which single answers don't drown the others, and given in nats.
    """

    right: Divergences
    wrong: Divergences

    @model_validator(mode="after")
    def _are_square_and_alike(self) -> "TypicalMaps":
        if {len(row) for row in (*self.right, *self.wrong)} != {len(self.right)} or len(self.wrong) != len(self.right):
            raise ValueError("the typical maps must be square, and as large as one another")
        return self


class CalibrationSet(_Part):
    """Rows kept for thresholds, recalibration and typicality."""

    uncertainty: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], FailFast()]
    wrong: Annotated[tuple[bool, ...], FailFast()]
    typicality: TypicalityReference
    typical: TypicalMaps | None = None
    """None in bundles that were fitted before there were any."""
    splits: Mapping[Split, Annotated[tuple[str, ...], FailFast()]] | None = None
    """By split: `row_digest` of the ids of its rows, by which these rows are known when the bundle is tested. None in
    bundles that were fitted before that was kept."""

    @model_validator(mode="after")
    def _has_one_length(self) -> "CalibrationSet":
        if len(self.uncertainty) != len(self.wrong):
            raise ValueError(f"{len(self.uncertainty)} uncertainties but {len(self.wrong)} outcomes")
        return self


class Recalibration(_Part):
    """What took the place of the calibration that came with the fit."""

    bundle: str
    """Digest of the bundle that was recalibrated; the trees, the typicality reference and all figures are its own."""
    rows: Count
    """Labelled rows that the calibration map was fitted to, each counting for 1 / probability."""
    least_probability: float = Field(gt=0, le=1)
    """The smallest probability that a request had of being labelled; the calibration set is such a share of them."""


class Candidate(_Part):
    """Trees that a fit grew, and how they fared on the validation rows; the best ones are the bundle's."""

    features: Annotated[tuple[FeatureGroup, ...], FailFast()] = Field(min_length=1)
    num_leaves: int = Field(ge=2)
    """Leaves a tree, at most."""
    feature_fraction: float = Field(gt=0, le=1)
    """Share of the columns that a tree may look at."""
    trees: int = Field(ge=1)
    loss: float = Field(ge=0)
    """Mean log-loss on the validation rows, nats."""


class BundleMetadata(_Part):
    """``bundle.json``."""

    version: Literal[1] = 1
    model: str
    """The model as it was named in the harvest; for people, `fingerprint` is what must match."""
    fingerprint: Fingerprint | RemoteFingerprint
    prompt: str
    max_new_tokens: Count | None
    """None where the model can't be tapped: its own arguments bound its answers."""
    stage: Stage = "answer"
    """`prompt`: scores what is known before a token is generated."""
    features: Annotated[tuple[FeatureGroup, ...], FailFast()] = Field(min_length=1)
    statistics: Annotated[tuple[Statistic, ...], FailFast()] = Field(default=STATISTICS, min_length=1)
    """The output statistics that were known of the answers: the columns of the feature `statistics`, in this order."""
    candidates: Annotated[tuple[Candidate, ...], FailFast()] = ()
    """What was tried, the best first; empty in bundles from before anything was."""
    blending: Blending | None = None
    """None at stage `prompt`, where there is no answer yet, where nothing is known of an answer's tokens, and in older
    bundles: there the trees' word is the last."""
    calibration: BetaCalibration
    rows: Mapping[str, Count]
    """Rows in each split, and those left out because nothing was generated."""
    datasets: Mapping[str, DatasetRows]
    held_out: HeldOut
    baseline: HeldOut
    """The same rows, scored by a logistic regression on the output statistics alone, fitted to all other rows. At stage
    `prompt` there are none yet: they then stand for what is known once the answer was paid for."""
    versions: Mapping[str, str]
    recalibrated: Recalibration | None = None
    """None where calibration map and calibration set are those of the fit. `held_out` always is."""

    def log_odds(self, statistics: Float64[np.ndarray, "rows statistics"]) -> Float64[np.ndarray, " rows"] | None:
        """What the log-probability of answers with these `statistics` says; None where nothing is blended."""
        if self.blending is None:
            return None
        return self.blending.sequence_probability.log_odds(statistics[:, self.statistics.index("logprob_sum")])

    @model_validator(mode="after")
    def _sees_what_there_is(self) -> "BundleMetadata":
        if (different := len(set(self.features))) < len(self.features):
            raise ValueError(f"each feature is named once, got {len(self.features)} of {different} kinds")
        if self.stage == "prompt" and not set(self.features) <= {"prompt", "prompt-summary"}:
            raise ValueError(
                f"at stage 'prompt' there are 'prompt' and 'prompt-summary' to look at, no more, got {self.features!r}"
            )
        if self.blending is not None and (self.stage == "prompt" or "logprob_sum" not in self.statistics):
            raise ValueError("'blending' needs the output statistic 'logprob_sum', which isn't known here")
        is_tapped = isinstance(self.fingerprint, Fingerprint)
        if not is_tapped and self.features != ("statistics",):
            raise ValueError(
                f"of a model that can't be tapped there is the feature 'statistics' and no other, got {self.features!r}"
            )
        if is_tapped != (self.max_new_tokens is not None):
            raise ValueError("max_new_tokens is told of a model that can be tapped, and of no other")
        if len(set(self.statistics)) < len(self.statistics):
            raise ValueError("an output statistic stands twice")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A fitted scorer, as data."""

    metadata: BundleMetadata
    trees: str
    """A LightGBM model in its text format."""
    calibration_set: CalibrationSet
    digest: str
    """Short hexadecimal digest of the whole bundle."""


def row_digest(row: str) -> str:
    """A row's id as bundles keep it: short, and without what the id may tell."""
    return _sha256(row)[:16]


def read_bundle(name: str) -> Bundle:
    """Read a bundle from a folder, or from ilis_guard itself (``packaged:NAME``).

    Raises:
        BundleError: a file is missing, too large, damaged, or not what the metadata says. No other error comes of
            whatever the folder holds.
    """
    folder = _folder(name)
    texts = {file: read_text(folder / file, most=most) for file, most in MOST_BYTES.items()}
    try:
        envelope = parsed(texts[METADATA])
        said = envelope.pop("sha256")
        digests = {file: str(said[file]) for file in (TREES, CALIBRATION)}
        metadata = BundleMetadata.model_validate_json(json.dumps(envelope), strict=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(unusable(folder / METADATA, error)) from None
    for file, digest in digests.items():
        if (found := _sha256(texts[file])) != digest:
            raise BundleError(
                f"{str(folder / file)!r} is damaged or from another bundle: its sha256 is {found!r}, "
                f"{METADATA} says {digest[:64]!r}; copy the bundle again or fit it anew"
            )
    try:
        parsed(texts[CALIBRATION])
        calibration_set = CalibrationSet.model_validate_json(texts[CALIBRATION], strict=True)
    except (ValueError, RecursionError) as error:
        raise BundleError(unusable(folder / CALIBRATION, error)) from None
    return Bundle(
        metadata=metadata,
        trees=texts[TREES],
        calibration_set=calibration_set,
        digest=_sha256(texts[METADATA])[:16],
    )


def write_bundle(metadata: BundleMetadata, trees: str, calibration_set: CalibrationSet, folder: Path) -> None:
    """Write a bundle; an older one in its place is replaced only when the new one is complete.

    Raises:
        BundleError: something other than a bundle stands in its place, or a file would be too large to be read again.
        OSError: it can't be written; an older one stays as it was.
    """
    folder = folder.resolve()
    _check_replaceable(folder)
    texts = {TREES: trees, CALIBRATION: calibration_set.model_dump_json() + "\n"}
    envelope = metadata.model_dump(mode="json") | {"sha256": {file: _sha256(text) for file, text in texts.items()}}
    texts[METADATA] = json.dumps(envelope, indent=1) + "\n"
    _check_readable(texts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / "bundle"
        unfinished.mkdir()
        for file, text in texts.items():
            with (unfinished / file).open("w", encoding="utf-8", newline="\n") as written:
                written.write(text)
                written.flush()
                os.fsync(written.fileno())
        replaced = Path(temporary) / "replaced"
        try:
            if folder.exists():
                folder.rename(replaced)
            unfinished.rename(folder)
        except BaseException:
            if replaced.exists():
                replaced.rename(folder)
            raise


def _check_readable(texts: Mapping[str, str]) -> None:
    """What would be refused for its size when it is read isn't written: an older bundle would be gone by then."""
    for file, text in texts.items():
        if (size := len(text.encode())) > MOST_BYTES[file]:
            raise BundleError(f"{file!r} would have {size} bytes, more than the {MOST_BYTES[file]} that are read again")
        if file != TREES:
            try:
                parsed(text)
            except ValueError as error:
                raise BundleError(f"{file!r} couldn't be read again: {error}") from None


def _check_replaceable(folder: Path) -> None:
    """What stands in a new bundle's place is deleted, so it must be a bundle and nothing else."""
    if not folder.exists():
        return
    others = (
        sorted({file.name for file in folder.iterdir()} - {METADATA, TREES, CALIBRATION}) if folder.is_dir() else []
    )
    if others or not folder.is_dir():
        what = f"holds {others[:5]!r}" if others else "is a file"
        raise BundleError(f"no bundle is written to {str(folder)!r}: it {what}; name a new folder, or an older bundle")


def _folder(name: str) -> Path:
    if name.startswith(PACKAGED_PREFIX):
        shipped = Path(str(resources.files("ilis_guard") / "bundles"))
        names = sorted(path.name for path in shipped.iterdir() if path.is_dir()) if shipped.is_dir() else []
        if name.removeprefix(PACKAGED_PREFIX) not in names:
            raise BundleError(f"no bundle {name!r} comes with ilis_guard; there are {names!r}")
        return shipped / name.removeprefix(PACKAGED_PREFIX)
    if not Path(name).is_dir():
        raise BundleError(f"there is no bundle folder {name!r}; fit one with `ilis-guard fit`")
    return Path(name)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
