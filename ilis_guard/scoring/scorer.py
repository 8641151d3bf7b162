"""Scorers: from one generation to its uncertainty, typicality and rank."""

import math
from typing import Final, Literal, Protocol

import numpy as np

from ilis_guard.errors import BundleError, BundleMismatchError, ScoringError
from ilis_guard.scoring.blended_trees import BlendedTrees
from ilis_guard.scoring.bundle import Bundle, BundleMetadata
from ilis_guard.scoring.columns import BLOCKS, LOGPROBS, Block, Columns, columns_of, knows_logprobs
from ilis_guard.scoring.features import Maps, feature_count, positions_of
from ilis_guard.scoring.profile import AdaptedProfile
from ilis_guard.scoring.traffic import Normaliser
from ilis_guard.scoring.trees import load_booster
from ilis_guard.scoring.typicality import COMPARED, TypicalityEstimator
from ilis_guard.types import Departure, Fingerprint, Generation, Labels, Position, RemoteFingerprint, Score, Wording

NO_LABELS: Final[Labels] = {}


class Scorer(Protocol):
    """Scores generations."""

    def score(self, generation: Generation) -> Score:
        """Score one generation.

        Raises:
            ScoringError: it can't be scored.
        """


class LightGBMScorer:
    """Scores with a bundle: columns, normalised by their traffic -> LightGBM -> uncertainty, typicality and rank."""

    def __init__(self, bundle: Bundle, profile: AdaptedProfile | None = None) -> None:
        """Load a bundle's trees.

        Args:
            bundle: what scores.
            profile: of traffic that isn't the bundle's own rows; None where there is none.

        Raises:
            BundleError: they are malformed, or the bundle's parts don't belong to the same maps.
            ProfileError: the profile was made with another bundle.
        """
        self.bundle = bundle
        metadata = bundle.metadata
        self._layers = metadata.fingerprint.layers if isinstance(metadata.fingerprint, Fingerprint) else None
        self._trees = blended_trees(bundle)
        self._typicality = TypicalityEstimator(bundle.calibration_set.typicality)
        self._needed = frozenset[Position]() if self._layers is None else _positions(metadata)
        needs_statistics = "statistics" in metadata.features or knows_logprobs(metadata.stage, metadata.statistics)
        self._statistics = metadata.statistics if needs_statistics else ()
        if profile is not None:
            profile.check_fits(bundle)
        self._profile = profile
        self._labelled = frozenset(metadata.wordings) - frozenset(() if profile is None else profile.wordings)
        self._home = Normaliser(bundle.traffic)
        self._adapted = self._home if profile is None else Normaliser(profile.traffic)

    @property
    def departures(self) -> tuple[Departure, ...]:
        """What makes every score uncalibrated: labelled rows are in units of the bundle's own traffic."""
        return () if self._profile is None or self._labelled else ("traffic",)

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

    def score(self, generation: Generation, wording: Wording | None = None, labels: Labels = NO_LABELS) -> Score:
        """Score one generation, in well under a millisecond.

        With a profile, a request is scored in units of its traffic and ranked in it, unless it is put as labelled rows
        were and the profile's requests weren't.

        Args:
            generation: of the bundle's model.
            wording: of its request; None where it isn't known.
            labels: of its request; a profile whose kinds a label names needs that one.

        Raises:
            ScoringError: a signature or the output statistics are missing, of another shape or not finite, the label
                that names kinds is missing or has a value that the profile doesn't know, or the result isn't a
                probability.
        """
        columns = self.columns(generation)
        profile = None if wording in self._labelled else self._profile
        normaliser = self._home if profile is None else self._adapted
        normal = normaliser.in_units(columns, [labels])
        raw = self._trees.raw_scores(normal, adapted=profile is not None)
        uncertainty = float(self.bundle.metadata.calibration.apply(raw)[0])
        score = Score(
            uncertainty=uncertainty,
            typicality=float(self._typicality.typicality(normal.blocks["typicality"])[0]),
            rank=math.nan if profile is None else profile.rank(uncertainty),
            departures=() if profile is None else ("traffic",),
        )
        if not (math.isfinite(score.uncertainty) and math.isfinite(score.typicality)):
            raise ScoringError(
                f"the score isn't a number: uncertainty {score.uncertainty!r}, typicality {score.typicality!r}"
            )
        return score

    def columns(self, generation: Generation) -> Columns:
        """Compute what is looked at of one generation, before it is normalised.

        Raises:
            ScoringError: as `score`.
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
        return columns_of(self.bundle.metadata.features, self.bundle.metadata.stage, maps, statistics, self._statistics)

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
    return frozenset(of_features) | frozenset(COMPARED[metadata.stage])


def blended_trees(bundle: Bundle) -> BlendedTrees:
    """Load a bundle's trees, with what they are blended with.

    Raises:
        BundleError: they are malformed, or the bundle's parts don't belong to the same columns.
    """
    _check_widths(bundle)
    booster = load_booster(bundle.trees, features=2 * _widths(bundle.metadata)["features"])
    metadata = bundle.metadata
    return BlendedTrees(
        booster,
        blending=metadata.blending,
        correction=metadata.correction,
    )


def _check_widths(bundle: Bundle) -> None:
    wanted, found = _widths(bundle.metadata), bundle.traffic.widths
    compared = len(bundle.calibration_set.typicality.mean)
    if found != wanted or compared != wanted["typicality"]:
        raise BundleError(
            f"the bundle {bundle.digest} looks at the columns {wanted!r}; its traffic.json has {found!r} and its "
            f"typicality reference in calibration.json {compared}: copy the bundle again or fit it anew"
        )
    metadata = bundle.metadata
    linear = {"blending": metadata.blending.linear}
    if metadata.correction is not None:
        linear["correction"] = metadata.correction.features
    for name, coefficients in linear.items():
        if len(coefficients) != wanted["features"]:
            raise BundleError(
                f"the {name} of the bundle {bundle.digest} has {len(coefficients)} coefficients, and there are "
                f"{wanted['features']} features: copy the bundle again or fit it anew"
            )


def _widths(metadata: BundleMetadata) -> dict[Block | Literal["prompt"], int]:
    layers = metadata.fingerprint.layers if isinstance(metadata.fingerprint, Fingerprint) else 0
    statistics = len(metadata.statistics)
    counted: dict[Block, int] = {
        "features": feature_count(metadata.features, layers=layers, statistics=statistics),
        "typicality": len(COMPARED[metadata.stage]) * (layers - 1) if layers else statistics,
        "logprobs": len(LOGPROBS) * knows_logprobs(metadata.stage, metadata.statistics),
    }
    prompt = feature_count(["prompt-summary"], layers=layers, statistics=0) if layers else 0
    known: dict[Block | Literal["prompt"], int] = {
        name: counted[name] for name in BLOCKS if counted[name] or name != "logprobs"
    }
    return known | {"prompt": prompt}
