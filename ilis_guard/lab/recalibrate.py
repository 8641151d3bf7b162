"""Recalibrate a bundle on new labelled rows: the same trees with another calibration map and calibration set.

The rows that people label aren't a random sample: a policy escalates all requests of some kinds and audits few of what
it answers. Each row's `probability` is that of its request being labelled. The calibration map is fitted with weights
1 / probability. The calibration set has no weights, so that certificates hold on it as they stand: a row is kept with
probability q / `probability`, where q is the smallest one, so that every request was kept with probability q.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64

from ilis_guard.errors import BundleMismatchError, FitError
from ilis_guard.lab.attempts import Answers, read_attempts
from ilis_guard.lab.fit import calibrate
from ilis_guard.policy.records import read_verdicts
from ilis_guard.scoring.bundle import Bundle, BundleMetadata, CalibrationSet, Recalibration
from ilis_guard.scoring.bundle_files import write_bundle
from ilis_guard.scoring.calibration import raw_scores
from ilis_guard.scoring.features import feature_count
from ilis_guard.scoring.trees import load_booster
from ilis_guard.scoring.typicality import TypicalityReference, squared_distances

MIN_PER_CLASS: Final = 20
"""Fewer right or wrong rows are too few to fit the three parameters of a calibration map."""
SEED: Final = 0
"""Of the random sample. It can't be chosen: keeping the best of several samples would invalidate certificates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRows:
    """Labelled rows, as recalibration needs them."""

    raw: Float64[np.ndarray, " rows"]
    """The bundle's scores before calibration."""
    wrong: Bool[np.ndarray, " rows"]
    probability: Float64[np.ndarray, " rows"]
    """The probability that the row's request was labelled."""
    typicality: TypicalityReference | None
    """With these rows' distances; None of an export, which holds no maps to compute them from."""


def recalibrate(bundle: Bundle, rows: CalibrationRows, folder: Path) -> BundleMetadata:
    """Write a bundle with the same trees and blending, calibrated on other rows.

    The earlier calibration set isn't kept: it represents other requests.

    Raises:
        FitError: there are too few right or too few wrong answers, or higher scores are less often wrong.
        BundleError: something other than a bundle stands in the folder.
    """
    wrong, probability = rows.wrong, rows.probability
    if min(int(wrong.sum()), int((~wrong).sum())) < MIN_PER_CLASS:
        raise FitError(
            f"of {len(wrong)} scored answers {int((~wrong).sum())} are right and {int(wrong.sum())} wrong; "
            f"recalibrating needs at least {MIN_PER_CLASS} of each: label more"
        )
    weights = 1 / probability
    calibration = calibrate(rows.raw, wrong, weights / weights.mean())
    smallest = float(probability.min())
    sample = np.random.default_rng(SEED).random(len(wrong)) < smallest / probability
    known = bundle.calibration_set
    calibration_set = CalibrationSet(
        uncertainty=tuple(calibration.apply(rows.raw[sample]).tolist()),
        wrong=tuple(wrong[sample].tolist()),
        typicality=rows.typicality or known.typicality,
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


def read_calibration_rows(bundle: Bundle, path: Path, *, tier: str | None = None) -> CalibrationRows:
    """Read verdicts on answers that this bundle scored, or a harvest that it scores now.

    Args:
        bundle: gave the scores in an export's rows.
        path: JSONL that ``queue export`` wrote, or a harvested Parquet file, which is taken for a random sample.
        tier: of an export, only rows in which this tier's answer was judged.

    Raises:
        AttemptsError: the file is neither.
        FitError: its rows can't represent all requests.
        BundleMismatchError: another model was harvested than the bundle was fitted to.
    """
    if path.suffix == ".parquet":
        if tier is not None:
            raise FitError(f"a harvest is of one tier; tier={tier!r} chooses among the rows of an export")
        return _of_harvest(bundle, read_attempts(path).answers())
    return _of_verdicts(bundle, path, tier)


def _of_verdicts(bundle: Bundle, path: Path, tier: str | None) -> CalibrationRows:
    rows = [row for row in read_verdicts(path) if tier is None or row.tier == tier]
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
    return CalibrationRows(
        raw=bundle.metadata.calibration.invert(np.array([uncertainty for uncertainty, _ in scored])),
        wrong=np.array([not row.correct for _, row in scored]),
        probability=np.array([row.probability for _, row in scored]),
        typicality=None,
    )


def _of_harvest(bundle: Bundle, answers: Answers) -> CalibrationRows:
    metadata = bundle.metadata
    if different := metadata.fingerprint.differences(answers.manifest.fingerprint):
        raise BundleMismatchError(
            f"the rows were harvested from another model than the bundle's: {', '.join(different)} differ; harvest "
            f"with {metadata.model!r} as the bundle was fitted to it, or fit a new bundle to these rows"
        )
    if answers.known != metadata.statistics:
        raise FitError(
            f"the bundle looks at the output statistics {metadata.statistics!r}, and of the rows {answers.known!r} are "
            "known: harvest with the model as it was when the bundle was fitted"
        )
    width = feature_count(metadata.features, layers=answers.layers, statistics=len(answers.known))
    profiles = answers.profiles(metadata.stage)
    known = bundle.calibration_set.typicality
    distances = squared_distances(profiles, np.array(known.mean), np.array(known.precision))
    blending = metadata.blending
    return CalibrationRows(
        raw=raw_scores(
            load_booster(bundle.trees, features=width),
            metadata.features,
            answers.signatures,
            answers.statistics,
            log_odds=metadata.log_odds(answers.statistics),
            familiarity=None if blending is None else blending.familiarity(known).typicality(profiles),
        ),
        wrong=answers.wrong,
        probability=np.ones(len(answers.wrong)),
        typicality=TypicalityReference(
            mean=known.mean, precision=known.precision, distances=tuple(sorted(distances.tolist()))
        ),
    )
