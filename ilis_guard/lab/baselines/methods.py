"""Methods: every way to score an answer, fitted and asked alike, so that they are compared with equal care."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from jaxtyping import Float64
from lightgbm import Booster
from sklearn.pipeline import Pipeline

from ilis_guard.lab.baselines.checks import check_fittable, finite, observed
from ilis_guard.lab.baselines.observations import SCORES
from ilis_guard.lab.baselines.probes import AllLayersProbe, LayerProbe
from ilis_guard.lab.fit import FEATURES, fit_statistics, grow_trees
from ilis_guard.lab.rows import Mask, Rows
from ilis_guard.scoring.features import FeatureGroup, feature_matrix

FUSED: Final = FEATURES["answer"]
"""What `ilis-guard fit` gives a scorer."""
SIGNATURE: Final[Sequence[FeatureGroup]] = tuple(group for group in FUSED if group != "statistics")


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
    def supervised(self) -> bool:
        """Whether it learns from labels."""

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
    supervised: bool = False

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
    supervised: bool = True

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
class Trees:
    """LightGBM on blocks of features, grown as `ilis-guard fit` grows them."""

    name: str
    features: Sequence[FeatureGroup]
    supervised: bool = True

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> Fitted:
        """As `Method.fit`."""
        check_fittable(rows, train, validation)
        seen = rows.take(train | validation)
        features = _features(self, seen)
        which = train[train | validation]
        booster = grow_trees(features, seen.wrong, which, ~which, seed)
        return _Grown(method=self, booster=booster)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grown:
    method: Trees
    booster: Booster

    def predict(self, rows: Rows) -> Float64[np.ndarray, " rows"]:
        return np.asarray(self.booster.predict(_features(self.method, rows)), dtype=np.float64)


def _features(method: Trees, rows: Rows) -> Float64[np.ndarray, "rows features"]:
    return finite(feature_matrix(method.features, rows.signatures, rows.statistics), method.name, rows.ids)


def methods() -> tuple[Method, ...]:
    """All of them, in the order of tables: what needs no labels, the probes, and signatures."""
    return (
        *(Unsupervised(name=score) for score in SCORES),
        OutputStatistics(),
        LayerProbe(name="probe-mlp", site="mlp"),
        LayerProbe(name="probe-residual", site="residual"),
        AllLayersProbe(),
        Trees(name="signature", features=SIGNATURE),
        Trees(name="fused", features=FUSED),
    )
