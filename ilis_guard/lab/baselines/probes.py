"""Probes: classifiers on standardised activations at the last answer token."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.baselines.estimator import Estimator, check_fittable, finite, observed
from ilis_guard.lab.metrics import auroc
from ilis_guard.types import Site

STRENGTHS: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of `C`, the inverse of the L2 penalty, from the strongest penalty on; validation rows select one."""
MOST_STEPS: Final = 1000
COMPONENTS: Final = (64, 256)
"""Numbers of principal components of all layers; validation rows select one."""
NETWORK: Final = (256, 128, 64)
"""SAPLMA's hidden layers."""
BATCH: Final = 32
MOST_EPOCHS: Final = 60
PATIENCE: Final = 8
"""The network's training stops when the validation AUROC hasn't improved for this many epochs."""
CHUNK: Final = 1024
"""Answers that are transformed at a time: the layers of all rows may take gigabytes."""

Layers = Float16[np.ndarray, "rows layers hidden"]
Numbers = Float32[np.ndarray, "rows numbers"]
Outcomes = Bool[np.ndarray, " rows"]
Shares = Float64[np.ndarray, " rows"]


class Classifier(Protocol):
    """Gives the probability, from numbers, that an answer is wrong."""

    def __call__(self, numbers: Numbers) -> Shares:
        """Return uncalibrated probabilities."""


@runtime_checkable
class ProbeEstimator(Estimator, Protocol):
    """A fitted probe."""

    def numbers(self, rows: Answers) -> Numbers:
        """Return what its classifier looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logistic:
    """The coefficients of a logistic regression."""

    strength: float
    weights: Float64[np.ndarray, " numbers"]
    intercept: float

    def __call__(self, numbers: Numbers) -> Shares:
        """As `Classifier`."""
        shares: Shares = expit(numbers @ self.weights + self.intercept)
        return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A trained network."""

    model: MLPClassifier

    def __call__(self, numbers: Numbers) -> Shares:
        """As `Classifier`."""
        shares: Shares = self.model.predict_proba(numbers)[:, 1].astype(np.float64)
        return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProbe:
    """A logistic regression on the activations of one layer: the linear probe of Orgad et al. (2024, arXiv:2410.02707).

    The AUROC on validation rows selects layer and penalty.
    """

    name: str
    site: Site
    kind: Literal["probe"] = "probe"

    def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> "LayerProbeEstimator":  # noqa: ARG002 - nothing is random
        """As `Method.fit`."""
        check_fittable(rows, train, validation)
        layers = observed(rows.activations, self.site)
        learned = finite(layers[train], self.name, rows.ids[train])
        chosen_on = finite(layers[validation], self.name, rows.ids[validation])
        best, best_auroc = None, -np.inf
        for layer in range(learned.shape[1]):
            scaler = StandardScaler().fit(learned[:, layer].astype(np.float32))
            numbers = scaler.transform(chosen_on[:, layer].astype(np.float32))
            for classifier in _logistics(scaler.transform(learned[:, layer].astype(np.float32)), rows.wrong[train]):
                if (found := auroc(rows.wrong[validation], classifier(numbers))) > best_auroc:
                    best_auroc = found
                    best = LayerProbeEstimator(probe=self, layer=layer, scaler=scaler, classifier=classifier)
        assert best is not None, "an AUROC is a number"
        return best


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProbeEstimator:
    """A probe on the selected layer."""

    probe: LayerProbe
    layer: int
    scaler: StandardScaler
    classifier: Logistic

    def numbers(self, rows: Answers) -> Numbers:
        """As `ProbeEstimator.numbers`."""
        layer = observed(rows.activations, self.probe.site)[:, self.layer]
        numbers: Numbers = self.scaler.transform(finite(layer, self.probe.name, rows.ids).astype(np.float32))
        return numbers

    def predict_proba(self, rows: Answers) -> Shares:
        """As `Estimator.predict_proba`."""
        return self.classifier(self.numbers(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class LensProbe:
    """A logistic regression on what the logit lens finds of all layers: TriLens (Yang et al., 2026, arXiv:2606.01033).

    Of every layer three entropies: those of the next token, read from the output of its attention, from that of its
    MLP and from the residual stream behind it, each as it is, through the model's final norm and unembedding. The
    authors' code (github.com/tosakaucw/TriLens) has linear probes (L2, C = 1) and networks, on the answer's first
    token, its first three or the mean of all. Here it is the last answer token, where all probes look; the entropies
    are standardised, and the AUROC on validation rows selects the penalty, as for the other probes. The last layer's
    residual stream is read before the final norm, and not again behind it.
    """

    name: str = "trilens"
    kind: Literal["probe"] = "probe"

    def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> "LensProbeEstimator":  # noqa: ARG002 - nothing is random
        """As `Method.fit`."""
        check_fittable(rows, train, validation)
        learned = _entropies(rows.take(train), self.name)
        scaler = StandardScaler().fit(learned)
        chosen_on = scaler.transform(_entropies(rows.take(validation), self.name))
        best = max(
            _logistics(scaler.transform(learned), rows.wrong[train]),
            key=lambda classifier: auroc(rows.wrong[validation], classifier(chosen_on)),
        )
        return LensProbeEstimator(probe=self, scaler=scaler, classifier=best)


@dataclass(frozen=True, slots=True, kw_only=True)
class LensProbeEstimator:
    """A probe on entropies."""

    probe: LensProbe
    scaler: StandardScaler
    classifier: Logistic

    def numbers(self, rows: Answers) -> Numbers:
        """As `ProbeEstimator.numbers`."""
        numbers: Numbers = self.scaler.transform(_entropies(rows, self.probe.name))
        return numbers

    def predict_proba(self, rows: Answers) -> Shares:
        """As `Estimator.predict_proba`."""
        return self.classifier(self.numbers(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class AllLayersProbe:
    """A classifier on the residual stream of all layers at once, after SAPLMA.

    SAPLMA (Azaria and Mitchell, 2023, arXiv:2304.13734) is a network on one layer that was chosen beforehand. Here the
    standardised layers are concatenated and reduced to their principal components on the training rows. The classifiers
    on these are SAPLMA's network (256, 128 and 64 ReLUs, Adam), stopped on validation rows, and logistic regressions
    with penalties of several strengths. The AUROC on validation rows selects the classifier and the number of
    components.
    """

    name: str = "saplma"
    site: Site = "residual"
    kind: Literal["probe"] = "probe"

    def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> "AllLayersProbeEstimator":
        """As `Method.fit`."""
        check_fittable(rows, train, validation)
        layers = observed(rows.activations, self.site)
        wrong, held_out = rows.wrong[train], rows.wrong[validation]
        projection, learned = _project(finite(layers[train], self.name, rows.ids[train]), seed)
        chosen_on = projection(finite(layers[validation], self.name, rows.ids[validation]))
        best, best_auroc = None, -np.inf
        for components in sorted({min(most, learned.shape[1]) for most in COMPONENTS}):
            few, few_chosen_on = learned[:, :components], chosen_on[:, :components]
            tried: list[Classifier] = [*_logistics(few, wrong), _network(few, wrong, few_chosen_on, held_out, seed)]
            for classifier in tried:
                if (found := auroc(held_out, classifier(few_chosen_on))) > best_auroc:
                    best_auroc = found
                    best = AllLayersProbeEstimator(
                        probe=self, projection=projection, components=components, classifier=classifier
                    )
        assert best is not None, "an AUROC is a number"
        return best


@dataclass(frozen=True, slots=True, kw_only=True)
class AllLayersProbeEstimator:
    """A probe on all layers, with the selected components and classifier."""

    probe: AllLayersProbe
    projection: "Projection"
    components: int
    classifier: Classifier

    def numbers(self, rows: Answers) -> Numbers:
        """As `ProbeEstimator.numbers`."""
        layers = finite(observed(rows.activations, self.probe.site), self.probe.name, rows.ids)
        return self.projection(layers)[:, : self.components]

    def predict_proba(self, rows: Answers) -> Shares:
        """As `Estimator.predict_proba`."""
        return self.classifier(self.numbers(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Projects a row's layers on their principal components, scaled so that the first one has unit variance."""

    scaler: StandardScaler
    axes: Float32[np.ndarray, "components numbers"]
    """In standardised coordinates, whose mean is 0."""

    def __call__(self, layers: Layers) -> Numbers:
        """Project rows, a chunk at a time."""
        flat = layers.reshape(len(layers), -1)
        chunks = (flat[start : start + CHUNK].astype(np.float32) for start in range(0, len(flat), CHUNK))
        return np.concatenate([self.scaler.transform(chunk) @ self.axes.T for chunk in chunks])


def _project(layers: Layers, seed: int) -> tuple[Projection, Numbers]:
    """Fit the projection to rows, and return it with their components."""
    scaler = StandardScaler()
    standardised = scaler.fit_transform(layers.reshape(len(layers), -1).astype(np.float32))
    most = min(*standardised.shape, max(COMPONENTS))
    analysis = PCA(most, svd_solver="randomized", random_state=seed).fit(standardised)
    axes = (analysis.components_ / np.sqrt(analysis.explained_variance_[0])).astype(np.float32)
    return Projection(scaler=scaler, axes=axes), standardised @ axes.T


def _entropies(rows: Answers, name: str) -> Numbers:
    columns = None if rows.lens is None else {name: rows.lens}
    entropies: Numbers = finite(observed(columns, name), name, rows.ids).reshape(len(rows), -1)
    return entropies


def _logistics(numbers: Numbers, wrong: Outcomes) -> Iterator[Logistic]:
    """Fit one regression for each strength, each starting from the one before."""
    model = LogisticRegression(max_iter=MOST_STEPS, warm_start=True)
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(numbers, wrong)
        weights, intercept = model.coef_[0].astype(np.float64), float(model.intercept_[0])
        yield Logistic(strength=strength, weights=weights, intercept=intercept)


def _network(numbers: Numbers, wrong: Outcomes, chosen_on: Numbers, held_out: Outcomes, seed: int) -> Network:
    """Train epoch by epoch and return the best epoch's network."""
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
