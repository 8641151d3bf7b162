"""The scorer: a bundle at work on one generation at a time."""

import math
from typing import Protocol

import numpy as np

from ilis_guard.errors import BundleError, BundleMismatchError, ScoringError
from ilis_guard.scoring.bundle import Bundle
from ilis_guard.scoring.features import FeatureGroup, Maps, feature_matrix
from ilis_guard.scoring.shift import PROFILED, ShiftDetector
from ilis_guard.scoring.trees import load_booster
from ilis_guard.types import POSITIONS, Fingerprint, Generation, Position, Score, Stage, Statistics


class Scorer(Protocol):
    """Anything that scores a generation."""

    def score(self, generation: Generation) -> Score:
        """Score one generation.

        Raises:
            ScoringError: it can't be scored.
        """


class LightGBMScorer:
    """Scores with a bundle: features -> LightGBM -> calibrated uncertainty, and shift."""

    def __init__(self, bundle: Bundle) -> None:
        """Load a bundle's trees.

        Raises:
            BundleError: they aren't well formed, or the bundle's parts aren't made for the same maps.
        """
        self.bundle = bundle
        metadata = bundle.metadata
        layers = metadata.fingerprint.layers
        features = sum(
            len(Statistics.__slots__) if group == "statistics" else layers * (layers - 1) for group in metadata.features
        )
        self._booster = load_booster(bundle.trees, features=features)
        width, wanted = len(bundle.calibration_set.shift.mean), len(PROFILED[metadata.stage]) * (layers - 1)
        if width != wanted:
            raise BundleError(
                f"the shift reference of the bundle {bundle.digest} has {width} columns, maps of {layers} layers give "
                f"{wanted}; copy the bundle again or fit it anew"
            )
        self._detector = ShiftDetector(bundle.calibration_set.shift, metadata.stage)
        self._needed = _positions(metadata.features, metadata.stage)
        self._needs_statistics = "statistics" in metadata.features

    def check_fits(self, fingerprint: Fingerprint) -> None:
        """Refuse a model that isn't the one this bundle was fitted to.

        Raises:
            BundleMismatchError: the fingerprints differ.
        """
        metadata = self.bundle.metadata
        if different := metadata.fingerprint.differences(fingerprint):
            raise BundleMismatchError(
                f"the bundle doesn't fit the running model: {', '.join(different)} differ. It was fitted to "
                f"{metadata.model!r} ({metadata.fingerprint}; the prompt reads {metadata.prompt[:200]!r}); the model "
                f"that runs is ({fingerprint}). Run the model as the bundle says, or harvest and fit a bundle for it"
            )

    def score(self, generation: Generation) -> Score:
        """Score one generation, in well under a millisecond.

        Raises:
            ScoringError: a signature or the output statistics are missing, of another shape or not finite, or the
                result isn't a probability.
        """
        absent = [f"signature {position!r}" for position in sorted(self._needed - set(generation.signatures))]
        if self._needs_statistics and generation.statistics is None:
            absent.append("output statistics")
        if absent:
            raise ScoringError(
                f"the generation has no {', no '.join(absent)} ({generation.tokens} answer tokens, finish reason "
                f"{generation.finish_reason!r}): the model generated no answer token that passed through it again"
            )
        maps: Maps = {position: generation.signatures[position][None] for position in self._needed}
        known = generation.statistics.to_dict() if self._needs_statistics and generation.statistics else {}
        statistics = np.array([list(known.values())], dtype=np.float64)
        self._check_numbers(maps, statistics)
        features = feature_matrix(self.bundle.metadata.features, maps, statistics)
        # One thread: for a single row, starting more takes longer than the trees do.
        raw = np.asarray(self._booster.predict(features, num_threads=1), dtype=np.float64)
        uncertainty = float(self.bundle.metadata.calibration.apply(raw)[0])
        shift = float(self._detector.shift(maps)[0])
        if not (math.isfinite(uncertainty) and math.isfinite(shift)):
            raise ScoringError(f"the score isn't a number: uncertainty {uncertainty!r}, shift {shift!r}")
        return Score(uncertainty=uncertainty, shift=shift)

    def _check_numbers(self, maps: Maps, statistics: np.ndarray) -> None:
        """LightGBM takes a number that isn't one for a missing value and scores all the same; it mustn't come so far.

        Raises:
            ScoringError: a map has another shape, or something isn't a finite number.
        """
        layers = self.bundle.metadata.fingerprint.layers
        for position, signature in maps.items():
            if signature.shape != (1, layers, layers):
                raise ScoringError(
                    f"the signature {position!r} has the shape {signature.shape[1:]!r}; the bundle was fitted to "
                    f"{layers} layers"
                )
            if not (np.isfinite(signature).all() and signature.min() >= 0):
                raise ScoringError(f"the signature {position!r} holds a value that isn't a finite divergence")
        if not np.isfinite(statistics).all():
            raise ScoringError(f"the output statistics aren't all finite: {statistics[0].tolist()!r}")


def _positions(features: tuple[FeatureGroup, ...], stage: Stage) -> frozenset[Position]:
    """The positions whose maps the features and the shift reference look at."""
    named = {part for group in features if group != "statistics" for part in group.split("-")}
    return frozenset(position for position in POSITIONS if position in named or position in PROFILED[stage])
