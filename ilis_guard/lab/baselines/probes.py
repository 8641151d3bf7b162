"""Probes: classifiers that look at activations themselves, standardised, at the last answer token."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from ilis_guard.lab.baselines.checks import check_fittable, finite, observed
from ilis_guard.lab.metrics import auroc
from ilis_guard.lab.rows import Mask, Rows
from ilis_guard.types import Site

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of `C`, the inverse of the L2 penalty, from the strongest penalty on; one is chosen on validation rows."""
MOST_STEPS: Final = 1000
COMPONENTS: Final = (64, 256)
"""Principal components of all layers that the probe on all layers may look at; chosen on validation rows."""
NETWORK: Final = (256, 128, 64)
"""SAPLMA's hidden layers."""
BATCH: Final = 32
MOST_EPOCHS: Final = 60
PATIENCE: Final = 8
"""The network's training stops when the validation AUROC hasn't improved for so many epochs."""
PIECE: Final = 1024
"""Rows whose layers are looked at together: those of all rows may take gigabytes."""

Layers = Float16[np.ndarray, "rows layers hidden"]
Numbers = Float32[np.ndarray, "rows numbers"]
Outcomes = Bool[np.ndarray, " rows"]
Shares = Float64[np.ndarray, " rows"]


class Classifier(Protocol):
    """Says of numbers how probable it is that the answer is wrong."""

    def __call__(self, numbers: Numbers) -> Shares:
        """Probabilities, uncalibrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logistic:
    """A logistic regression that was fitted."""

    strength: float
    weights: Float64[np.ndarray, " numbers"]
    intercept: float

    def __call__(self, numbers: Numbers) -> Shares:
        """As `Classifier`."""
        shares: Shares = expit(numbers @ self.weights + self.intercept)
        return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network that was trained until it got no better on validation rows."""

    model: MLPClassifier

    def __call__(self, numbers: Numbers) -> Shares:
        """As `Classifier`."""
        shares: Shares = self.model.predict_proba(numbers)[:, 1].astype(np.float64)
        return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProbe:
    """A logistic regression on the activations of one layer: the linear probe of Orgad et al. (2024, arXiv:2410.02707).

    Layer and penalty are those with the best AUROC on validation rows.
    """

    name: str
    site: Site
    kind: Literal["probe"] = "probe"

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> "FittedLayerProbe":  # noqa: ARG002 - nothing is random
        """As `Method.fit`."""
        check_fittable(rows, train, validation)
        layers = observed(rows.activations, self.site)
        learned = finite(layers[train], self.name, rows.ids[train])
        chosen_on = finite(layers[validation], self.name, rows.ids[validation])
        best, best_auroc = None, -np.inf
        for layer in range(learned.shape[1]):
            view = StandardScaler().fit(learned[:, layer].astype(np.float32))
            numbers = view.transform(chosen_on[:, layer].astype(np.float32))
            for classifier in _logistics(view.transform(learned[:, layer].astype(np.float32)), rows.wrong[train]):
                if (found := auroc(rows.wrong[validation], classifier(numbers))) > best_auroc:
                    best_auroc = found
                    best = FittedLayerProbe(probe=self, layer=layer, view=view, classifier=classifier)
        assert best is not None, "an AUROC is a number"
        return best


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedLayerProbe:
    """A probe, and the layer that was chosen."""

    probe: LayerProbe
    layer: int
    view: StandardScaler
    classifier: Logistic

    def predict(self, rows: Rows) -> Shares:
        """As `Fitted.predict`; probabilities, uncalibrated."""
        layer = observed(rows.activations, self.probe.site)[:, self.layer]
        return self.classifier(self.view.transform(finite(layer, self.probe.name, rows.ids).astype(np.float32)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AllLayersProbe:
    """A classifier on the residual stream of all layers at once, after SAPLMA.

    SAPLMA (Azaria and Mitchell, 2023, arXiv:2304.13734) is a network on one layer that was chosen beforehand. Here the
    layers, standardised, stand side by side and are turned into their principal components on the training rows.
    On these stand SAPLMA's network (256, 128 and 64 ReLUs, Adam), stopped on validation rows, and logistic regressions
    with penalties of several strengths. Which of all these, and on how many components, is chosen by the AUROC on
    validation rows.
    """

    name: str = "saplma"
    site: Site = "residual"
    kind: Literal["probe"] = "probe"

    def fit(self, rows: Rows, train: Mask, validation: Mask, seed: int) -> "FittedAllLayersProbe":
        """As `Method.fit`."""
        check_fittable(rows, train, validation)
        layers = observed(rows.activations, self.site)
        wrong, held_out = rows.wrong[train], rows.wrong[validation]
        view, learned = _principal(finite(layers[train], self.name, rows.ids[train]), seed)
        chosen_on = view(finite(layers[validation], self.name, rows.ids[validation]))
        best, best_auroc = None, -np.inf
        for components in sorted({min(most, learned.shape[1]) for most in COMPONENTS}):
            few, few_chosen_on = learned[:, :components], chosen_on[:, :components]
            tried: list[Classifier] = [*_logistics(few, wrong), _network(few, wrong, few_chosen_on, held_out, seed)]
            for classifier in tried:
                if (found := auroc(held_out, classifier(few_chosen_on))) > best_auroc:
                    best_auroc = found
                    best = FittedAllLayersProbe(probe=self, view=view, components=components, classifier=classifier)
        assert best is not None, "an AUROC is a number"
        return best


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedAllLayersProbe:
    """A probe on all layers, and what was chosen."""

    probe: AllLayersProbe
    view: "View"
    components: int
    classifier: Classifier

    def predict(self, rows: Rows) -> Shares:
        """As `Fitted.predict`; probabilities, uncalibrated."""
        layers = finite(observed(rows.activations, self.probe.site), self.probe.name, rows.ids)
        return self.classifier(self.view(layers)[:, : self.components])


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """From the layers of a row to their principal components, the first one's spread being 1."""

    scaler: StandardScaler
    axes: Float32[np.ndarray, "components numbers"]
    """Of standardised numbers, whose mean is 0."""

    def __call__(self, layers: Layers) -> Numbers:
        """Components of rows, a piece of them at a time."""
        flat = layers.reshape(len(layers), -1)
        pieces = (flat[start : start + PIECE].astype(np.float32) for start in range(0, len(flat), PIECE))
        return np.concatenate([self.scaler.transform(piece) @ self.axes.T for piece in pieces])


def _principal(layers: Layers, seed: int) -> tuple[View, Numbers]:
    """The components of some rows, and how others are seen along them."""
    scaler = StandardScaler()
    standardised = scaler.fit_transform(layers.reshape(len(layers), -1).astype(np.float32))
    most = min(*standardised.shape, max(COMPONENTS))
    analysis = PCA(most, svd_solver="randomized", random_state=seed).fit(standardised)
    axes = (analysis.components_ / np.sqrt(analysis.explained_variance_[0])).astype(np.float32)
    return View(scaler=scaler, axes=axes), standardised @ axes.T


def _logistics(numbers: Numbers, wrong: Outcomes) -> Iterator[Logistic]:
    """One for each strength, each beginning where the one before has ended."""
    model = LogisticRegression(max_iter=MOST_STEPS, warm_start=True)
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(numbers, wrong)
        weights, intercept = model.coef_[0].astype(np.float64), float(model.intercept_[0])
        yield Logistic(strength=strength, weights=weights, intercept=intercept)


def _network(numbers: Numbers, wrong: Outcomes, chosen_on: Numbers, held_out: Outcomes, seed: int) -> Network:
    """Trained epoch by epoch; the best is kept."""
    model = MLPClassifier(NETWORK, batch_size=min(BATCH, len(numbers)), random_state=seed)
    best, best_auroc, since = Network(model=model), -np.inf, 0
    for _epoch in range(MOST_EPOCHS):
        model.partial_fit(numbers, wrong, classes=[False, True])
        found = auroc(held_out, Network(model=model)(chosen_on))
        since += 1
        if found > best_auroc:
            best, best_auroc, since = Network(model=deepcopy(model)), found, 0
        if since == PATIENCE:
            break
    return best
