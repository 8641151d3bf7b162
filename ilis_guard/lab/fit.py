"""Fit: harvested rows -> a bundle. Trees, calibration and figures each see rows that the others don't."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

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
from ilis_guard.scoring.bundle import (
    BundleMetadata,
    CalibrationSet,
    DatasetRows,
    Split,
    TypicalMaps,
    row_digest,
    write_bundle,
)
from ilis_guard.scoring.calibration import BetaCalibration, calibration_terms
from ilis_guard.scoring.features import FeatureGroup, feature_matrix
from ilis_guard.scoring.shift import ShiftReference, squared_distances
from ilis_guard.types import Stage

FEATURES: Final[Mapping[Stage, tuple[FeatureGroup, ...]]] = {
    "prompt": ("prompt",),
    "answer": ("mean-prompt", "last-prompt", "statistics"),
}
"""Of an answer, what the generated tokens' maps add to the prompt's, with the output statistics: of all that was tried,
this transfers best to questions of another kind (docs/scoring.md). At the prompt, all that there is."""
SHARES: Final[Mapping[Split, float]] = {"train": 0.5, "validation": 0.1, "calibration": 0.2, "test": 0.2}
LEAST_OF_A_CLASS: Final = 50
"""Fewer right or wrong rows can't be split four ways and still say something."""
PARAMETERS: Final[Mapping[str, Any]] = {
    # Hundreds of rows meet thousands of features: few leaves, few columns a tree, strong L2.
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 7,
    "min_data_in_leaf": 20,
    "feature_fraction": 0.2,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    # Threads wait for one another at every split: for so few rows that costs more than it gains, and where another
    # process holds one of the cores it takes fifty times as long.
    "num_threads": 1,
    "verbosity": -1,
}
COUNTED: Final = (0.15, 0.85)
"""A dataset counts in the figures where the model is right so often, judged by the rows that aren't held out."""
MOST_TREES: Final = 500
PATIENCE: Final = 30
"""Training stops when the validation loss hasn't improved for so many trees."""

Rows = Bool[np.ndarray, " rows"]


def fit(harvest: Harvest, folder: Path, *, stage: Stage = "answer", seed: int = 0) -> BundleMetadata:
    """Fit a scorer to harvested rows and write its bundle.

    Half the rows train the trees, a tenth stops their training, a fifth calibrates them, and the last fifth is only
    looked at for the figures in the metadata. Each dataset is split in these shares. Datasets on which the model is
    nearly always right or nearly always wrong are trained on, and left out of the figures.

    Raises:
        FitError: there are too few right or too few wrong answers, a value isn't finite, nothing was learned, or the
            stage is `prompt` and the model couldn't be tapped.
        BundleError: something other than a bundle stands in the folder.
    """
    _check_classes(harvest)
    _check_finite(harvest)
    splits = split(harvest.datasets, seed)
    _check_splits(harvest.wrong, splits)
    groups = _features(harvest, stage)
    features = feature_matrix(groups, harvest.signatures, harvest.statistics)
    wrong = harvest.wrong

    booster = grow_trees(features, wrong, splits["train"], splits["validation"], seed)
    raw = np.asarray(booster.predict(features), dtype=np.float64)
    calibration = calibrate(raw[splits["calibration"]], wrong[splits["calibration"]])
    uncertainty = calibration.apply(raw)
    seen = splits["train"] | splits["validation"] | splits["calibration"]
    baseline = _baseline(harvest.statistics, wrong, seen)

    calibration_set = CalibrationSet(
        uncertainty=tuple(uncertainty[splits["calibration"]].tolist()),
        wrong=tuple(wrong[splits["calibration"]].tolist()),
        shift=shift_reference(harvest.profiles(stage), splits["train"], splits["calibration"]),
        typical=_typical_maps(harvest, splits["calibration"]) if stage == "answer" and harvest.signatures else None,
        splits={
            name: tuple(row_digest(harvest.ids[row]) for row in np.flatnonzero(rows)) for name, rows in splits.items()
        },
    )
    names = np.array(harvest.datasets)
    datasets = _dataset_rows(names, wrong, seen)
    test = splits["test"] & np.isin(names, [name for name, known in datasets.items() if known.counted])
    manifest = harvest.manifest
    metadata = BundleMetadata(
        model=manifest.model,
        fingerprint=manifest.fingerprint,
        prompt=manifest.prompt,
        max_new_tokens=manifest.max_new_tokens,
        stage=stage,
        features=groups,
        statistics=harvest.known,
        calibration=calibration,
        rows={name: int(rows.sum()) for name, rows in splits.items()} | {"unanswered": harvest.unanswered},
        datasets=datasets,
        held_out=held_out(wrong[test], uncertainty[test], names[test]),
        baseline=held_out(wrong[test], baseline[test], names[test]),
        versions={**manifest.versions, "lightgbm": lightgbm.__version__},
    )
    write_bundle(metadata, booster.model_to_string(), calibration_set, folder)
    return metadata


def _features(harvest: Harvest, stage: Stage) -> tuple[FeatureGroup, ...]:
    """What there is to look at: of a model that can't be tapped, the statistics of its answers."""
    if harvest.signatures:
        return FEATURES[stage]
    if stage == "prompt":
        raise FitError(
            f"{harvest.manifest.model!r} can't be tapped, so nothing is known of it before it has answered: fit to the "
            "stage 'answer'"
        )
    return ("statistics",)


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


def grow_trees(
    features: Float64[np.ndarray, "rows features"], wrong: Rows, train: Rows, validation: Rows, seed: int
) -> lightgbm.Booster:
    """Trees that tell wrong answers from right ones by their features; the validation rows end their growth."""
    booster = lightgbm.train(
        {**PARAMETERS, "seed": seed},
        lightgbm.Dataset(features[train], label=wrong[train]),
        num_boost_round=MOST_TREES,
        valid_sets=[lightgbm.Dataset(features[validation], label=wrong[validation])],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    # What is written and read back holds the best trees only.
    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))


def calibrate(
    raw: Float64[np.ndarray, " rows"], wrong: Rows, weights: Float64[np.ndarray, " rows"] | None = None
) -> BetaCalibration:
    """Fit beta calibration; a term that would turn the order round is left out, as its authors do.

    Args:
        raw: scores of the trees, 0 to 1.
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


def shift_reference(profiles: Float64[np.ndarray, "rows profile"], train: Rows, calibration: Rows) -> ShiftReference:
    """What training rows' profiles look like, and how far from that the calibration rows lie."""
    spread = LedoitWolf().fit(profiles[train])
    distances = squared_distances(profiles[calibration], spread.location_, spread.precision_)
    return ShiftReference(
        mean=tuple(spread.location_.tolist()),
        precision=tuple(map(tuple, spread.precision_.tolist())),
        distances=tuple(sorted(distances.tolist())),
    )
