"""Scorers: from one generation to its uncertainty, typicality and rank."""

import math
from typing import Protocol

import numpy as np

from ilis_guard.errors import BundleError, BundleMismatchError, ScoringError
from ilis_guard.scoring.bundle import Bundle, BundleMetadata
from ilis_guard.scoring.calibration import raw_scores
from ilis_guard.scoring.features import Maps, feature_count, positions_of
from ilis_guard.scoring.profile import TrafficProfile
from ilis_guard.scoring.trees import load_booster
from ilis_guard.scoring.typicality import PROFILED, TypicalityEstimator, profile, statistics_profile
from ilis_guard.types import Fingerprint, Generation, Position, RemoteFingerprint, Score


class Scorer(Protocol):
    """Scores generations."""

    def score(self, generation: Generation) -> Score:
        """Score one generation.

        Raises:
            ScoringError: it can't be scored.
        """


class LightGBMScorer:
    """Scores with a bundle: features -> LightGBM -> calibrated uncertainty, and typicality; rank, by a profile."""

    def __init__(self, bundle: Bundle, profile: TrafficProfile | None = None) -> None:
        """Load a bundle's trees.

        Args:
            bundle: what scores.
            profile: of the traffic that scores are ranked in; without it they have no rank.

        Raises:
            BundleError: the trees are malformed, or the bundle's parts don't belong to the same maps.
            ProfileError: the profile was made with another bundle.
        """
        if profile is not None:
            profile.check_fits(bundle)
        self.bundle = bundle
        self._profile = profile
        metadata = bundle.metadata
        self._layers = metadata.fingerprint.layers if isinstance(metadata.fingerprint, Fingerprint) else None
        features = feature_count(metadata.features, layers=self._layers or 0, statistics=len(metadata.statistics))
        self._booster = load_booster(bundle.trees, features=features)
        if self._layers is None:
            wanted, what = len(metadata.statistics), "its output statistics"
        else:
            wanted, what = len(PROFILED[metadata.stage]) * (self._layers - 1), f"maps of {self._layers} layers"
        if (width := len(bundle.calibration_set.typicality.mean)) != wanted:
            raise BundleError(
                f"the typicality reference of bundle {bundle.digest} has {width} columns, {what} give {wanted}; copy "
                "the bundle again or fit it anew"
            )
        reference = bundle.calibration_set.typicality
        self._typicality = TypicalityEstimator(reference)
        self._familiarity = None if metadata.blending is None else metadata.blending.familiarity(reference)
        self._needed = frozenset[Position]() if self._layers is None else _positions(metadata)
        needs_statistics = "statistics" in metadata.features or metadata.blending is not None
        self._statistics = metadata.statistics if needs_statistics else ()

    def check_fits(self, fingerprint: Fingerprint | RemoteFingerprint) -> None:
        """Refuse a model that isn't the one this bundle was fitted to.

        Another wording, decoding or length of answers is not refused: scores aren't calibrated then.

        Raises:
            BundleMismatchError: the fingerprints have hard differences.
        """
        metadata = self.bundle.metadata
        if different := metadata.fingerprint.hard_differences(fingerprint):
            raise BundleMismatchError(
                f"the bundle doesn't fit the running model: {', '.join(different)} differ. It was fitted to "
                f"{metadata.model!r} ({metadata.fingerprint}); the model that runs is ({fingerprint}). Run the model "
                "as the bundle says, or harvest and fit a bundle for it"
            )

    def score(self, generation: Generation) -> Score:
        """Score one generation, in well under a millisecond.

        Raises:
            ScoringError: a signature or the output statistics are missing, of another shape or not finite, or the
                result isn't a probability.
        """
        if missing := self._missing(generation):
            why = (
                "the model's reply came without logprobs"
                if self._layers is None
                else "the model generated no answer token that passed through it again"
            )
            raise ScoringError(
                f"the generation has no {', no '.join(missing)} ({generation.tokens} answer tokens, finish reason "
                f"{generation.finish_reason!r}): {why}"
            )
        maps: Maps = {position: generation.signatures[position][None] for position in self._needed}
        known = [getattr(generation.statistics, name) for name in self._statistics]
        statistics = np.array([known], dtype=np.float64)
        self._check_numbers(maps, statistics)
        metadata = self.bundle.metadata
        profiles = profile(maps, metadata.stage) if maps else statistics_profile(statistics)
        raw = raw_scores(
            self._booster,
            metadata.features,
            maps,
            statistics,
            log_odds=metadata.log_odds(statistics),
            familiarity=None if self._familiarity is None else self._familiarity.typicality(profiles),
        )
        uncertainty = float(metadata.calibration.apply(raw)[0])
        score = Score(
            uncertainty=uncertainty,
            typicality=float(self._typicality.typicality(profiles)[0]),
            rank=math.nan if self._profile is None else self._profile.rank(uncertainty),
        )
        if not (math.isfinite(score.uncertainty) and math.isfinite(score.typicality)):
            raise ScoringError(
                f"the score isn't a number: uncertainty {score.uncertainty!r}, typicality {score.typicality!r}"
            )
        return score

    def can_score(self, generation: Generation) -> bool:
        """Whether a generation has all that is looked at."""
        return not self._missing(generation)

    def _missing(self, generation: Generation) -> list[str]:
        missing = [f"signature {position!r}" for position in sorted(self._needed - set(generation.signatures))]
        if self._statistics and generation.statistics is None:
            missing.append("output statistics")
        return missing

    def _check_numbers(self, maps: Maps, statistics: np.ndarray) -> None:
        """Check the inputs, because LightGBM takes NaN for a missing value and scores all the same.

        Raises:
            ScoringError: a map has another shape, or something isn't a finite number.
        """
        layers = self._layers
        for position, signature in maps.items():
            if signature.shape != (1, layers, layers):
                raise ScoringError(
                    f"the signature {position!r} has the shape {signature.shape[1:]!r}; the bundle was fitted to "
                    f"{layers} layers"
                )
            if not (np.isfinite(signature).all() and signature.min() >= 0):
                raise ScoringError(f"the signature {position!r} holds a value that isn't a finite divergence")
        if not np.isfinite(statistics).all():
            values = dict(zip(self._statistics, statistics[0].tolist(), strict=True))
            raise ScoringError(f"the output statistics aren't all finite: {values!r}")


def _positions(metadata: BundleMetadata) -> frozenset[Position]:
    """Return the positions whose maps the features and the typicality reference use."""
    of_features = (position for group in metadata.features for position in positions_of(group))
    return frozenset(of_features) | frozenset(PROFILED[metadata.stage])
