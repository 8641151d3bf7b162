"""Fit: harvested rows -> a bundle. Trees, calibration and figures each see rows that the others don't."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, get_args

import lightgbm
import numpy as np
from jaxtyping import Bool, Float64
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ilis_guard.errors import FitError
from ilis_guard.lab.harvest import Harvest
from ilis_guard.lab.metrics import held_out
from ilis_guard.lab.sequence_probability import fit_sequence_probability
from ilis_guard.lab.tuning import Progress, grow
from ilis_guard.scoring.bundle import BundleMetadata, CalibrationSet, DatasetRows, Split, TypicalMaps, row_digest
from ilis_guard.scoring.bundle_files import write_bundle
from ilis_guard.scoring.calibration import BetaCalibration, Blending, calibration_terms, raw_scores
from ilis_guard.scoring.features import FeatureGroup, positions_of
from ilis_guard.scoring.typicality import TypicalityReference, squared_distances
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
"""What the trees may look at: validation rows choose. Of an answer, what the generated tokens' maps add to the prompt's
one, whole or summed up, with the output statistics; and each of the two alone (docs/scoring.md)."""
SHARES: Final[Mapping[Split, float]] = {"train": 0.5, "validation": 0.1, "calibration": 0.2, "test": 0.2}
LEAST_OF_A_CLASS: Final = 50
"""Fewer right or wrong rows can't be split four ways and still say something."""
COUNTED: Final = (0.15, 0.85)
"""A dataset counts in the figures where the model is right so often, judged by the rows that aren't held out."""

Rows = Bool[np.ndarray, " rows"]


def fit(
    harvest: Harvest,
    folder: Path,
    *,
    stage: Stage = "answer",
    features: Sequence[FeatureGroup] = (),
    seed: int = 0,
    progress: Progress = lambda _done, _all: None,
) -> BundleMetadata:
    """Fit a scorer to harvested rows and write its bundle.

    Half the rows train the trees, a tenth stops their training and chooses features and settings, a fifth calibrates
    them, and the last fifth is only looked at for the figures in the metadata. Each dataset is split in these shares.
    Datasets on which the model is nearly always right or nearly always wrong are trained on, and left out of the
    figures.

    Args:
        harvest: labelled rows.
        folder: the bundle's.
        stage: what is scored.
        features: what the trees look at; without any, validation rows choose among `FEATURES`.
        seed: of the splits and the trees.
        progress: told of each candidate that was grown.

    Raises:
        FitError: there are too few right or too few wrong answers, a value isn't finite, nothing was learned, or a
            feature isn't known at this stage or of this model.
        BundleError: something other than a bundle stands in the folder.
    """
    _check_classes(harvest)
    _check_finite(harvest)
    splits = split(harvest.datasets, seed)
    _check_splits(harvest.wrong, splits)
    wrong, names = harvest.wrong, np.array(harvest.datasets)
    grown = grow(
        _choices(harvest, stage, tuple(features)),
        harvest.signatures,
        harvest.statistics,
        wrong,
        train=splits["train"],
        validation=splits["validation"],
        seed=seed,
        progress=progress,
    )
    best = grown[0]
    profiles = harvest.profiles(stage)
    reference = typicality_reference(profiles, splits["train"], splits["calibration"])
    blending = _blending(harvest, stage, splits["train"], splits["validation"])
    raw = raw_scores(
        best.booster,
        best.candidate.features,
        harvest.signatures,
        harvest.statistics,
        log_odds=None if blending is None else blending.sequence_probability.log_odds(_logprob_sums(harvest)),
        familiarity=None if blending is None else blending.familiarity(reference).typicality(profiles),
    )
    calibration = calibrate(raw[splits["calibration"]], wrong[splits["calibration"]])
    uncertainty = calibration.apply(raw)
    seen = splits["train"] | splits["validation"] | splits["calibration"]
    baseline = _baseline(harvest.statistics, wrong, seen)

    calibration_set = CalibrationSet(
        uncertainty=tuple(uncertainty[splits["calibration"]].tolist()),
        wrong=tuple(wrong[splits["calibration"]].tolist()),
        typicality=reference,
        typical=_typical_maps(harvest, splits["calibration"]) if stage == "answer" and harvest.signatures else None,
        splits={
            name: tuple(row_digest(harvest.ids[row]) for row in np.flatnonzero(rows)) for name, rows in splits.items()
        },
    )
    datasets = _dataset_rows(names, wrong, seen)
    test = splits["test"] & np.isin(names, [name for name, known in datasets.items() if known.counted])
    manifest = harvest.manifest
    metadata = BundleMetadata(
        model=manifest.model,
        fingerprint=manifest.fingerprint,
        prompt=manifest.prompt,
        max_new_tokens=manifest.max_new_tokens,
        stage=stage,
        features=best.candidate.features,
        statistics=harvest.known,
        candidates=tuple(one.candidate for one in grown),
        blending=blending,
        calibration=calibration,
        rows={name: int(rows.sum()) for name, rows in splits.items()} | {"unanswered": harvest.unanswered},
        datasets=datasets,
        held_out=held_out(wrong[test], uncertainty[test], names[test]),
        baseline=held_out(wrong[test], baseline[test], names[test]),
        versions={**manifest.versions, "lightgbm": lightgbm.__version__},
    )
    write_bundle(metadata, best.booster.model_to_string(), calibration_set, folder)
    return metadata


def _choices(harvest: Harvest, stage: Stage, wanted: tuple[FeatureGroup, ...]) -> tuple[tuple[FeatureGroup, ...], ...]:
    """What there is to choose from: of a model that can't be tapped, the statistics of its answers."""
    known = FEATURES[stage] if harvest.signatures else tuple(one for one in FEATURES[stage] if one == ("statistics",))
    if not known:
        raise FitError(
            f"{harvest.manifest.model!r} can't be tapped, so nothing is known of it before it has answered: fit to the "
            "stage 'answer'"
        )
    if not wanted:
        return known
    if len(set(wanted)) < len(wanted):
        raise FitError(f"each group of features is named once, got {wanted!r}")
    usable = _usable(harvest, stage)
    if unusable := [group for group in wanted if group not in usable]:
        raise FitError(
            f"the features {unusable!r} aren't known of these rows at the stage {stage!r}; known are {usable!r}"
        )
    return (wanted,)


def _usable(harvest: Harvest, stage: Stage) -> tuple[FeatureGroup, ...]:
    groups: tuple[FeatureGroup, ...] = get_args(FeatureGroup)
    if stage == "prompt":
        return tuple(group for group in groups if positions_of(group) == ("prompt",))
    return groups if harvest.signatures else ("statistics",)


def _blending(harvest: Harvest, stage: Stage, train: Rows, validation: Rows) -> Blending | None:
    """None where nothing is known of an answer's tokens."""
    if stage == "prompt" or "logprob_sum" not in harvest.known:
        return None
    return fit_blending(
        _logprob_sums(harvest),
        harvest.wrong,
        np.array(harvest.datasets),
        harvest.profiles(stage),
        train=train,
        validation=validation,
    )


def fit_blending(
    logprob_sum: Float64[np.ndarray, " rows"],
    wrong: Rows,
    datasets: np.ndarray,
    profiles: Float64[np.ndarray, "rows profile"],
    *,
    train: Rows,
    validation: Rows,
) -> Blending:
    """What is blended with the trees' word, of the rows that the trees were grown on and chosen by.

    Args:
        logprob_sum: of each answer, nats.
        wrong: some are and some aren't.
        datasets: their names, one a row.
        profiles: what typicality compares.
        train: what familiar rows look like.
        validation: and how far from that familiar rows lie.
    """
    seen = train | validation
    return Blending(
        sequence_probability=fit_sequence_probability(logprob_sum[seen], wrong[seen], datasets[seen]),
        distances=typicality_reference(profiles, train, validation).distances,
    )


def _logprob_sums(harvest: Harvest) -> Float64[np.ndarray, " rows"]:
    return harvest.statistics[:, harvest.known.index("logprob_sum")]


def _check_classes(harvest: Harvest) -> None:
    wrong = int(harvest.wrong.sum())
    right = len(harvest.wrong) - wrong
    if min(wrong, right) < LEAST_OF_A_CLASS:
        raise FitError(
            f"of {len(harvest.wrong)} scored answers {right} are right and {wrong} wrong; a fit needs at least "
            f"{LEAST_OF_A_CLASS} of each: harvest more questions, or ones that the model gets right 20 to 80 % of "
            "the time"
        )


def _check_finite(harvest: Harvest) -> None:
    """LightGBM takes a number that isn't one for a missing value, and learns from where they are missing."""
    for name, values in (("statistics", harvest.statistics), *harvest.signatures.items()):
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            first = harvest.ids[int(np.argmin(finite))]
            raise FitError(
                f"{int((~finite).sum())} rows hold numbers in {name!r} that aren't finite, such as {first!r:.60}"
            )


def _check_splits(wrong: Rows, splits: Mapping[Split, Rows]) -> None:
    """With one class only, training stops anywhere, and neither calibration nor figures mean anything."""
    for name, rows in splits.items():
        bad, size = int(wrong[rows].sum()), int(rows.sum())
        if bad in (0, size):
            raise FitError(f"the {name} rows hold {size - bad} right and {bad} wrong answers: harvest more questions")


def split(datasets: tuple[str, ...], seed: int) -> dict[Split, Rows]:
    """Each dataset's rows, shuffled and dealt out in the shares."""
    random = np.random.default_rng(seed)
    names = np.array(datasets)
    place = np.empty(len(names))
    for dataset in sorted(set(datasets)):
        rows = np.flatnonzero(names == dataset)
        place[random.permutation(rows)] = (np.arange(len(rows)) + random.random()) / len(rows)
    ends = np.cumsum(list(SHARES.values()))
    part = np.searchsorted(ends[:-1], place, side="right")
    return {name: part == index for index, name in enumerate(SHARES)}


def _dataset_rows(names: np.ndarray, wrong: Rows, seen: Rows) -> dict[str, DatasetRows]:
    """How the model fared on each dataset; where none would count, all do."""
    least, most = COUNTED
    shares = {str(name): float(1 - wrong[(names == name) & seen].mean()) for name in np.unique(names[seen])}
    usable = {name for name, share in shares.items() if least <= share <= most} or set(shares)
    return {
        str(name): DatasetRows(
            rows=int((names == name).sum()), right=int((~wrong[names == name]).sum()), counted=str(name) in usable
        )
        for name in np.unique(names)
    }


def calibrate(
    raw: Float64[np.ndarray, " rows"], wrong: Rows, weights: Float64[np.ndarray, " rows"] | None = None
) -> BetaCalibration:
    """Fit beta calibration; a term that would turn the order round is left out, as its authors do.

    Args:
        raw: scores before calibration, 0 to 1.
        wrong: whether the answers were wrong; some are and some aren't.
        weights: how many rows each one stands for; without them, itself.

    Raises:
        FitError: a higher score means less often wrong.
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


def fit_statistics(statistics: Float64[np.ndarray, "rows statistics"], wrong: Rows) -> Pipeline:
    """What output statistics alone say: a logistic regression on them, standardised."""
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(statistics, wrong)


def _baseline(
    statistics: Float64[np.ndarray, "rows statistics"], wrong: Rows, seen: Rows
) -> Float64[np.ndarray, " rows"]:
    """What output statistics alone say, learned from every row but the test's."""
    model = fit_statistics(statistics[seen], wrong[seen])
    uncertainty: Float64[np.ndarray, " rows"] = model.predict_proba(statistics)[:, 1]
    return uncertainty


def _typical_maps(harvest: Harvest, calibration: Rows) -> TypicalMaps:
    def typical(rows: Rows) -> tuple[tuple[float, ...], ...]:
        logarithms = np.log1p(harvest.signatures["mean"][rows], dtype=np.float64)
        # Four decimals are more than a colour shows.
        nats = np.expm1(logarithms.mean(axis=0)).round(4)
        return tuple(map(tuple, nats.tolist()))

    return TypicalMaps(right=typical(calibration & ~harvest.wrong), wrong=typical(calibration & harvest.wrong))


def typicality_reference(
    profiles: Float64[np.ndarray, "rows profile"], train: Rows, calibration: Rows
) -> TypicalityReference:
    """What training rows' profiles look like, and how far from that the calibration rows lie."""
    spread = LedoitWolf().fit(profiles[train])
    distances = squared_distances(profiles[calibration], spread.location_, spread.precision_)
    return TypicalityReference(
        mean=tuple(spread.location_.tolist()),
        precision=tuple(map(tuple, spread.precision_.tolist())),
        distances=tuple(sorted(distances.tolist())),
    )
