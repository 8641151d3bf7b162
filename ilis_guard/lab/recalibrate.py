"""Recalibrate: new labelled rows -> the same trees with another calibration map and calibration set.

Rows that reach a person are chosen: all that a policy escalates, few of what it answers. Each row's `probability` is
how probable its request was to be labelled. The calibration map is fitted with weights 1 / probability. The
calibration set has no weights, so that certificates hold as they stand: a row is kept with probability
q / `probability`, where q is the smallest of all, so that each request was kept with probability q, whatever it was: a
random sample of them.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ilis_guard.errors import BundleMismatchError, FitError
from ilis_guard.lab.fit import calibrate
from ilis_guard.lab.harvest import Harvest, read_harvest
from ilis_guard.scoring.bundle import Bundle, BundleMetadata, CalibrationSet, Recalibration
from ilis_guard.scoring.bundle_files import write_bundle
from ilis_guard.scoring.calibration import raw_scores
from ilis_guard.scoring.features import feature_count
from ilis_guard.scoring.trees import load_booster
from ilis_guard.scoring.typicality import TypicalityReference, squared_distances

LEAST_OF_A_CLASS: Final = 20
"""With fewer right or wrong rows the three numbers of a calibration map say nothing."""
SEED: Final = 0
"""Of the random sample. There is no choice of it: whoever tries several and keeps the best certifies nothing."""


class _Row(BaseModel):
    """What is needed of a row that ``queue export`` wrote; it says more."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    id: str
    correct: bool
    tier: str | None
    uncertainty: Annotated[float, Field(ge=0, le=1)] | None
    probability: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Labelled rows, as recalibration needs them."""

    raw: Float64[np.ndarray, " rows"]
    """What the bundle says, before any calibration."""
    wrong: Bool[np.ndarray, " rows"]
    probability: Float64[np.ndarray, " rows"]
    """How probable it was that the row's request was labelled."""
    typicality: TypicalityReference | None
    """With these rows' distances; None in an export, which doesn't hold what they're made of."""


def recalibrate(bundle: Bundle, labelled: Labelled, folder: Path) -> BundleMetadata:
    """Write a bundle with the same trees and blending, calibrated on other rows.

    The calibration set that was there isn't kept: it stands for other requests.

    Raises:
        FitError: there are too few right or too few wrong answers, or the score ranks them the wrong way round.
        BundleError: something other than a bundle stands in the folder.
    """
    wrong, probability = labelled.wrong, labelled.probability
    if min(int(wrong.sum()), int((~wrong).sum())) < LEAST_OF_A_CLASS:
        raise FitError(
            f"of {len(wrong)} scored answers {int((~wrong).sum())} are right and {int(wrong.sum())} wrong; "
            f"recalibrating needs at least {LEAST_OF_A_CLASS} of each: label more"
        )
    weights = 1 / probability
    calibration = calibrate(labelled.raw, wrong, weights / weights.mean())
    smallest = float(probability.min())
    sample = np.random.default_rng(SEED).random(len(wrong)) < smallest / probability
    known = bundle.calibration_set
    calibration_set = CalibrationSet(
        uncertainty=tuple(calibration.apply(labelled.raw[sample]).tolist()),
        wrong=tuple(wrong[sample].tolist()),
        typicality=labelled.typicality or known.typicality,
        typical=known.typical,
    )
    metadata = bundle.metadata.model_copy(
        update={
            "calibration": calibration,
            "recalibrated": Recalibration(bundle=bundle.digest, rows=len(wrong), least_probability=smallest),
        }
    )
    write_bundle(metadata, bundle.trees, calibration_set, folder)
    return metadata


def read_labelled(bundle: Bundle, path: Path, *, tier: str | None = None) -> Labelled:
    """Read rows that were labelled after this bundle scored them, or a harvest that it scores now.

    Args:
        bundle: its scores stand in an export's rows.
        path: JSONL that ``queue export`` wrote, or a harvested Parquet file, which is taken for a random sample.
        tier: of an export, only rows in which this tier's answer was judged.

    Raises:
        FitError: it isn't such a file, or its rows can't stand for all requests.
        BundleMismatchError: another model was harvested than the bundle was fitted to.
    """
    if path.suffix == ".parquet":
        if tier is not None:
            raise FitError(f"a harvest is of one tier; tier={tier!r} chooses among the rows of an export")
        return _scored(bundle, read_harvest(path))
    return _exported(bundle, path, tier)


def _exported(bundle: Bundle, path: Path, tier: str | None) -> Labelled:
    rows = [row for row in _rows(path) if tier is None or row.tier == tier]
    repeated = [row_id for row_id, times in Counter(row.id for row in rows).items() if times > 1]
    if repeated:
        raise FitError(f"{str(path)!r}: {len(repeated)} rows are there more than once, such as {repeated[0]!r:.60}")
    scored = [(row.uncertainty, row) for row in rows if row.uncertainty is not None]
    if not scored:
        raise FitError(f"{str(path)!r} holds no row with an uncertainty" + (f" of the tier {tier!r}" if tier else ""))
    tiers = sorted({str(row.tier) for _, row in scored})
    if len(tiers) > 1:
        raise FitError(f"{str(path)!r} holds answers of the tiers {tiers!r}: a bundle belongs to one, name it")
    if all(row.probability == 1 for _, row in scored):
        raise FitError(
            f"{str(path)!r} holds only requests of which every one like them was labelled: of those that were answered "
            "it says nothing, so no calibration or threshold can follow from it. Let the policy `audit` a fraction of "
            "what it answers, or harvest a random sample of requests"
        )
    return Labelled(
        raw=bundle.metadata.calibration.invert(np.array([uncertainty for uncertainty, _ in scored])),
        wrong=np.array([not row.correct for _, row in scored]),
        probability=np.array([row.probability for _, row in scored]),
        typicality=None,
    )


def _rows(path: Path) -> list[_Row]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FitError(f"{str(path)!r} can't be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_Row.model_validate_json(line))
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                place = ".".join(map(str, first["loc"])) or "the line"
                raise FitError(
                    f"{path}:{number}: {place}: {first['msg']}; write the file with `ilis-guard queue export`"
                ) from error
    return rows


def _scored(bundle: Bundle, harvest: Harvest) -> Labelled:
    metadata = bundle.metadata
    if different := metadata.fingerprint.differences(harvest.manifest.fingerprint):
        raise BundleMismatchError(
            f"the rows were harvested from another model than the bundle's: {', '.join(different)} differ; harvest "
            f"with {metadata.model!r} as the bundle was fitted to it, or fit a new bundle to these rows"
        )
    if harvest.known != metadata.statistics:
        raise FitError(
            f"the bundle looks at the output statistics {metadata.statistics!r}, and of the rows {harvest.known!r} are "
            "known: harvest with the model as it was when the bundle was fitted"
        )
    width = feature_count(metadata.features, layers=harvest.layers, statistics=len(harvest.known))
    profiles = harvest.profiles(metadata.stage)
    known = bundle.calibration_set.typicality
    distances = squared_distances(profiles, np.array(known.mean), np.array(known.precision))
    blending = metadata.blending
    return Labelled(
        raw=raw_scores(
            load_booster(bundle.trees, features=width),
            metadata.features,
            harvest.signatures,
            harvest.statistics,
            log_odds=metadata.log_odds(harvest.statistics),
            familiarity=None if blending is None else blending.familiarity(known).typicality(profiles),
        ),
        wrong=harvest.wrong,
        probability=np.ones(len(harvest.wrong)),
        typicality=_moved(known, distances),
    )


def _moved(typicality: TypicalityReference, distances: Float64[np.ndarray, " rows"]) -> TypicalityReference:
    return TypicalityReference(
        mean=typicality.mean, precision=typicality.precision, distances=tuple(sorted(distances.tolist()))
    )
