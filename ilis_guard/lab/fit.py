"""Fit a scorer to harvested answers and write its bundle.

Trees, calibration and held-out metrics each use rows that the others don't, nor any that depends on one of theirs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import lightgbm
import numpy as np
from jaxtyping import Float64
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ilis_guard.errors import FitError, UnacceptedFindingsError
from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.blending import fit_blending
from ilis_guard.lab.grouping import answer_groups
from ilis_guard.lab.metrics import held_out
from ilis_guard.lab.ridge import feature_widths
from ilis_guard.lab.splits import check_classes, check_splits, list_wordings, split
from ilis_guard.lab.traffic import HomeTraffic
from ilis_guard.lab.tuning import Progress, tune
from ilis_guard.lab.typicality import typicality_reference
from ilis_guard.scoring.blended_trees import BlendedTrees
from ilis_guard.scoring.bundle import BundleMetadata, CalibrationSet, DatasetRows, TypicalMaps, row_digest
from ilis_guard.scoring.bundle_files import write_bundle
from ilis_guard.scoring.calibration import BetaCalibration, calibration_terms
from ilis_guard.scoring.features import FeatureGroup, feature_matrix, positions_of
from ilis_guard.scoring.findings import (
    BundleFinding,
    calibration_findings,
    describe,
    feature_findings,
    figure_findings,
)
from ilis_guard.scoring.risk_control import one_of_each
from ilis_guard.types import Stage

FEATURES: Final[Mapping[Stage, tuple[tuple[FeatureGroup, ...], ...]]] = {
    "prompt": (("prompt",), ("prompt-summary",)),
    "answer": (
        ("mean-prompt", "last-prompt", "statistics"),
        ("mean-prompt-summary", "last-prompt-summary", "statistics"),
        ("mean-prompt", "last-prompt"),
        ("statistics",),
    ),
}
"""The choices of features, of which validation rows select one. For answers: what the generated tokens' maps add to the
prompt's map, cell by cell or summarised, with the output statistics; and each of the two alone (docs/scoring.md)."""
MIN_PER_CLASS: Final = 50
"""Fewer right or wrong rows are too few to be split four ways."""
ACCURACY_RANGE: Final = (0.15, 0.85)
"""A dataset counts in the held-out metrics where the model's accuracy on all other rows is in this range."""
_WRONG_WAY: Final = "the score ranks the calibration rows the wrong way round: nothing was learned from these rows"
NEARLY_ALL: Final = 0.99
"""Share of the rows from which on a feature that has one value there counts as constant."""


def fit(
    answers: Answers,
    folder: Path,
    *,
    stage: Stage = "answer",
    features: Sequence[FeatureGroup] = (),
    seed: int = 0,
    accept: bool = False,
    progress: Progress = lambda _done, _all: None,
) -> BundleMetadata:
    """Fit a scorer to harvested answers and write its bundle.

    Half the rows train the trees, a tenth stops their training and selects features and settings, a fifth calibrates
    them, and the last fifth only gives the metrics in the metadata. Each dataset is split in these shares. Datasets on
    which the model is nearly always right or nearly always wrong are trained on, and left out of the metrics.

    Rows that depend on one another (`grouping`) stay together in a split. One row of each group is in the calibration
    set, and intervals are over groups.

    The bundle lists the wordings of which the calibration set has `MIN_OF_WORDING` rows. Rows in others only train:
    requests in these get scores that aren't calibrated, so they have no part in what calibrated scores promise.

    Args:
        answers: labelled.
        folder: the bundle's.
        stage: what is scored.
        features: the trees' features; without any, validation rows select among `FEATURES`.
        seed: of the splits and the trees.
        accept: write the bundle even if its findings are below the line.
        progress: called after each candidate.

    Raises:
        FitError: there are too few right or too few wrong answers, or too few in any one wording, a value isn't finite,
            nothing was learned, or a feature doesn't exist at this stage or for this model.
        UnacceptedFindingsError: the score is below the line, and isn't accepted all the same. Nothing is written.
        BundleError: something other than a bundle stands in the folder.
    """
    _check_finite(answers)
    groups = answer_groups(answers)
    independent = one_of_each(groups)
    check_classes(
        answers.wrong,
        independent,
        MIN_PER_CLASS,
        need="a fit needs",
        remedy="harvest more questions, or ones that the model gets right 20 to 80 % of the time",
    )
    splits = split(answers.datasets, seed, groups)
    wordings = answers.row_wordings()
    listed = list_wordings(wordings, splits["calibration"] & independent)
    is_listed = np.array([wording in listed for wording in wordings.tolist()])
    splits |= {name: splits[name] & is_listed for name in ("calibration", "test")}
    check_splits(answers.wrong, splits)
    calibrating = splits["calibration"] & independent
    wrong, names = answers.wrong, answers.datasets
    traffic = HomeTraffic(answers, stage, splits["train"])
    candidates = tune(
        _choices(answers, stage, tuple(features)),
        lambda chosen: traffic.normalised(chosen).blocks["features"],
        wrong,
        train=splits["train"],
        validation=splits["validation"],
        seed=seed,
        progress=progress,
    )
    best = candidates[0]
    columns = traffic.normalised(best.metadata.features)
    reference = typicality_reference(columns.blocks["typicality"], splits["train"], calibrating)
    widths = feature_widths(best.metadata.features, answers.manifest.fingerprint, len(answers.known))
    blending = fit_blending(
        best.booster, columns, widths, wrong, names, train=splits["train"], validation=splits["validation"]
    )
    raw = BlendedTrees(best.booster, blending=blending).raw_scores(columns)
    calibration = calibrate(raw[calibrating], wrong[calibrating])
    uncertainty = calibration.apply(raw)
    seen = splits["train"] | splits["validation"] | splits["calibration"]
    baseline = _baseline(answers.statistics, wrong, seen)

    calibration_set = CalibrationSet(
        uncertainty=tuple(uncertainty[calibrating].tolist()),
        wrong=tuple(wrong[calibrating].tolist()),
        typicality=reference,
        typical=_typical_maps(answers, splits["calibration"]) if stage == "answer" and answers.signatures else None,
        splits={
            name: tuple(row_digest(str(answers.ids[row])) for row in np.flatnonzero(rows))
            for name, rows in splits.items()
        },
    )
    datasets = _dataset_rows(names, wrong, seen)
    test = splits["test"] & np.isin(names, [name for name, known in datasets.items() if known.counted])
    figures = held_out(wrong[test], uncertainty[test], names[test], groups[test])
    findings = (
        *figure_findings(figures.auroc, figures.brier_skill, figures.groups),
        *calibration_findings(int(calibrating.sum())),
        *feature_findings(_constant_share(answers, best.metadata.features, splits["train"] & independent)),
    )
    check_findings(findings, accept=accept)
    manifest = answers.manifest
    metadata = BundleMetadata(
        model=manifest.model,
        fingerprint=manifest.fingerprint,
        prompt=manifest.prompt,
        wordings=listed,
        max_new_tokens=manifest.max_new_tokens,
        stage=stage,
        features=best.metadata.features,
        statistics=answers.known,
        candidates=tuple(one.metadata for one in candidates),
        blending=blending,
        calibration=calibration,
        rows={name: int(rows.sum()) for name, rows in splits.items()}
        | {"unanswered": answers.unanswered, "rare_wordings": int((~(seen | splits["test"])).sum())},
        groups={name: int((rows & independent).sum()) for name, rows in splits.items()},
        group_by=answers.group_by,
        datasets=datasets,
        held_out=figures,
        baseline=held_out(wrong[test], baseline[test], names[test], groups[test]),
        findings=findings,
        versions={**manifest.versions, "lightgbm": lightgbm.__version__},
    )
    write_bundle(
        metadata, best.booster.model_to_string(), calibration_set, traffic.profile(best.metadata.features), folder
    )
    return metadata


def _choices(answers: Answers, stage: Stage, wanted: tuple[FeatureGroup, ...]) -> tuple[tuple[FeatureGroup, ...], ...]:
    """The choices of features: of a model that can't be tapped, only the statistics of its answers."""
    known = FEATURES[stage] if answers.signatures else tuple(one for one in FEATURES[stage] if one == ("statistics",))
    if not known:
        raise FitError(
            f"{answers.manifest.model!r} can't be tapped, so nothing is known of it before it has answered: fit to the "
            "stage 'answer'"
        )
    if not wanted:
        return known
    if len(set(wanted)) < len(wanted):
        raise FitError(f"each group of features is named once, got {wanted!r}")
    usable = _usable(answers, stage)
    if unusable := [group for group in wanted if group not in usable]:
        raise FitError(
            f"the features {unusable!r} aren't known of these rows at the stage {stage!r}; known are {usable!r}"
        )
    return (wanted,)


def _usable(answers: Answers, stage: Stage) -> tuple[FeatureGroup, ...]:
    groups: tuple[FeatureGroup, ...] = get_args(FeatureGroup)
    if stage == "prompt":
        return tuple(group for group in groups if positions_of(group) == ("prompt",))
    return groups if answers.signatures else ("statistics",)


def check_findings(findings: Sequence[BundleFinding], *, accept: bool) -> None:
    """Refuse a score that is below the line.

    Raises:
        UnacceptedFindingsError: it is, and it isn't accepted all the same.
    """
    errors = [describe(finding) for finding in findings if finding.is_error]
    if errors and not accept:
        listed = "".join(f"\n- {sentence}" for sentence in errors)
        raise UnacceptedFindingsError(
            f"no bundle was written: a guard that relies on this score would be no safer than one without it.{listed}\n"
            "To write it all the same, give --accept (in Python: accept=True)"
        )


def _constant_share(answers: Answers, features: Sequence[FeatureGroup], rows: Mask) -> float:
    """The share of features that have one value in nearly all of these rows."""
    columns = feature_matrix(
        features, {name: maps[rows] for name, maps in answers.signatures.items()}, answers.statistics[rows]
    )
    middle = np.percentile(columns, 50, axis=0, method="lower")  # the value that most rows have, if any
    return float(((columns == middle).mean(axis=0) >= NEARLY_ALL).mean())


def _check_finite(answers: Answers) -> None:
    """Refuse NaN: LightGBM takes it for a missing value, and learns from where values are missing."""
    for name, values in (("statistics", answers.statistics), *answers.signatures.items()):
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            first = answers.ids[int(np.argmin(finite))]
            raise FitError(
                f"{int((~finite).sum())} rows hold numbers in {name!r} that aren't finite, such as {first!r:.60}"
            )


def _dataset_rows(names: np.ndarray, wrong: Mask, seen: Mask) -> dict[str, DatasetRows]:
    """Count each dataset's rows and right answers; where no dataset would count in the metrics, all do."""
    least, most = ACCURACY_RANGE
    shares = {str(name): float(1 - wrong[(names == name) & seen].mean()) for name in np.unique(names[seen])}
    usable = {name for name, share in shares.items() if least <= share <= most} or set(shares)
    return {
        str(name): DatasetRows(
            rows=int((names == name).sum()), right=int((~wrong[names == name]).sum()), counted=str(name) in usable
        )
        for name in np.unique(names)
    }


def calibrate(
    raw: Float64[np.ndarray, " rows"],
    wrong: Mask,
    weights: Float64[np.ndarray, " rows"] | None = None,
    *,
    terms: Literal[2, 3] = 3,
) -> BetaCalibration:
    """Fit beta calibration, without a term that would reverse the order, as its authors do.

    Args:
        raw: scores before calibration, 0 to 1.
        wrong: whether each answer was wrong; both classes occur.
        weights: how many rows each row stands for; 1 without them.
        terms: parameters of the map; with two, for few rows, it is Platt's: ``a`` and ``b`` are the same.

    Raises:
        FitError: higher scores are less often wrong.
    """
    columns = np.column_stack(calibration_terms(raw))
    if terms == 2:
        model = LogisticRegression(C=1e6).fit(columns.sum(axis=1, keepdims=True), wrong, sample_weight=weights)
        if (slope := float(model.coef_[0, 0])) > 0:
            return BetaCalibration(a=slope, b=slope, c=float(model.intercept_[0]))
        raise FitError(_WRONG_WAY)
    kept = [0, 1]
    while kept:
        model = LogisticRegression(C=1e6).fit(columns[:, kept], wrong, sample_weight=weights)
        slopes = dict(zip(kept, model.coef_[0].tolist(), strict=True))
        if min(slopes.values()) >= 0:
            return BetaCalibration(a=slopes.get(0, 0.0), b=slopes.get(1, 0.0), c=float(model.intercept_[0]))
        kept.remove(min(slopes, key=lambda term: slopes[term]))
    raise FitError(_WRONG_WAY)


def fit_statistics(statistics: Float64[np.ndarray, "rows statistics"], wrong: Mask) -> Pipeline:
    """Fit a logistic regression to standardised output statistics."""
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(statistics, wrong)


def _baseline(
    statistics: Float64[np.ndarray, "rows statistics"], wrong: Mask, seen: Mask
) -> Float64[np.ndarray, " rows"]:
    """Score every row by its output statistics alone, with a model fitted to all but the test rows."""
    model = fit_statistics(statistics[seen], wrong[seen])
    uncertainty: Float64[np.ndarray, " rows"] = model.predict_proba(statistics)[:, 1]
    return uncertainty


def _typical_maps(answers: Answers, calibration: Mask) -> TypicalMaps:
    def typical(rows: Mask) -> tuple[tuple[float, ...], ...]:
        logarithms = np.log1p(answers.signatures["mean"][rows], dtype=np.float64)
        # Four decimals are finer than the colours that show them.
        nats = np.expm1(logarithms.mean(axis=0)).round(4)
        return tuple(map(tuple, nats.tolist()))

    return TypicalMaps(right=typical(calibration & ~answers.wrong), wrong=typical(calibration & answers.wrong))
