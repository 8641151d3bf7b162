"""Recalibrate a bundle on new labelled rows: the same trees with another calibration map and calibration set.

The rows that people label aren't a random sample: a policy escalates all requests of some kinds and audits few of what
it answers. Each row's `probability` is that of its request being labelled. The calibration map is fitted with weights
1 / probability. The calibration set has no weights, so that certificates hold on it as they stand: a row is kept with
probability q / `probability`, where q is the smallest one, so that every request was kept with probability q.

Nor are they independent: many users ask the same question. Rows of a group (`grouping`) share one row's weight, and one
of those that are kept is in the calibration set.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64

from ilis_guard.errors import BundleMismatchError, FitError
from ilis_guard.lab.attempts import DATASET, Answers, read_attempts
from ilis_guard.lab.fit import calibrate, check_findings
from ilis_guard.lab.grouping import Groups, QuestionText, answer_groups, equal_rows, join_rows, question_groups
from ilis_guard.lab.metrics import weighted_figures
from ilis_guard.lab.splits import check_classes, list_wordings
from ilis_guard.lab.traffic import columns_of_answers
from ilis_guard.policy.records import VerdictJson, read_column, read_verdicts
from ilis_guard.scoring.bundle import Bundle, BundleMetadata, CalibrationSet, Recalibration, Split, row_digest
from ilis_guard.scoring.bundle_files import write_bundle
from ilis_guard.scoring.findings import calibration_findings, figure_findings
from ilis_guard.scoring.profile import AdaptedProfile
from ilis_guard.scoring.risk_control import one_of_each
from ilis_guard.scoring.scorer import blended_trees
from ilis_guard.scoring.traffic import Normaliser, TrafficProfile
from ilis_guard.scoring.typicality import squared_distances
from ilis_guard.types import STATISTICS, Fingerprint, Message, RemoteFingerprint, Wording

MIN_PER_CLASS: Final = 20
"""Fewer right or wrong rows are too few to fit the three parameters of a calibration map."""
SEED: Final = 0
"""Of the random sample. It can't be chosen: keeping the best of several samples would invalidate certificates."""
TRAINED: Final[tuple[Split, ...]] = ("train", "validation")
"""The splits of rows that trained trees, or chose them."""
FOLDS: Final = 5
"""Parts of the rows, each of which is calibrated by a map that was fitted to the others."""


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
    group_by: str | None = None
    """The column that grouped them beside their texts."""
    fitted_to: int = 0
    """Rows that were left out, because the bundle was fitted to them or to one that they depend on."""

    def __len__(self) -> int:
        return len(self.wrong)

    @property
    def weights(self) -> Float64[np.ndarray, " rows"]:
        """How many groups of requests each row stands for, 1 on average."""
        sizes = np.bincount(self.groups, minlength=len(self))[self.groups]
        inverse = 1 / (self.probability * sizes)
        weights: Float64[np.ndarray, " rows"] = inverse / inverse.mean()
        return weights


def recalibrate(bundle: Bundle, rows: CalibrationRows, folder: Path, *, accept: bool = False) -> BundleMetadata:
    """Write a bundle with the same trees and blending, calibrated on other rows, and in units of their traffic.

    The earlier calibration set isn't kept: it represents other requests. Nor are the earlier wordings, decoding and
    length of answers: the bundle is calibrated for those of these rows.

    Args:
        bundle: the one that scored the rows.
        rows: labelled.
        folder: the new bundle's.
        accept: write the bundle even if its findings are below the line.

    Raises:
        FitError: there are too few right or too few wrong answers, or higher scores are less often wrong.
        UnacceptedFindingsError: the score is below the line on these rows, and isn't accepted all the same. Nothing is
            written.
        BundleError: something other than a bundle stands in the folder.
    """
    wrong, weights = rows.wrong, rows.weights
    check_classes(wrong, one_of_each(rows.groups), MIN_PER_CLASS, need="recalibrating needs", remedy="label more")
    calibration = calibrate(rows.raw, wrong, weights)
    sample = _random_sample(rows)
    known = bundle.calibration_set
    distances = None if rows.distances is None else tuple(sorted(rows.distances[sample].tolist()))
    typicality = known.typicality if distances is None else known.typicality.model_copy(update={"distances": distances})
    calibration_set = CalibrationSet(
        uncertainty=tuple(calibration.apply(rows.raw[sample]).tolist()),
        wrong=tuple(wrong[sample].tolist()),
        typicality=typicality,
        typical=known.typical,
        splits=None if known.splits is None else _splits(known.splits, rows.ids),
    )
    auroc, skill = weighted_figures(wrong, rows.raw, _cross_fitted(rows), weights, rows.groups)
    groups = len(np.unique(rows.groups))
    findings = (
        *figure_findings(auroc, skill, groups),
        *calibration_findings(int(sample.sum())),
        *(finding for finding in bundle.metadata.findings if finding.kind == "constant_features"),
    )
    check_findings(findings, accept=accept)
    metadata = bundle.metadata.model_copy(
        update={
            **{field.name: getattr(rows.circumstances, field.name) for field in fields(Circumstances)},
            "calibration": calibration,
            "recalibrated": Recalibration(
                bundle=bundle.digest,
                rows=len(rows),
                groups=groups,
                group_by=rows.group_by,
                fitted_to=rows.fitted_to,
                auroc=auroc,
                brier_skill=skill,
                least_probability=float(rows.probability.min()),
            ),
            "findings": findings,
        }
    )
    write_bundle(metadata, bundle.trees, calibration_set, rows.traffic, folder)
    return metadata


def _splits(known: Mapping[Split, Sequence[str]], ids: Sequence[str]) -> dict[Split, tuple[str, ...]]:
    """Name the rows that the trees know from the fit, and those that calibrate them now."""
    seen: dict[Split, tuple[str, ...]] = {name: tuple(known.get(name, ())) for name in TRAINED}
    return seen | {"calibration": tuple(map(row_digest, ids)), "test": ()}


def _random_sample(rows: CalibrationRows) -> Bool[np.ndarray, " rows"]:
    """Draw the rows as if every request had been labelled with the same probability, and of each group one of them."""
    smallest = float(rows.probability.min())
    sample = np.random.default_rng(SEED).random(len(rows)) < smallest / rows.probability
    drawn = np.flatnonzero(sample)
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[drawn[one_of_each(rows.groups[drawn])]] = True
    return chosen


def _cross_fitted(rows: CalibrationRows) -> Float64[np.ndarray, " rows"]:
    """Calibrate each fold of groups by a map that was fitted to the others; the base rate where none can be."""
    weights = rows.weights
    names, group = np.unique(rows.groups, return_inverse=True)
    fold = np.random.default_rng(SEED).permutation(len(names))[group] % FOLDS
    probability = np.empty(len(rows))
    for part in range(FOLDS):
        here, others = fold == part, fold != part
        base_rate = float(np.average(rows.wrong[others], weights=weights[others]))
        probability[here] = base_rate
        if 0 < base_rate < 1:
            with suppress(FitError):
                fitted = calibrate(rows.raw[others], rows.wrong[others], weights[others])
                probability[here] = fitted.apply(rows.raw[here])
    return probability


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
        path: JSONL that ``queue export`` wrote, or a harvested Parquet file, which is taken for a random sample; rows
            in rare wordings are left out, as `fit` says.
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
        bundle = profile.adapted(bundle)
    if path.suffix == ".parquet":
        if tier is not None:
            raise FitError(f"a harvest is of one tier; tier={tier!r} chooses among the rows of an export")
        return _of_harvest(bundle, read_attempts(path).answers(group_by))
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
    return CalibrationRows(
        ids=[row.id for _, row, _ in scored],
        raw=bundle.metadata.calibration.invert(np.array([uncertainty for uncertainty, _, _ in scored])),
        wrong=np.array([not row.correct for _, row, _ in scored]),
        probability=np.array([row.probability for _, row, _ in scored]),
        distances=None,
        groups=verdict_groups([row for _, row, _ in scored], [owner for _, _, owner in scored]),
        circumstances=_circumstances(bundle.metadata, [row for _, row, _ in scored], path),
        traffic=bundle.traffic,
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


def _of_harvest(bundle: Bundle, harvested: Answers) -> CalibrationRows:
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
    trees, normaliser = blended_trees(bundle), Normaliser(bundle.traffic)
    columns = columns_of_answers(answers, metadata.features, metadata.stage)
    labels = [{DATASET: name} for name in answers.datasets.tolist()]
    normal = normaliser.normalise(columns, normaliser.kinds(columns.prompt, labels))
    known = bundle.calibration_set.typicality
    return CalibrationRows(
        ids=answers.ids.tolist(),
        raw=trees.raw_scores(normal),
        wrong=answers.wrong,
        probability=np.ones(len(answers)),
        distances=squared_distances(normal.blocks["typicality"], np.array(known.mean), np.array(known.precision)),
        groups=answer_groups(answers),
        circumstances=Circumstances(
            fingerprint=manifest.fingerprint,
            prompt=manifest.prompt,
            max_new_tokens=manifest.max_new_tokens,
            wordings=wordings,
        ),
        traffic=bundle.traffic,
        group_by=answers.group_by,
        fitted_to=int(fitted_to.sum()),
    )


def _trained(bundle: Bundle, answers: Answers) -> Bool[np.ndarray, " rows"]:
    """Which rows trained the bundle's trees, or chose them."""
    splits = bundle.calibration_set.splits or {}
    digests = {digest for name in TRAINED for digest in splits.get(name, ())}
    return np.array([row_digest(str(id_)) in digests for id_ in answers.ids.tolist()], dtype=bool)
