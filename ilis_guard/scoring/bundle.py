"""Bundles: one fitted scorer as data. `bundle_files` reads and writes their folders."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, model_validator

from ilis_guard.scoring.blended_trees import Blending
from ilis_guard.scoring.calibration import BetaCalibration
from ilis_guard.scoring.correction import Correction
from ilis_guard.scoring.features import FeatureGroup
from ilis_guard.scoring.figures import Figure
from ilis_guard.scoring.findings import BundleFinding
from ilis_guard.scoring.risk_control import Certificate, certify
from ilis_guard.scoring.traffic import TrafficProfile
from ilis_guard.scoring.typicality import BundlePart, TypicalityReference
from ilis_guard.types import (
    STATISTICS,
    Departure,
    Fingerprint,
    RemoteFingerprint,
    Stage,
    Statistic,
    Wording,
    in_order,
)

Count = Annotated[int, Field(ge=0)]


class HeldOut(BundlePart):
    """Figures on rows that nothing was fitted to or selected by."""

    rows: Count
    groups: Count
    """Of rows that depend on one another; the intervals are over them."""
    wrong: Count
    auroc: Figure
    """Over all rows; a score that only knows which datasets are hard gets part of it."""
    auroc_within: Figure
    """Mean over datasets: right against wrong answers to questions of one kind."""
    auprc_wrong: Figure
    """Area under the precision-recall curve, a wrong answer being the positive."""
    auprc_correct: Figure
    brier: Figure
    """Mean squared difference of uncertainty and outcome; lower is better."""
    brier_skill: Figure
    """1 - Brier / Brier of always saying the base rate; higher is better."""


class DatasetRows(BundlePart):
    """Answers of the model to one dataset."""

    rows: Count
    right: Count
    counted: bool
    """Whether its held-out rows count in the figures: not where the model is nearly always right or nearly always
    wrong, which flatters any score that knows the dataset."""


Split = Literal["train", "validation", "calibration", "test"]
"""A row's use in a fit: to train the trees, to stop their training, to calibrate their score, or for figures only."""
# Without FailFast, a list of a million invalid numbers makes a million problems.
Divergences = Annotated[
    tuple[Annotated[tuple[Annotated[float, Field(ge=0)], ...], FailFast()], ...],
    FailFast(),
]
"""A map in JSON: rows of divergences, nats."""


class TypicalMaps(BundlePart):
    """Average `mean` signatures of right and of wrong calibration answers, for people to compare with.

    Averaged as log(1 + nats), so that no single answer dominates, and converted back to nats.
    """

    right: Divergences
    wrong: Divergences

    @model_validator(mode="after")
    def _check_shapes(self) -> "TypicalMaps":
        if {len(row) for row in (*self.right, *self.wrong)} != {len(self.right)} or len(self.wrong) != len(self.right):
            raise ValueError("the typical maps must be square, and as large as one another")
        return self


class CalibrationSet(BundlePart):
    """Rows kept for thresholds, recalibration and typicality: independent ones, so one of each group."""

    uncertainty: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], FailFast()]
    wrong: Annotated[tuple[bool, ...], FailFast()]
    typicality: TypicalityReference
    typical: TypicalMaps | None = None
    """None in bundles that were fitted before there were any."""
    splits: Mapping[Split, Annotated[tuple[str, ...], FailFast()]] | None = None
    """By split: `row_digest` of its rows' ids, to recognise them when the bundle is tested. None in bundles
    that were fitted without it."""

    @model_validator(mode="after")
    def _check_lengths(self) -> "CalibrationSet":
        if len(self.uncertainty) != len(self.wrong):
            raise ValueError(f"{len(self.uncertainty)} uncertainties but {len(self.wrong)} outcomes")
        return self


class Recalibration(BundlePart):
    """The recalibration that replaced the fit's calibration."""

    bundle: str
    """Digest of the recalibrated bundle, from which trees, typicality reference and all figures come."""
    rows: Count
    """Labelled rows that the calibration map was fitted to, each with weight 1 / probability."""
    groups: Count
    """Of rows that depend on one another; each counts as one row."""
    group_by: str | None = None
    """The column that grouped them beside their texts."""
    fitted_to: Count
    """Labelled rows that were left out, because the bundle was fitted to them."""
    corrected_by: Count = 0
    """Groups that a correction was fitted to; they calibrate by scores of corrections that were fitted to others."""
    kept: Count
    """Groups in the calibration set that no correction was fitted to, so that guarantees may rest on them."""
    auroc: Figure
    """Of the score on these rows, which trained no tree."""
    brier_skill: Figure
    """Of calibration maps that were each fitted to the other rows."""
    least_probability: float = Field(gt=0, le=1)
    """The smallest probability that a request had of being labelled; the calibration set is such a share of them."""


class Candidate(BundlePart):
    """Trees that a fit tried, with their loss on the validation rows; the bundle has the best."""

    features: Annotated[tuple[FeatureGroup, ...], FailFast()] = Field(min_length=1)
    num_leaves: int = Field(ge=2)
    """Leaves a tree, at most."""
    feature_fraction: float = Field(gt=0, le=1)
    """Share of the columns that a tree may look at."""
    trees: int = Field(ge=1)
    loss: float = Field(ge=0)
    """Mean log-loss on the validation rows, nats."""


class BundleMetadata(BundlePart):
    """``bundle.json``."""

    version: Literal[1] = 1
    model: str
    """The model's name in the harvest, for people; `fingerprint` is what must match."""
    fingerprint: Fingerprint | RemoteFingerprint
    """Hard differences from the running model's refuse it, the others make scores uncalibrated."""
    prompt: str
    wordings: Annotated[tuple[Wording, ...], FailFast()] = Field(min_length=1)
    """Of the labelled rows: to requests in another wording, the score isn't calibrated."""
    max_new_tokens: Count | None
    """None where the model can't be tapped: its own arguments bound its answers."""
    stage: Stage = "answer"
    """`prompt`: scores before a token is generated."""
    features: Annotated[tuple[FeatureGroup, ...], FailFast()] = Field(min_length=1)
    statistics: Annotated[tuple[Statistic, ...], FailFast()] = Field(default=STATISTICS, min_length=1)
    """The output statistics that were known of the answers: the columns of the feature `statistics`, in this order."""
    candidates: Annotated[tuple[Candidate, ...], FailFast()] = ()
    """The trees that were tried, the best first; may be empty."""
    blending: Blending
    calibration: BetaCalibration
    rows: Mapping[str, Count]
    """Rows in each split, and those left out because nothing was generated, or because calibration and held-out figures
    have no rows in wordings that aren't among `wordings`."""
    groups: Mapping[Split, Count]
    """Groups of rows that depend on one another in each split: as many as rows, where none does."""
    group_by: str | None = None
    """The column that grouped rows beside their texts and features."""
    datasets: Mapping[str, DatasetRows]
    held_out: HeldOut
    baseline: HeldOut
    """The same rows, scored by a logistic regression on the output statistics alone, fitted to all other rows. At stage
    `prompt` these aren't known yet: the baseline is what would be known after the answer is paid for."""
    versions: Mapping[str, str]
    recalibrated: Recalibration | None = None
    """None where calibration map and calibration set are those of the fit. `held_out` always is."""
    correction: Correction | None = None
    """What few labels added to the trees' blended score; None for nothing."""
    findings: Annotated[tuple[BundleFinding, ...], FailFast()] = ()
    """What the figures of the fit, or of the recalibration, say against the score; empty is a good sign."""

    def departures(
        self, fingerprint: Fingerprint | RemoteFingerprint | None, max_new_tokens: int | None
    ) -> tuple[Departure, ...]:
        """Find what a model decodes otherwise than the one of the labelled rows did; what isn't known departs too.

        Args:
            fingerprint: the model's.
            max_new_tokens: the length limit of a model that can be tapped.
        """
        if fingerprint is None:
            return ("decoding", "length")
        found = set(self.fingerprint.departures(fingerprint)) - {"wording"}
        if max_new_tokens != self.max_new_tokens and isinstance(self.fingerprint, Fingerprint):
            found.add("length")
        return in_order(found)

    def wording_departures(self, wording: Wording) -> tuple[Departure, ...]:
        """Find what a wording has of its own beside the nearest wording of the labelled rows."""
        return min((known.departures(wording) for known in self.wordings), key=len)

    @model_validator(mode="after")
    def _check_inputs(self) -> "BundleMetadata":
        if (different := len(set(self.features))) < len(self.features):
            raise ValueError(f"each feature is named once, got {len(self.features)} of {different} kinds")
        if self.stage == "prompt" and not set(self.features) <= {"prompt", "prompt-summary"}:
            raise ValueError(
                f"at stage 'prompt' there are 'prompt' and 'prompt-summary' to look at, no more, got {self.features!r}"
            )
        is_tapped = isinstance(self.fingerprint, Fingerprint)
        if not is_tapped and self.features != ("statistics",):
            raise ValueError(
                f"of a model that can't be tapped there is the feature 'statistics' and no other, got {self.features!r}"
            )
        if is_tapped != (self.max_new_tokens is not None):
            raise ValueError("max_new_tokens belongs to a model that can be tapped, and to no other")
        if len(set(self.statistics)) < len(self.statistics):
            raise ValueError("an output statistic stands twice")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A fitted scorer, as data."""

    metadata: BundleMetadata
    trees: str
    """A LightGBM model in its text format."""
    calibration_set: CalibrationSet
    traffic: TrafficProfile
    """Of its training rows: what the trees look at is in its units."""
    digest: str
    """Short hexadecimal digest of the whole bundle."""

    def certify(self, **guarantee: Any) -> Certificate:
        """Find the threshold that keeps a guarantee, as `risk_control.certify` does, on rows that trained nothing.

        Args:
            guarantee: as of `risk_control.certify`.

        Raises:
            ScoringError: as `risk_control.certify`.
        """
        found = certify(self.calibration_set.uncertainty, self.calibration_set.wrong, **guarantee)
        if self.metadata.recalibrated is None or self.metadata.recalibrated.kept:
            return found
        reason = (
            "its correction was fitted to all labelled rows, and no guarantee can rest on these: label 100 or more, or "
            "keep some of them (`ilis-guard fit --prior ... --kept 0.4`)"
        )
        return replace(found, threshold=None, reason=reason, coverage=0.0, error=None, rows_needed=None)


def row_digest(row: str) -> str:
    """Digest a row's id: bundles keep it short, and without what the id may reveal."""
    return hashlib.sha256(row.encode()).hexdigest()[:16]
