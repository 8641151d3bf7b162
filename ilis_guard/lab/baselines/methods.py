"""Every method that scores answers, behind one interface, so that all are compared alike."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.special import expit
from sklearn.pipeline import Pipeline

from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.baselines.estimator import Estimator, Kind, Method, check_fittable, finite, observed
from ilis_guard.lab.baselines.observations import SCORES
from ilis_guard.lab.baselines.probes import AllLayersProbe, LayerProbe, LensProbe
from ilis_guard.lab.baselines.sequence_probability import SequenceProbability, fit_sequence_probability
from ilis_guard.lab.blending import fit_blending
from ilis_guard.lab.fit import FEATURES, fit_statistics
from ilis_guard.lab.ridge import feature_widths
from ilis_guard.lab.traffic import HomeTraffic, columns_of_answers
from ilis_guard.lab.tuning import Candidate, tune
from ilis_guard.scoring.blended_trees import BlendedTrees, Blending
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.features import FeatureGroup
from ilis_guard.scoring.traffic import Normaliser, TrafficProfile
from ilis_guard.types import STATISTICS

SIGNATURE: Final = tuple(groups for groups in FEATURES["answer"] if "statistics" not in groups)
"""Of the choices of features of `ilis-guard fit`, those of signatures alone."""


class TreeSearch:
    """Tunes trees as `ilis-guard fit` does, and caches the last result: methods are fitted to the same rows in turn."""

    def __init__(self) -> None:
        self._rows: Answers | None = None
        self._key: tuple[bytes, bytes, int] | None = None
        self._candidates: list[Candidate] = []

    def best(
        self,
        name: str,
        choices: Collection[tuple[FeatureGroup, ...]],
        rows: Answers,
        train: Mask,
        validation: Mask,
        seed: int,
    ) -> Candidate:
        """Return the trees with the smallest loss on the validation rows, of those with one of the choices of features.

        Args:
            name: the method's, for messages.
            choices: some of `FEATURES`.
            rows: as `Method.fit`, with what follows.
            train: the rows to fit to.
            validation: the rows that select.
            seed: the method's.

        Raises:
            FitError: as `Method.fit`.
        """
        key = (train.tobytes(), validation.tobytes(), seed)
        if self._rows is not rows or self._key != key:
            self._candidates = _tune(name, rows, train, validation, seed)
            self._rows, self._key = rows, key
        return next(one for one in self._candidates if one.metadata.features in choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupervised:
    """A score that was observed; nothing is fitted."""

    name: str
    kind: Kind = "unsupervised"

    def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> "Unsupervised":  # noqa: ARG002 - as all methods
        """Return the method itself."""
        return self

    def decision_function(self, rows: Answers) -> Float64[np.ndarray, " rows"]:
        """Return the score as it was observed.

        Raises:
            FitError: a number is missing, or the rows weren't observed.
        """
        return finite(observed(rows.unsupervised, self.name), self.name, rows.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStatistics:
    """A logistic regression on the four output statistics, standardised: the baseline in every bundle's metadata.

    It has no settings to select, so it is fitted to the validation rows too, as there.
    """

    name: str = "output-statistics"
    kind: Kind = "statistics"

    def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> Estimator:  # noqa: ARG002 - nothing is random
        """As `Method.fit`."""
        check_fittable(rows, train, validation)
        seen = rows.take(train | validation)
        return _Statistics(model=fit_statistics(finite(seen.statistics, self.name, seen.ids), seen.wrong))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statistics:
    model: Pipeline

    def predict_proba(self, rows: Answers) -> Float64[np.ndarray, " rows"]:
        statistics = finite(rows.statistics, "output-statistics", rows.ids)
        probability: Float64[np.ndarray, " rows"] = self.model.predict_proba(statistics)[:, 1]
        return probability


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceProbabilityWithinSets:
    """A logistic regression on an answer's log-probability, with an intercept for each set."""

    name: str = "sequence-probability"
    kind: Kind = "statistics"

    def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> Estimator:  # noqa: ARG002 - nothing is random
        """As `Method.fit`; there are no settings to select, so it is fitted to the validation rows too."""
        check_fittable(rows, train, validation)
        return _Sequence(name=self.name, model=_sequence_probability(self.name, rows.take(train | validation)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sequence:
    name: str
    model: SequenceProbability

    def predict_proba(self, rows: Answers) -> Float64[np.ndarray, " rows"]:
        probability: Float64[np.ndarray, " rows"] = expit(self.model.log_odds(_logprob_sums(self.name, rows)))
        return probability


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees:
    """LightGBM with features and settings that validation rows select, as in `ilis-guard fit`."""

    name: str
    choices: Sequence[tuple[FeatureGroup, ...]]
    search: TreeSearch = field(default_factory=TreeSearch, repr=False)
    kind: Kind = "signature"

    def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> Estimator:
        """As `Method.fit`."""
        best = self.search.best(self.name, self.choices, rows, train, validation, seed)
        seen, learned = rows.take(train | validation), train[train | validation]
        home = HomeTraffic(seen, "answer", learned)
        features = best.metadata.features
        columns = home.normalised(features)
        blending = self._blending(best, columns, seen, learned)
        return _Scored(
            name=self.name,
            features=features,
            trees=BlendedTrees(best.booster, blending=blending),
            traffic=home.profile(features),
        )

    def _blending(self, best: Candidate, columns: Columns, seen: Answers, learned: Mask) -> Blending | None:  # noqa: ARG002 - as `Fused`
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused(Trees):
    """The scorer of `ilis-guard fit`: trees, and a linear model beside them."""

    name: str = "fused"
    choices: Sequence[tuple[FeatureGroup, ...]] = FEATURES["answer"]

    def _blending(self, best: Candidate, columns: Columns, seen: Answers, learned: Mask) -> Blending | None:
        return fit_blending(
            best.booster,
            columns,
            feature_widths(best.metadata.features, seen.manifest.fingerprint, len(seen.known)),
            seen.wrong,
            seen.datasets,
            train=learned,
            validation=~learned,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    name: str
    features: tuple[FeatureGroup, ...]
    trees: BlendedTrees
    traffic: TrafficProfile

    def predict_proba(self, rows: Answers) -> Float64[np.ndarray, " rows"]:
        for seen in (rows.statistics, *rows.signatures.values()):
            finite(seen, self.name, rows.ids)
        columns, normaliser = columns_of_answers(rows, self.features, "answer"), Normaliser(self.traffic)
        normal = normaliser.normalise(columns, normaliser.nearest_kinds(columns.prompt))
        return finite(self.trees.raw_scores(normal), self.name, rows.ids)


def _tune(name: str, rows: Answers, train: Mask, validation: Mask, seed: int) -> list[Candidate]:
    check_fittable(rows, train, validation)
    seen = rows.take(train | validation)
    finite(seen.statistics, name, seen.ids)
    for maps in seen.signatures.values():
        finite(maps, name, seen.ids)
    which = train[train | validation]
    home = HomeTraffic(seen, "answer", which)
    return tune(
        FEATURES["answer"],
        lambda features: home.normalised(features).blocks["features"],
        seen.wrong,
        train=which,
        validation=~which,
        seed=seed,
    )


def _sequence_probability(name: str, rows: Answers) -> SequenceProbability:
    return fit_sequence_probability(_logprob_sums(name, rows), rows.wrong, rows.datasets)


def _logprob_sums(name: str, rows: Answers) -> Float64[np.ndarray, " rows"]:
    logprob_sums: Float64[np.ndarray, " rows"] = rows.statistics[:, STATISTICS.index("logprob_sum")]
    return finite(logprob_sums, name, rows.ids)


def methods() -> tuple[Method, ...]:
    """Return all methods in the order of tables: those that need no labels, the probes, and signatures."""
    search = TreeSearch()
    return (
        *(Unsupervised(name=score) for score in SCORES),
        OutputStatistics(),
        SequenceProbabilityWithinSets(),
        LayerProbe(name="probe-mlp", site="mlp"),
        LayerProbe(name="probe-residual", site="residual"),
        AllLayersProbe(),
        LensProbe(),
        Trees(name="signature", choices=SIGNATURE, search=search),
        Trees(name="trees", choices=FEATURES["answer"], search=search),
        Fused(search=search),
    )
