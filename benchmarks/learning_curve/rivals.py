"""Methods that are given all that a bundle is given: other sets, the profile, improbability, the same use of labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit

from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers
from ilis_guard.lab.baselines.estimator import Estimator, Method, Ranker
from ilis_guard.lab.baselines.methods import OutputStatistics, methods
from ilis_guard.lab.baselines.probes import ProbeEstimator
from ilis_guard.lab.correcting import CorrectionRows
from ilis_guard.lab.fit import calibrate
from ilis_guard.lab.grouping import answer_groups
from ilis_guard.lab.recalibrate import MIN_PER_CLASS_CORRECTED
from ilis_guard.lab.splits import split
from ilis_guard.scoring.blended_trees import improbability
from ilis_guard.scoring.calibration import BetaCalibration
from ilis_guard.scoring.columns import LOGPROBS
from ilis_guard.scoring.correction import Correction, log_odds
from ilis_guard.scoring.traffic import FARTHEST
from ilis_guard.types import STATISTICS

Rows = Int64[np.ndarray, " rows"]
Scores = Float64[np.ndarray, " rows"]
OUTPUT_STATISTICS: Final = OutputStatistics().name
PROBES: Final = tuple(method.name for method in methods() if method.kind == "probe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A method, fitted to other sets twice.

    As rows are, and each set in units of itself: less its mean, in its spreads.
    """

    name: str
    raw: Estimator
    normal: Estimator

    def without_profile(self, rows: Answers) -> Scores:
        """Score rows as they are."""
        return self.raw.predict_proba(rows)

    def profiled(self, rows: Answers, profile: Rows) -> "ProfiledRival":
        """Score rows in units of some of them, whose labels aren't looked at."""
        normal = in_units(rows, lambda values: normalised(values, values[profile]))
        own = self.normal.numbers(normal).astype(np.float64) if isinstance(self.normal, ProbeEstimator) else None
        alone = self.normal.predict_proba(normal)
        return ProfiledRival(
            alone=alone,
            prior=with_improbability(alone, normal.statistics, profile),
            statistics=normal.statistics,
            numbers=own,
        )


def fit_rivals(others: Answers, set_of: Rows) -> Iterator[Rival]:
    """Fit output statistics, and of answers that were observed the probes.

    The validation rows of a split select settings; all others are fitted to.

    Args:
        others: the rows of all other sets.
        set_of: the number of each row's set.
    """
    validation = split(others.datasets, 0, answer_groups(others))["validation"]
    normal = in_units(others, lambda values: _each_set(values, set_of))
    for method in _known(others):
        raw, in_own = (method.fit(rows, ~validation, validation, 0) for rows in (others, normal))
        yield Rival(name=method.name, raw=_estimator(raw), normal=_estimator(in_own))


def in_units(rows: Answers, change: Callable[[np.ndarray], np.ndarray]) -> Answers:
    """Normalise all that output statistics and probes look at."""
    return replace(
        rows,
        statistics=change(rows.statistics),
        activations=None
        if rows.activations is None
        else {site: change(of_site).astype(np.float16) for site, of_site in rows.activations.items()},
        lens=None if rows.lens is None else change(rows.lens).astype(np.float32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledRival:
    """A method's scores of a set in units of its profile, and what labels of it teach."""

    alone: Scores
    """Of the method."""
    prior: Scores
    """With improbability, which bundles count on other traffic than their own: what labels correct."""
    statistics: Float64[np.ndarray, "rows statistics"]
    """Output statistics, normalised."""
    numbers: Float64[np.ndarray, "rows numbers"] | None
    """What a probe looks at, normalised: one layer's activations, or components, or entropies."""

    def corrected(self, labelled: Rows, wrong: Bool[np.ndarray, " labels"], share: float) -> "CorrectedRival":
        """Learn from labels as `correct` does, with the last of them kept for guarantees.

        What a bundle's correction sees of maps, a probe's sees of its own numbers; both see the output statistics.

        Raises:
            FitError: too few are right or wrong, or nothing was learned.
        """
        learning = len(labelled) - int(np.ceil(share * len(labelled)))
        rows, outcomes = labelled[:learning], wrong[:learning]
        if min(outcomes.sum(), (~outcomes).sum()) < MIN_PER_CLASS_CORRECTED:
            raise FitError(f"of {learning} labels {int(outcomes.sum())} are wrong; both kinds are needed")
        parts = [(self.statistics, False), *([] if self.numbers is None else [(self.numbers, True)])]
        features = np.hstack([values for values, _ in parts])
        correction, held_out = CorrectionRows(
            self.prior[rows],
            features[rows],
            [(values.shape[1], is_wide) for values, is_wide in parts],
            wrong=outcomes,
            weights=np.ones(learning),
            groups=np.arange(learning),
        ).fit()
        kept = labelled[learning:]
        raw = correction.apply(self.prior, features)
        calibration = calibrate(np.concatenate([held_out, raw[kept]]), wrong, terms=2)
        return CorrectedRival(raw=raw, correction=correction, calibration=calibration, kept=kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedRival:
    """What some labels made of it."""

    raw: Scores
    """Of all rows of the left-out set."""
    correction: Correction
    calibration: BetaCalibration
    kept: Rows
    """Rows that guarantees rest on."""

    @property
    def uncertainty(self) -> Scores:
        """Of all rows of the left-out set."""
        return self.calibration.apply(self.raw)


def with_improbability(alone: Scores, statistics: Float64[np.ndarray, "rows statistics"], profile: Rows) -> Scores:
    """Add a score's log-odds, in units of the profile as all else is, and how improbable answers are.

    Args:
        alone: the score, 0 to 1.
        statistics: in units of the profile.
        profile: the rows that it was measured on.
    """
    odds = log_odds(alone)
    fused: Scores = expit(normalised(odds, odds[profile]) + improbability(logprobs_in(statistics)))
    return fused


def logprobs_in(statistics: Float64[np.ndarray, "rows statistics"]) -> Float64[np.ndarray, "rows 2"]:
    """Select the log-probabilities that improbability counts."""
    return statistics[:, [STATISTICS.index(name) for name in LOGPROBS]]


def normalised(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Put columns in units of some rows; a column that doesn't vary among them is 0. As profiles of bundles do."""
    precision = np.float64 if values.dtype == np.float64 else np.float32
    mean, spread = of.mean(axis=0, dtype=np.float64), of.std(axis=0, dtype=np.float64)
    per_spread = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    normal = (values.astype(precision) - mean.astype(precision)) * per_spread.astype(precision)
    clipped: np.ndarray = normal.clip(-FARTHEST, FARTHEST)
    return clipped


def _known(rows: Answers) -> Sequence[Method]:
    observed = rows.unsupervised is not None
    return [one for one in methods() if one.name == OUTPUT_STATISTICS or (observed and one.kind == "probe")]


def _estimator(fitted: Estimator | Ranker) -> Estimator:
    assert isinstance(fitted, Estimator), "it learns"
    return fitted


def _each_set(values: np.ndarray, set_of: Rows) -> np.ndarray:
    normal = np.empty(values.shape, dtype=np.float64 if values.dtype == np.float64 else np.float32)
    for one in np.unique(set_of):
        here = set_of == one
        normal[here] = normalised(values[here], values[here])
    return normal
