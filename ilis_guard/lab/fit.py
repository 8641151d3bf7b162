"""Fit a scorer to harvested answers and write its bundle.

Trees, calibration and held-out metrics each use rows that the others don't, nor any that depends on one of theirs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

import lightgbm
import numpy as np
from jaxtyping import Float64
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ilis_guard.errors import FitError, UnacceptedFindingsError
from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.grouping import Groups, answer_groups
from ilis_guard.lab.metrics import held_out
from ilis_guard.lab.tuning import Progress, tune
from ilis_guard.scoring.bundle import BundleMetadata, CalibrationSet, DatasetRows, Split, TypicalMaps, row_digest
from ilis_guard.scoring.bundle_files import write_bundle
from ilis_guard.scoring.calibration import BetaCalibration, Blending, SequenceProbability, calibration_terms, raw_scores
from ilis_guard.scoring.features import FeatureGroup, feature_matrix, positions_of
from ilis_guard.scoring.findings import (
    BundleFinding,
    calibration_findings,
    describe,
    feature_findings,
    figure_findings,
)
from ilis_guard.scoring.risk_control import one_of_each
from ilis_guard.scoring.typicality import TypicalityReference, squared_distances
from ilis_guard.types import Stage, Wording

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
SHARES: Final[Mapping[Split, float]] = {"train": 0.5, "validation": 0.1, "calibration": 0.2, "test": 0.2}
MIN_PER_CLASS: Final = 50
"""Fewer right or wrong rows are too few to be split four ways."""
MIN_OF_WORDING: Final = 20
"""Independent calibration rows in one wording, from which on a bundle lists it."""
ACCURACY_RANGE: Final = (0.15, 0.85)
"""A dataset counts in the held-out metrics where the model's accuracy on all other rows is in this range."""
NEARLY_ALL: Final = 0.99
"""Share of the rows from which on a feature that has one value there counts as constant."""
_INTERCEPT_SCALE: Final = 10.0
"""Of the columns that stand for datasets: so large that the penalty hardly affects their coefficients."""
_FAR: Final = 40.0
"""Log-odds at which an answer is as good as certainly right or wrong."""


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
    _check_splits(answers.wrong, splits)
    calibrating = splits["calibration"] & independent
    wrong, names = answers.wrong, answers.datasets
    candidates = tune(
        _choices(answers, stage, tuple(features)),
        answers.signatures,
        answers.statistics,
        wrong,
        train=splits["train"],
        validation=splits["validation"],
        seed=seed,
        progress=progress,
    )
    best = candidates[0]
    profiles = answers.profiles(stage)
    reference = typicality_reference(profiles, splits["train"], calibrating)
    blending = _blending(answers, stage, splits["train"], splits["validation"])
    raw = raw_scores(
        best.booster,
        best.metadata.features,
        answers.signatures,
        answers.statistics,
        log_odds=None if blending is None else blending.sequence_probability.log_odds(_logprob_sums(answers)),
        familiarity=None if blending is None else blending.familiarity(reference).typicality(profiles),
    )
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
    write_bundle(metadata, best.booster.model_to_string(), calibration_set, folder)
    return metadata


def list_wordings(wordings: np.ndarray, calibrating: Mask) -> tuple[Wording, ...]:
    """The wordings that enough calibration rows have, the most frequent first; of rows in one wording, that one.

    Raises:
        FitError: none has enough.
    """
    counts = Counter(wordings[calibrating].tolist()).most_common()
    known = set(wordings.tolist())
    if listed := tuple(wording for wording, count in counts if count >= MIN_OF_WORDING or len(known) == 1):
        return listed
    most = counts[0][1] if counts else 0
    raise FitError(
        f"the rows have {len(known)} wordings (system messages, earlier turns and prompts), and none has "
        f"{MIN_OF_WORDING} independent calibration rows, the most {most}: harvest more questions in fewer wordings"
    )


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


def _blending(answers: Answers, stage: Stage, train: Mask, validation: Mask) -> Blending | None:
    """Fit what is blended with the trees; None where the tokens' log-probabilities aren't known."""
    if stage == "prompt" or "logprob_sum" not in answers.known:
        return None
    return fit_blending(
        _logprob_sums(answers),
        answers.wrong,
        answers.datasets,
        answers.profiles(stage),
        train=train,
        validation=validation,
    )


def fit_blending(
    logprob_sum: Float64[np.ndarray, " rows"],
    wrong: Mask,
    datasets: np.ndarray,
    profiles: Float64[np.ndarray, "rows profile"],
    *,
    train: Mask,
    validation: Mask,
) -> Blending:
    """Fit what is blended with the trees, to the rows that trained and selected them.

    Args:
        logprob_sum: of each answer, nats.
        wrong: some are and some aren't.
        datasets: the name of each row's dataset.
        profiles: what typicality compares.
        train: rows that give the location and spread of familiar profiles.
        validation: rows that give the distances of familiar profiles.
    """
    seen = train | validation
    return Blending(
        sequence_probability=fit_sequence_probability(logprob_sum[seen], wrong[seen], datasets[seen]),
        distances=typicality_reference(profiles, train, validation).distances,
    )


def fit_sequence_probability(
    logprob_sum: Float64[np.ndarray, " rows"], wrong: Mask, datasets: np.ndarray
) -> SequenceProbability:
    """Fit a logistic regression of being wrong on the log-probability, with an intercept for each dataset.

    Without these intercepts the slope would also reflect how long a dataset's answers are and how often they are wrong.
    The one intercept that is kept is the one with which, at that slope, as many answers are expected to be wrong as
    are.

    Args:
        logprob_sum: of each answer, nats.
        wrong: both classes occur.
        datasets: the name of each row's dataset.
    """
    names, places = np.unique(datasets, return_inverse=True)
    # Less the dataset's mean, which the intercepts absorb: otherwise the penalty would shrink the slope the more, the
    # more datasets differ in the length of their answers.
    away = logprob_sum - (np.bincount(places, weights=logprob_sum) / np.bincount(places))[places]
    spread = float(away.std()) or 1.0
    columns = np.column_stack([-away / spread, _INTERCEPT_SCALE * np.eye(len(names))[places]])
    fitted = LogisticRegression(fit_intercept=False, max_iter=1000).fit(columns, wrong)
    slope = max(float(fitted.coef_[0, 0]), 0.0) / spread

    def excess(intercept: float) -> float:
        return float(np.mean(expit(intercept - slope * logprob_sum) - wrong))

    steep = slope * logprob_sum
    intercept = float(brentq(excess, steep.min() - _FAR, steep.max() + _FAR))
    return SequenceProbability(slope=slope, intercept=intercept)


def _logprob_sums(answers: Answers) -> Float64[np.ndarray, " rows"]:
    return answers.statistics[:, answers.known.index("logprob_sum")]


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


def check_classes(wrong: Mask, independent: Mask, least: int, *, need: str, remedy: str) -> None:
    """Check that there are enough right and enough wrong answers.

    Args:
        wrong: of all rows.
        independent: one row of each group.
        least: so many of each.
        need: who needs them, for the message.
        remedy: what to do, for the message.

    Raises:
        FitError: there aren't.
    """
    bad = int(wrong[independent].sum())
    right = int(independent.sum()) - bad
    if min(bad, right) < least:
        repeated = len(wrong) - right - bad
        beside = f" ({repeated} more depend on them and don't count)" if repeated else ""
        raise FitError(
            f"of {right + bad} scored answers {right} are right and {bad} wrong{beside}; {need} at least {least} of "
            f"each: {remedy}"
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


def _check_splits(wrong: Mask, splits: Mapping[Split, Mask]) -> None:
    """Refuse a split of one class: early stopping, calibration and metrics mean nothing there."""
    for name, rows in splits.items():
        bad, size = int(wrong[rows].sum()), int(rows.sum())
        if bad in (0, size):
            raise FitError(f"the {name} rows hold {size - bad} right and {bad} wrong answers: harvest more questions")


def split(datasets: np.ndarray, seed: int, groups: Groups | None = None) -> dict[Split, Mask]:
    """Assign each dataset's groups to the splits at random, in their shares.

    Args:
        datasets: the name of each row's dataset; of a group, that of its first row counts.
        seed: of the assignment.
        groups: index of the first row of each row's group; None where each row is a group of its own.
    """
    random = np.random.default_rng(seed)
    first = np.arange(len(datasets)) if groups is None else groups
    is_first = first == np.arange(len(datasets))
    place = np.empty(len(datasets))
    for dataset in np.unique(datasets):
        rows = np.flatnonzero(is_first & (datasets == dataset))
        place[random.permutation(rows)] = (np.arange(len(rows)) + random.random()) / max(1, len(rows))
    ends = np.cumsum(list(SHARES.values()))
    part = np.searchsorted(ends[:-1], place[first], side="right")
    return {name: part == index for index, name in enumerate(SHARES)}


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
    raw: Float64[np.ndarray, " rows"], wrong: Mask, weights: Float64[np.ndarray, " rows"] | None = None
) -> BetaCalibration:
    """Fit beta calibration, without a term that would reverse the order, as its authors do.

    Args:
        raw: scores before calibration, 0 to 1.
        wrong: whether each answer was wrong; both classes occur.
        weights: how many rows each row stands for; 1 without them.

    Raises:
        FitError: higher scores are less often wrong.
    """
    terms = np.column_stack(calibration_terms(raw))
    kept = [0, 1]
    while kept:
        model = LogisticRegression(C=1e6).fit(terms[:, kept], wrong, sample_weight=weights)
        slopes = dict(zip(kept, model.coef_[0].tolist(), strict=True))
        if min(slopes.values()) >= 0:
            return BetaCalibration(a=slopes.get(0, 0.0), b=slopes.get(1, 0.0), c=float(model.intercept_[0]))
        kept.remove(min(slopes, key=lambda term: slopes[term]))
    raise FitError("the score ranks the calibration rows the wrong way round: nothing was learned from these rows")


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


def typicality_reference(
    profiles: Float64[np.ndarray, "rows profile"], train: Mask, calibration: Mask
) -> TypicalityReference:
    """Fit the location and spread of training profiles, and measure the calibration rows' distances from them."""
    spread = LedoitWolf().fit(profiles[train])
    distances = squared_distances(profiles[calibration], spread.location_, spread.precision_)
    return TypicalityReference(
        mean=tuple(spread.location_.tolist()),
        precision=tuple(map(tuple, spread.precision_.tolist())),
        distances=tuple(sorted(distances.tolist())),
    )
