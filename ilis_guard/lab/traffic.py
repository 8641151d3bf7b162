"""Measure traffic profiles: find the kinds of requests there are in some traffic, and the moments of each."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from ilis_guard.errors import ProfileError
from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.scoring.columns import Columns, columns_of
from ilis_guard.scoring.features import FeatureGroup
from ilis_guard.scoring.profile import LEAST_ANSWERS
from ilis_guard.scoring.traffic import (
    FARTHEST,
    LARGEST,
    Moments,
    Normaliser,
    TrafficKind,
    TrafficProfile,
    measure_kind,
)
from ilis_guard.types import Stage

MOST_KINDS: Final = 12
SEPARATE: Final = 0.25
"""Least mean silhouette of clusters that are taken for kinds; below it, all traffic is one kind."""
MOST_COMPARED: Final = 2_000
"""Rows that silhouettes are computed on: they take quadratic time."""
ALL: Final = "all"
"""The name of the kind where there is only one."""


def profile_by_prompts(columns: Columns, *, seed: int = 0) -> TrafficProfile:
    """Profile traffic whose kinds nobody named: clusters of the prompts' maps.

    Args:
        columns: of answers to requests as they come, at least `LEAST_ANSWERS`.
        seed: of the clusters.

    """
    prompts = Moments.of(columns.prompt)
    clusters = _clusters(_standardised(columns.prompt, prompts), seed)
    names = [ALL] if len(clusters) == 1 else [f"cluster {number}" for number in range(1, len(clusters) + 1)]
    centres = [() if len(clusters) == 1 else tuple(centre.round(4).tolist()) for centre in clusters]
    unmeasured = TrafficProfile(
        kinds=tuple(
            TrafficKind(name=name, rows=1, moments={}, centre=centre)
            for name, centre in zip(names, centres, strict=True)
        ),
        prompts=prompts,
    )
    # As they will be told apart later: by the nearest centre, and not as the clusters were found.
    kinds = Normaliser(unmeasured).nearest_kinds(columns.prompt)
    measured = tuple(
        measure_kind(columns.take(kinds == number), name, centre)
        for number, (name, centre) in enumerate(zip(names, centres, strict=True))
    )
    return TrafficProfile(kinds=measured, prompts=prompts)


def profile_by_label(columns: Columns, label: str, values: Sequence[str]) -> TrafficProfile:
    """Profile traffic whose kinds a label names.

    Args:
        columns: of answers to requests as they come.
        label: of the requests.
        values: of the label, a text for each row.

    Raises:
        ProfileError: a kind has too few rows.
    """
    named = np.array(values, dtype=object)
    kinds = []
    for value in sorted(set(values)):
        rows = columns.take(named == value)
        if len(rows) < LEAST_ANSWERS:
            raise ProfileError(
                f"the kind {value!r:.60} (label {label!r:.60}) has {len(rows)} answers, and a kind needs "
                f"{LEAST_ANSWERS}: add answers to it, or take a label with fewer values"
            )
        kinds.append(measure_kind(rows, value))
    return TrafficProfile(kinds=tuple(kinds), prompts=Moments.of(columns.prompt), label=label)


def check_traffic(rows: Sequence[Columns]) -> None:
    """Check that a profile of these answers means anything.

    Args:
        rows: the columns of each answer.

    Raises:
        ProfileError: there are too few, nothing varies, or a number is beyond all measure.
    """
    if len(rows) < LEAST_ANSWERS:
        raise ProfileError(
            f"a traffic profile needs {LEAST_ANSWERS} scored answers, got {len(rows)}: give more of them; 50 give most "
            "of what a profile gives"
        )
    together = Columns.concatenated(rows)
    if not all(np.abs(block).max(initial=0.0) <= LARGEST for block in together.blocks.values()):
        raise ProfileError(f"an answer holds a number beyond {LARGEST:g}, which no model gives: leave it out")
    if not (together.blocks["features"] != together.blocks["features"][0]).any():
        raise ProfileError(
            f"all {len(rows)} answers have the same numbers: they are one answer, repeated. Give answers to different "
            "requests"
        )


def _standardised(values: Float64[np.ndarray, "rows summary"], moments: Moments) -> Float64[np.ndarray, "rows summary"]:
    """As a `Normaliser` does: what varies by rounding alone makes no kinds."""
    spread = np.array(moments.spread)
    per_spread = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    standardised: Float64[np.ndarray, "rows summary"] = (values - np.array(moments.mean)) * per_spread
    return standardised.clip(-FARTHEST, FARTHEST)


def _clusters(prompts: Float64[np.ndarray, "rows summary"], seed: int) -> Float64[np.ndarray, "kinds summary"]:
    """The centres of the clusters that stand apart best; one, where none do."""
    one: Float64[np.ndarray, "kinds summary"] = prompts.mean(axis=0, keepdims=True)
    best, found = SEPARATE, one
    if not prompts.shape[1]:
        return one
    compared = np.random.default_rng(seed).permutation(len(prompts))[:MOST_COMPARED]
    most = min(MOST_KINDS, len(prompts) // LEAST_ANSWERS, len(np.unique(prompts, axis=0)))
    for count in range(2, most + 1):
        clustered = KMeans(count, n_init=4, random_state=seed).fit(prompts)
        kinds: Int64[np.ndarray, " rows"] = clustered.labels_
        if len(np.unique(kinds)) < count or np.bincount(kinds).min() < LEAST_ANSWERS:
            continue
        apart = float(silhouette_score(prompts[compared], kinds[compared]))
        if apart > best:
            best, found = apart, clustered.cluster_centers_
    return found


class HomeTraffic:
    """Answers in units of the traffic that a part of them is.

    Args:
        answers: all.
        stage: what is scored.
        train: the rows that the traffic profile is measured on.
    """

    def __init__(self, answers: Answers, stage: Stage, train: Mask) -> None:
        self._answers = answers
        self._stage = stage
        self._train = train

    def profile(self, features: Sequence[FeatureGroup]) -> TrafficProfile:
        """Measure the profile of the columns that these features need."""
        return profile_by_prompts(self._columns(features).take(self._train))

    def normalised(self, features: Sequence[FeatureGroup]) -> Columns:
        """Compute the columns of all answers in units of the profile."""
        columns, normaliser = self._columns(features), Normaliser(self.profile(features))
        return normaliser.normalise(columns, normaliser.nearest_kinds(columns.prompt))

    def _columns(self, features: Sequence[FeatureGroup]) -> Columns:
        return columns_of_answers(self._answers, features, self._stage)


def columns_of_answers(answers: Answers, features: Sequence[FeatureGroup], stage: Stage) -> Columns:
    """Compute the columns of answers, before they are normalised."""
    return columns_of(features, stage, answers.signatures, answers.statistics, answers.known)
