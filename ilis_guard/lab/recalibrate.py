"""Recalibrate a bundle on new labelled rows: the same trees with another calibration map and calibration set.

The rows that people label aren't a random sample: a policy escalates all requests of some kinds and audits few of what
it answers. Each row's `probability` is that of its request being labelled. The calibration map is fitted with weights
1 / probability. The calibration set has no weights, so that certificates hold on it as they stand: a row is kept with
probability q / `probability`, where q is the smallest one, so that every request was kept with probability q.

Nor are they independent: many users ask the same question. Rows of a group (`grouping`) share one row's weight, and one
of those that are kept is in the calibration set.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64

from ilis_guard.errors import FitError
from ilis_guard.lab.calibration_rows import TRAINED, CalibrationRows, Circumstances
from ilis_guard.lab.correcting import CorrectionRows
from ilis_guard.lab.fit import calibrate, check_findings
from ilis_guard.lab.metrics import weighted_figures
from ilis_guard.lab.ridge import feature_widths
from ilis_guard.lab.splits import check_classes
from ilis_guard.lab.traffic import profile_by_prompts
from ilis_guard.scoring.bundle import Bundle, BundleMetadata, CalibrationSet, Recalibration, Split, row_digest
from ilis_guard.scoring.bundle_files import write_bundle
from ilis_guard.scoring.calibration import BetaCalibration
from ilis_guard.scoring.correction import Correction
from ilis_guard.scoring.findings import FEW_GROUPS, calibration_findings, figure_findings
from ilis_guard.scoring.risk_control import one_of_each

MIN_PER_CLASS: Final = 20
"""Fewer right or wrong rows are too few to fit the three parameters of a calibration map."""
LEAST_LABELS: Final = 25
"""Independent ones from which a bundle learns."""
MIN_PER_CLASS_CORRECTED: Final = 5
"""Right and wrong ones among them, so that each fold leaves some of both."""
ENOUGH_TO_KEEP: Final = 100
"""Labels from which on a part is kept for guarantees; with fewer, all learn."""
KEPT: Final = 0.4
"""The share that is kept, then."""
SEED: Final = 0
"""Of the random sample. It can't be chosen: keeping the best of several samples would invalidate certificates."""
FOLDS: Final = 5
"""Parts of the rows, each of which is calibrated by a map that was fitted to the others."""


def recalibrate(bundle: Bundle, rows: CalibrationRows, folder: Path, *, accept: bool = False) -> BundleMetadata:
    """Write a bundle with the same trees and blending, calibrated on other rows, and in units of their traffic.

    The earlier calibration set isn't kept: it represents other requests. Nor are the earlier wordings, decoding and
    length of answers: the bundle is calibrated for those of these rows.

    Args:
        bundle: the one that scored the rows.
        rows: labelled.
        folder: the new bundle's.
        accept: write the bundle even if its findings are below the line.

    Raises:
        FitError: there are too few right or too few wrong answers, or higher scores are less often wrong.
        UnacceptedFindingsError: the score is below the line on these rows, and isn't accepted all the same. Nothing is
            written.
        BundleError: something other than a bundle stands in the folder.
    """
    check_classes(rows.wrong, one_of_each(rows.groups), MIN_PER_CLASS, need="recalibrating needs", remedy="label more")
    calibration = calibrate(rows.raw, rows.wrong, rows.weights)
    everything = np.ones(len(rows), dtype=bool)
    return _write(bundle, rows, folder, calibration=calibration, kept=everything, accept=accept)


def correct(
    bundle: Bundle, rows: CalibrationRows, folder: Path, *, kept: float | None = None, accept: bool = False
) -> BundleMetadata:
    """Write a bundle that has learned from few rows: its score is corrected by them, and calibrated for their requests.

    The correction is a linear model over the score and the features in units of their traffic. Each row that it is
    fitted to calibrates by the score of one that was fitted to other rows (cross-fitting). A share of the groups can be
    kept out of it: no guarantee can rest on rows that it was fitted to.

    Where the rows were read without a profile, their traffic is measured on those that aren't kept.

    Args:
        bundle: the one that scored the rows; as `recalibrate`.
        rows: labelled, with features.
        folder: the new bundle's.
        kept: the share of groups that is kept for guarantees, 0 to 0.8; None for `KEPT` of `ENOUGH_TO_KEEP` or more
            groups, and for none of fewer.
        accept: as `recalibrate`.

    Raises:
        FitError, UnacceptedFindingsError, BundleError: as `recalibrate`.
    """
    independent = one_of_each(rows.groups)
    if rows.columns is None:
        raise FitError(
            "the rows hold no signatures to learn from: export them (`queue export --signatures`) before tickets are "
            "redacted, or harvest, or recalibrate, which needs none"
        )
    if (labels := int(independent.sum())) < LEAST_LABELS:
        left_out = f" ({rows.fitted_to} more rows trained the bundle, and don't count)" if rows.fitted_to else ""
        raise FitError(
            f"a bundle learns from {LEAST_LABELS} independent labels or more, got {labels}{left_out}: label more"
        )
    check_classes(rows.wrong, independent, MIN_PER_CLASS_CORRECTED, need="learning needs", remedy="label more")
    chosen = kept if kept is not None else KEPT if labels >= ENOUGH_TO_KEEP else 0.0
    is_kept = _kept(rows, chosen)
    check_classes(
        rows.wrong[~is_kept],
        one_of_each(rows.groups[~is_kept]),
        MIN_PER_CLASS_CORRECTED,
        need="without the rows kept for guarantees, learning needs",
        remedy="label more, or keep fewer",
    )
    if not rows.adapted:
        rows = rows.in_units(bundle, profile_by_prompts(rows.columns.take(~is_kept)))
    correction, raw = _corrected(bundle, rows, is_kept)
    corrected = replace(rows, raw=raw)
    calibration = calibrate(raw, rows.wrong, rows.weights, terms=2 if _few(rows) else 3)
    return _write(
        bundle, corrected, folder, calibration=calibration, kept=is_kept, correction=correction, accept=accept
    )


def _few(rows: CalibrationRows) -> bool:
    wrong = rows.wrong[one_of_each(rows.groups)]
    return min(int(wrong.sum()), int((~wrong).sum())) < MIN_PER_CLASS


def _kept(rows: CalibrationRows, share: float) -> Bool[np.ndarray, " rows"]:
    """Which rows are kept for guarantees: a share of the groups, drawn at random whatever is in them."""
    names, group = np.unique(rows.groups, return_inverse=True)
    place = np.random.default_rng(SEED).permutation(len(names))
    kept: Bool[np.ndarray, " rows"] = (place < share * len(names))[group]
    return kept


def _corrected(
    bundle: Bundle, rows: CalibrationRows, kept: Bool[np.ndarray, " rows"]
) -> tuple[Correction, Float64[np.ndarray, " rows"]]:
    """Fit a correction to the rows that aren't kept; score each row by one that wasn't fitted to it."""
    learned, features, metadata = ~kept, rows.normalised_features, bundle.metadata
    correction, held_out = CorrectionRows(
        rows.raw[learned],
        features[learned],
        feature_widths(metadata.features, metadata.fingerprint, len(metadata.statistics)),
        wrong=rows.wrong[learned],
        weights=rows.weights[learned],
        groups=rows.groups[learned],
        seed=SEED,
    ).fit()
    raw = np.empty(len(rows))
    raw[learned] = held_out
    raw[kept] = correction.apply(rows.raw[kept], features[kept])
    return correction.after(metadata.correction), raw


def _write(
    bundle: Bundle,
    rows: CalibrationRows,
    folder: Path,
    *,
    calibration: BetaCalibration,
    kept: Bool[np.ndarray, " rows"],
    accept: bool,
    correction: Correction | None = None,
) -> BundleMetadata:
    wrong, weights = rows.wrong, rows.weights
    known = bundle.calibration_set
    sample = _random_sample(rows)
    guaranteeing = sample & kept
    # Without any, the calibration set still shows what scores there are; `kept` says that no guarantee rests on it.
    shown = guaranteeing if guaranteeing.any() else sample
    distances = None if rows.distances is None else tuple(sorted(rows.distances[sample].tolist()))
    typicality = known.typicality if distances is None else known.typicality.model_copy(update={"distances": distances})
    calibration_set = CalibrationSet(
        uncertainty=tuple(calibration.apply(rows.raw[shown]).tolist()),
        wrong=tuple(wrong[shown].tolist()),
        typicality=typicality,
        typical=known.typical,
        splits=None if known.splits is None else _splits(known.splits, rows.ids, kept),
    )
    auroc, skill = weighted_figures(wrong, rows.raw, _cross_fitted(rows), weights, rows.groups)
    groups = len(np.unique(rows.groups))
    findings = (
        *figure_findings(auroc, skill, groups, least=FEW_GROUPS[0] if correction is None else LEAST_LABELS),
        *calibration_findings(int(sample.sum())),
        *(finding for finding in bundle.metadata.findings if finding.kind == "constant_features"),
    )
    check_findings(findings, accept=accept)
    blending = bundle.metadata.blending
    metadata = bundle.metadata.model_copy(
        update={
            **{field.name: getattr(rows.circumstances, field.name) for field in fields(Circumstances)},
            "calibration": calibration,
            "blending": blending.model_copy(update={"adapted": rows.adapted or blending.adapted}),
            "correction": correction or bundle.metadata.correction,
            "recalibrated": Recalibration(
                bundle=bundle.digest,
                rows=len(rows),
                groups=groups,
                group_by=rows.group_by,
                fitted_to=rows.fitted_to,
                corrected_by=len(np.unique(rows.groups[~kept])),
                kept=int(guaranteeing.sum()),
                auroc=auroc,
                brier_skill=skill,
                least_probability=float(rows.probability.min()),
            ),
            "findings": findings,
        }
    )
    write_bundle(metadata, bundle.trees, calibration_set, rows.traffic, folder)
    return metadata


def _splits(
    known: Mapping[Split, Sequence[str]], ids: Sequence[str], kept: Bool[np.ndarray, " rows"]
) -> dict[Split, tuple[str, ...]]:
    """Name the rows that trees or corrections know, and those that only calibrate them now."""
    seen: dict[Split, tuple[str, ...]] = {name: tuple(known.get(name, ())) for name in TRAINED}
    digests = np.array([row_digest(id_) for id_ in ids], dtype=object)
    seen["train"] += tuple(digests[~kept].tolist())
    return seen | {"calibration": tuple(digests[kept].tolist()), "test": ()}


def _random_sample(rows: CalibrationRows) -> Bool[np.ndarray, " rows"]:
    """Draw the rows as if every request had been labelled with the same probability, and of each group one of them."""
    smallest = float(rows.probability.min())
    sample = np.random.default_rng(SEED).random(len(rows)) < smallest / rows.probability
    drawn = np.flatnonzero(sample)
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[drawn[one_of_each(rows.groups[drawn])]] = True
    return chosen


def _cross_fitted(rows: CalibrationRows) -> Float64[np.ndarray, " rows"]:
    """Calibrate each fold of groups by a map that was fitted to the others; the base rate where none can be."""
    weights = rows.weights
    names, group = np.unique(rows.groups, return_inverse=True)
    fold = np.random.default_rng(SEED).permutation(len(names))[group] % FOLDS
    probability = np.empty(len(rows))
    for part in range(FOLDS):
        here, others = fold == part, fold != part
        base_rate = float(np.average(rows.wrong[others], weights=weights[others]))
        probability[here] = base_rate
        if 0 < base_rate < 1:
            with suppress(FitError):
                fitted = calibrate(rows.raw[others], rows.wrong[others], weights[others])
                probability[here] = fitted.apply(rows.raw[here])
    return probability
