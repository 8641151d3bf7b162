"""Labelled rows that calibrate a bundle: verdicts on answers that it scored, or a harvest that it scores now."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64

from ilis_guard.errors import BundleMismatchError, FitError
from ilis_guard.lab.attempts import DATASET, Answers, read_attempts
from ilis_guard.lab.grouping import Groups, QuestionText, answer_groups, equal_rows, join_rows, question_groups
from ilis_guard.lab.splits import list_wordings
from ilis_guard.lab.traffic import columns_of_answers
from ilis_guard.policy.records import VerdictJson, read_column, read_verdicts
from ilis_guard.scoring.bundle import Bundle, BundleMetadata, Split, row_digest
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.profile import AdaptedProfile
from ilis_guard.scoring.risk_control import one_of_each
from ilis_guard.scoring.scorer import LightGBMScorer, blended_trees
from ilis_guard.scoring.traffic import Normaliser, TrafficProfile
from ilis_guard.scoring.typicality import squared_distances
from ilis_guard.types import (
    STATISTICS,
    Fingerprint,
    Labels,
    Message,
    RemoteFingerprint,
    Wording,
)

TRAINED: Final[tuple[Split, ...]] = ("train", "validation")
"""The splits of rows that trained trees, or chose them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """How labelled rows were asked and answered: a bundle is calibrated for requests like them."""

    fingerprint: Fingerprint | RemoteFingerprint
    prompt: str
    max_new_tokens: int | None
    wordings: tuple[Wording, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRows:
    """Labelled rows, as recalibration needs them."""

    ids: Sequence[str]
    raw: Float64[np.ndarray, " rows"]
    """The bundle's scores before calibration."""
    wrong: Bool[np.ndarray, " rows"]
    probability: Float64[np.ndarray, " rows"]
    """The probability that the row's request was labelled."""
    distances: Float64[np.ndarray, " rows"] | None
    """For typicality; None of an export, which holds no maps to compute them from."""
    groups: Groups
    """Index of the first row of each row's group."""
    circumstances: Circumstances
    traffic: TrafficProfile
    """In whose units the scores are."""
    adapted: bool
    """Whether that is a profile's traffic, and not that of the bundle's own rows."""
    columns: Columns | None
    """All that the bundle looks at; None of an export without signatures."""
    labels: Sequence[Labels]
    """Of their requests."""
    group_by: str | None = None
    """The column that grouped them beside their texts."""
    fitted_to: int = 0
    """Rows that were left out, because the bundle was fitted to them or to one that they depend on."""

    def __len__(self) -> int:
        return len(self.wrong)

    @property
    def normalised_features(self) -> Float64[np.ndarray, "rows features"]:
        """The trees' features in units of the traffic; not of an export without signatures."""
        assert self.columns is not None, "the caller has checked"
        return Normaliser(self.traffic).in_units(self.columns, self.labels).normalised_features

    def in_units(self, bundle: Bundle, traffic: TrafficProfile) -> "CalibrationRows":
        """Score them anew in units of other traffic than the bundle's; not of an export without signatures."""
        assert self.columns is not None, "the caller has checked"
        normal = Normaliser(traffic).in_units(self.columns, self.labels)
        raw = blended_trees(bundle).raw_scores(normal, adapted=True)
        return replace(self, raw=raw, distances=_distances(bundle, normal), traffic=traffic, adapted=True)

    @property
    def weights(self) -> Float64[np.ndarray, " rows"]:
        """How many groups of requests each row stands for, 1 on average."""
        sizes = np.bincount(self.groups, minlength=len(self))[self.groups]
        inverse = 1 / (self.probability * sizes)
        weights: Float64[np.ndarray, " rows"] = inverse / inverse.mean()
        return weights


def read_calibration_rows(
    bundle: Bundle,
    path: Path,
    *,
    tier: str | None = None,
    group_by: str | None = None,
    profile: AdaptedProfile | None = None,
) -> CalibrationRows:
    """Read verdicts on answers that this bundle scored, or a harvest that it scores now.

    Args:
        bundle: gave the scores in an export's rows.
        path: JSONL that ``queue export`` wrote, or a harvested Parquet file, which is taken for a random sample
            unless its questions had a `probability`; rows in rare wordings are left out, as `fit` says.
        tier: of an export, only rows in which this tier's answer was judged.
        group_by: a column whose equal values mean that rows depend on one another: a document's or a user's. Of an
            export, a key of each line, or ``labels.NAME``.
        profile: of the traffic that the rows are of, by which the tier scored those of an export; None for the bundle's
            own.

    Raises:
        AttemptsError: the file is neither, or has no such column in all rows.
        FitError: its rows can't represent all requests.
        BundleMismatchError: another model was harvested than the bundle was fitted to.
        ProfileError: the profile was made with another bundle.
        ScoringError: a label names the profile's kinds, and isn't known of the rows.
    """
    if profile is not None:
        profile.check_fits(bundle)
    if path.suffix == ".parquet":
        if tier is not None:
            raise FitError(f"a harvest is of one tier; tier={tier!r} chooses among the rows of an export")
        return _of_harvest(bundle, read_attempts(path).answers(group_by), profile)
    return _of_verdicts(bundle, path, tier, group_by, profile)


def _of_verdicts(
    bundle: Bundle, path: Path, tier: str | None, group_by: str | None, profile: AdaptedProfile | None
) -> CalibrationRows:
    verdicts = read_verdicts(path)
    owners = [None] * len(verdicts) if group_by is None else read_column(path, group_by)
    rows = [(row, owner) for row, owner in zip(verdicts, owners, strict=True) if tier is None or row.tier == tier]
    repeated = [row_id for row_id, times in Counter(row.id for row, _ in rows).items() if times > 1]
    if repeated:
        raise FitError(f"{str(path)!r}: {len(repeated)} rows are there more than once, such as {repeated[0]!r:.60}")
    scored = [(row.uncertainty, row, owner) for row, owner in rows if row.uncertainty is not None]
    if not scored:
        raise FitError(f"{str(path)!r} holds no row with an uncertainty" + (f" of the tier {tier!r}" if tier else ""))
    tiers = sorted({str(row.tier) for _, row, _ in scored})
    if len(tiers) > 1:
        raise FitError(f"{str(path)!r} holds answers of the tiers {tiers!r}: a bundle belongs to one, name it")
    if all(row.probability == 1 for _, row, _ in scored):
        raise FitError(
            f"{str(path)!r} holds only requests of which every one like them was labelled: of those that were answered "
            "it says nothing, so no calibration or threshold can follow from it. Let the policy `audit` a fraction of "
            "what it answers, or harvest a random sample of requests"
        )
    _check_profile(profile, [row for _, row, _ in scored], path)
    traffic = bundle.traffic if profile is None else profile.traffic
    labels = [row.labels for _, row, _ in scored]
    columns = _columns(bundle, [row for _, row, _ in scored])
    return CalibrationRows(
        ids=[row.id for _, row, _ in scored],
        raw=bundle.metadata.calibration.invert(np.array([uncertainty for uncertainty, _, _ in scored])),
        wrong=np.array([not row.correct for _, row, _ in scored]),
        probability=np.array([row.probability for _, row, _ in scored]),
        distances=None if columns is None else _distances(bundle, Normaliser(traffic).in_units(columns, labels)),
        groups=verdict_groups([row for _, row, _ in scored], [owner for _, _, owner in scored]),
        circumstances=_circumstances(bundle.metadata, [row for _, row, _ in scored], path),
        traffic=traffic,
        adapted=profile is not None,
        columns=columns,
        labels=labels,
        group_by=group_by,
    )


def _check_profile(profile: AdaptedProfile | None, verdicts: Sequence[VerdictJson], path: Path) -> None:
    """Check that rows were scored in units of this profile, which is known by the ranks that it gives.

    Raises:
        FitError: some weren't.
    """
    for row in verdicts:
        is_adapted = "traffic" in row.departures
        if profile is None and is_adapted:
            raise FitError(
                f"{str(path)!r} holds answers that were scored by a traffic profile, such as {row.id!r:.60}: name the "
                "profile that the tier had (--profile FILE)"
            )
        if profile is not None and not (is_adapted and row.rank == profile.rank(row.uncertainty or 0.0)):
            raise FitError(
                f"{str(path)!r} holds answers that weren't scored by this traffic profile, such as {row.id!r:.60} with "
                f"the rank {row.rank!r}: name the profile that the tier had, or take these rows out"
            )


def _columns(bundle: Bundle, verdicts: Sequence[VerdictJson]) -> Columns | None:
    """What the bundle looks at of judged answers; None where it isn't all in the export."""
    scorer = LightGBMScorer(bundle)
    generations = [row.generation for row in verdicts]
    if not all(map(scorer.can_score, generations)):
        return None
    return Columns.concatenated([scorer.columns(one) for one in generations])


def _distances(bundle: Bundle, normal: Columns) -> Float64[np.ndarray, " rows"]:
    known = bundle.calibration_set.typicality
    return squared_distances(normal.blocks["typicality"], np.array(known.mean), np.array(known.precision))


def _circumstances(fitted: BundleMetadata, verdicts: Sequence[VerdictJson], path: Path) -> Circumstances:
    """Those of judged requests, in the wording and decoding of the bundle's own rows.

    Raises:
        FitError: a request was put to the model in a way that its row doesn't tell.
    """
    if others := sorted({name for row in verdicts for name in row.departures} - {"system", "history", "traffic"}):
        raise FitError(
            f"{str(path)!r} holds answers that were asked for or scored otherwise than the bundle's own rows "
            f"({', '.join(others)}), and rows of an export don't tell how: harvest with the tier as it is now, and "
            "recalibrate on that"
        )
    if hidden := sum(row.redacted and bool({*row.departures} - {"traffic"}) for row in verdicts):
        raise FitError(
            f"{str(path)!r} holds {hidden} redacted rows with another system message or earlier turns than the "
            "bundle's own rows, and which ones isn't known any more; export verdicts before they are redacted"
        )
    prompt = getattr(fitted.fingerprint, "prompt", "")
    found = dict.fromkeys(
        Wording.of([Message(role=turn.role, content=turn.content) for turn in row.messages], prompt=prompt)
        for row in verdicts
        if not row.redacted
    )
    kept = fitted.wordings if any(row.redacted for row in verdicts) else ()
    return Circumstances(
        fingerprint=fitted.fingerprint,
        prompt=fitted.prompt,
        max_new_tokens=fitted.max_new_tokens,
        wordings=tuple(dict.fromkeys((*found, *kept))),
    )


def verdict_groups(verdicts: Sequence[VerdictJson], owners: Sequence[str | None]) -> Groups:
    """Group verdicts on the same question, in the same conversation; on the same score; or with the same owner.

    The model's answer stands for the right one: a redacted ticket has neither, and is known by its score alone.
    """
    texts = [_text_of(verdict, owner) for verdict, owner in zip(verdicts, owners, strict=True)]
    scores = [_score_of(verdict) for verdict in verdicts]
    asked = question_groups(texts)
    return join_rows(len(verdicts), enumerate(asked.tolist()), equal_rows(scores))


def _text_of(verdict: VerdictJson, owner: str | None) -> QuestionText:
    if verdict.redacted:
        return QuestionText(question="", owner=owner)
    *before, question = verdict.messages
    return QuestionText(
        question=question.content,
        # A system prompt may hold the date, or the user's name: it makes no other question.
        context="\n".join(turn.content for turn in before if turn.role != "system"),
        answers=frozenset({verdict.text}),
        owner=owner,
    )


def _score_of(verdict: VerdictJson) -> Hashable:
    """All numbers of a score; None where it has the uncertainty alone, which ties by chance."""
    beside = (verdict.typicality, *(getattr(verdict, name) for name in STATISTICS))
    return None if all(value is None for value in beside) else (verdict.uncertainty, *beside)


def _of_harvest(bundle: Bundle, harvested: Answers, profile: AdaptedProfile | None) -> CalibrationRows:
    metadata = bundle.metadata
    manifest = harvested.manifest
    if different := metadata.fingerprint.hard_differences(manifest.fingerprint):
        raise BundleMismatchError(
            f"the rows were harvested from another model than the bundle's: {', '.join(different)} differ; harvest "
            f"with {metadata.model!r} as the bundle was fitted to it, or fit a new bundle to these rows"
        )
    if harvested.known != metadata.statistics:
        raise FitError(
            f"the bundle looks at the output statistics {metadata.statistics!r}, and of the rows {harvested.known!r} "
            "are known: harvest with the model as it was when the bundle was fitted"
        )
    groups = answer_groups(harvested)
    fitted_to = np.isin(groups, groups[_trained(bundle, harvested)])
    answers = harvested.take(~fitted_to)
    if not len(answers):
        raise FitError("the bundle was fitted to all of these rows; harvest other questions")
    wordings = list_wordings(answers.row_wordings(), one_of_each(groups[~fitted_to]))
    answers = answers.take(np.array([wording in wordings for wording in answers.row_wordings().tolist()]))
    columns = columns_of_answers(answers, metadata.features, metadata.stage)
    labels: list[Labels] = [{DATASET: name} for name in answers.datasets.tolist()]
    traffic = bundle.traffic if profile is None else profile.traffic
    normal = Normaliser(traffic).in_units(columns, labels)
    return CalibrationRows(
        ids=answers.ids.tolist(),
        raw=blended_trees(bundle).raw_scores(normal, adapted=profile is not None),
        wrong=answers.wrong,
        probability=np.ones(len(answers)) if answers.probability is None else answers.probability,
        distances=_distances(bundle, normal),
        groups=answer_groups(answers),
        circumstances=Circumstances(
            fingerprint=manifest.fingerprint,
            prompt=manifest.prompt,
            max_new_tokens=manifest.max_new_tokens,
            wordings=wordings,
        ),
        traffic=traffic,
        adapted=profile is not None,
        columns=columns,
        labels=labels,
        group_by=answers.group_by,
        fitted_to=int(fitted_to.sum()),
    )


def _trained(bundle: Bundle, answers: Answers) -> Bool[np.ndarray, " rows"]:
    """Which rows trained the bundle's trees, or chose them."""
    splits = bundle.calibration_set.splits or {}
    digests = {digest for name in TRAINED for digest in splits.get(name, ())}
    return np.array([row_digest(str(id_)) in digests for id_ in answers.ids.tolist()], dtype=bool)
