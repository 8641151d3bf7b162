"""Methods: every way to score an answer, fitted and asked alike, so that they are compared with equal care."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np
from jaxtyping import Float64
from scipy.special import expit
from sklearn.pipeline import Pipeline

from ilis_guard.lab.baselines.checks import check_fittable, finite, observed
from ilis_guard.lab.baselines.observations import SCORES
from ilis_guard.lab.baselines.probes import AllLayersProbe, LayerProbe
from ilis_guard.lab.baselines.search import Search
from ilis_guard.lab.fit import FEATURES, fit_blending, fit_statistics, typicality_reference
from ilis_guard.lab.rows import Mask, Rows
from ilis_guard.lab.sequence_probability import fit_sequence_probability
from ilis_guard.lab.tuning import Grown
from ilis_guard.scoring.calibration import SequenceProbability, raw_scores
from ilis_guard.scoring.features import FeatureGroup
from ilis_guard.scoring.typicality import TypicalityEstimator, profile
from ilis_guard.types import STATISTICS

SIGNATURE: Final = tuple(groups for groups in FEATURES["answer"] if "statistics" not in groups)
"""Of what `ilis-guard fit` lets trees choose from, that which is of signatures alone."""

Kind = Literal["unsupervised", "statistics", "probe", "signature"]
"""What a method rests on: a score that learns from no labels, or labels and output statistics, activations or
signatures."""


class Fitted(Protocol):
    """A method that has learned all that it will."""

    def predict(self, rows: Rows) -> Float64[np.ndarray, " rows"]:
        """Raw scores, higher for more uncertain. What they range over is the method's own: calibration comes after."""


class Method(Protocol):
    """A way to score answers."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def kind(self) -> Kind:
        """What it rests on."""

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> Fitted:
        """Learn from some rows, and choose settings on others.

        Args:
            rows: nothing is looked at but the rows in one of the masks.
            train: what is learned from.
            validation: what settings are chosen on, and where training stops.
            seed: with the same, all comes out the same.

        Raises:
            FitError: there is one class only, a number is missing, or the rows weren't observed as the method needs.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsupervised:
    """A score that was observed: it learns nothing."""

    name: str
    kind: Kind = "unsupervised"

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> "Unsupervised":  # noqa: ARG002 - as all methods
        """Nothing is learned."""
        return self

    def predict(self, rows: Rows) -> Float64[np.ndarray, " rows"]:
        """The score as it was observed.

        Raises:
            FitError: a number is missing, or the rows weren't observed.
        """
        return finite(observed(rows.unsupervised, self.name), self.name, rows.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputStatistics:
    """A logistic regression on the four output statistics, standardised; `ilis-guard fit` shows it beside each bundle.

    No setting is chosen, so the validation rows are learned from too, as there.
    """

    name: str = "output-statistics"
    kind: Kind = "statistics"

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> Fitted:  # noqa: ARG002 - nothing is random
        """As `Method.fit`."""
        check_fittable(rows, train, validation)
        seen = rows.take(train | validation)
        return _Statistics(model=fit_statistics(finite(seen.statistics, self.name, seen.ids), seen.wrong))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statistics:
    model: Pipeline

    def predict(self, rows: Rows) -> Float64[np.ndarray, " rows"]:
        statistics = finite(rows.statistics, "output-statistics", rows.ids)
        probability: Float64[np.ndarray, " rows"] = self.model.predict_proba(statistics)[:, 1]
        return probability


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceProbabilityWithinSets:
    """The log-probability of an answer, weighed as `ilis-guard fit` does: with an intercept for each set."""

    name: str = "sequence-probability"
    kind: Kind = "statistics"

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> Fitted:  # noqa: ARG002 - nothing is random
        """As `Method.fit`; no setting is chosen, so the validation rows are learned from too."""
        check_fittable(rows, train, validation)
        return _Sequence(name=self.name, model=_sequence_probability(self.name, rows.take(train | validation)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sequence:
    name: str
    model: SequenceProbability

    def predict(self, rows: Rows) -> Float64[np.ndarray, " rows"]:
        probability: Float64[np.ndarray, " rows"] = expit(self.model.log_odds(_logprob_sums(self.name, rows)))
        return probability


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees:
    """LightGBM on features and with settings that validation rows choose, grown as `ilis-guard fit` grows them."""

    name: str
    choices: Sequence[tuple[FeatureGroup, ...]]
    search: Search = field(default_factory=Search, repr=False)
    kind: Kind = "signature"

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> Fitted:
        """As `Method.fit`."""
        return _Trees(name=self.name, best=self.search.best(self.name, self.choices, rows, train, validation, seed))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trees:
    name: str
    best: Grown

    def predict(self, rows: Rows) -> Float64[np.ndarray, " rows"]:
        for seen in (rows.statistics, *rows.signatures.values()):
            finite(seen, self.name, rows.ids)
        return raw_scores(self.best.booster, self.best.candidate.features, rows.signatures, rows.statistics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """What `ilis-guard fit` gives a scorer: trees, blended with the answer's probability by familiarity."""

    name: str = "fused"
    search: Search = field(default_factory=Search, repr=False)
    kind: Kind = "signature"

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> Fitted:
        """As `Method.fit`."""
        best = self.search.best(self.name, FEATURES["answer"], rows, train, validation, seed)
        seen = rows.take(train | validation)
        profiles, learned = profile(seen.signatures, "answer"), train[train | validation]
        reference = typicality_reference(profiles, learned, ~learned)
        blending = fit_blending(
            _logprob_sums(self.name, seen), seen.wrong, seen.datasets, profiles, train=learned, validation=~learned
        )
        return _Blended(
            name=self.name,
            best=best,
            sequence=blending.sequence_probability,
            detector=blending.familiarity(reference),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blended:
    name: str
    best: Grown
    sequence: SequenceProbability
    detector: TypicalityEstimator

    def predict(self, rows: Rows) -> Float64[np.ndarray, " rows"]:
        scores = raw_scores(
            self.best.booster,
            self.best.candidate.features,
            rows.signatures,
            rows.statistics,
            log_odds=self.sequence.log_odds(_logprob_sums(self.name, rows)),
            familiarity=self.detector.typicality(profile(rows.signatures, "answer")),
        )
        return finite(scores, self.name, rows.ids)


def _sequence_probability(name: str, rows: Rows) -> SequenceProbability:
    return fit_sequence_probability(_logprob_sums(name, rows), rows.wrong, rows.datasets)


def _logprob_sums(name: str, rows: Rows) -> Float64[np.ndarray, " rows"]:
    logprob_sums: Float64[np.ndarray, " rows"] = rows.statistics[:, STATISTICS.index("logprob_sum")]
    return finite(logprob_sums, name, rows.ids)


def methods() -> tuple[Method, ...]:
    """All of them, in the order of tables: what needs no labels, the probes, and signatures."""
    search = Search()
    return (
        *(Unsupervised(name=score) for score in SCORES),
        OutputStatistics(),
        SequenceProbabilityWithinSets(),
        LayerProbe(name="probe-mlp", site="mlp"),
        LayerProbe(name="probe-residual", site="residual"),
        AllLayersProbe(),
        Trees(name="signature", choices=SIGNATURE, search=search),
        Trees(name="trees", choices=FEATURES["answer"], search=search),
        Fused(search=search),
    )
