"""Score attempts for simulations: harvested answers by their tiers' bundles, or decisions with people's verdicts."""

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, get_args

from ilis_guard.cascade.loading import load_scorer
from ilis_guard.cascade.tier import Tier
from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.config.tiers import TierConfig
from ilis_guard.errors import AttemptsError, BundleMismatchError, ModelError, ScoringError, SimulationError
from ilis_guard.lab.attempt_schema import AttemptManifest, AttemptTier, Split
from ilis_guard.lab.attempts import DATASET, AttemptTable, read_attempts
from ilis_guard.lab.calibration_rows import verdict_groups
from ilis_guard.lab.grouping import CERTAIN, equal_rows, join_rows
from ilis_guard.lab.splits import SHARES
from ilis_guard.policy.facts import is_sampled
from ilis_guard.policy.records import AttemptJson, DecisionJson, VerdictJson, read_decisions, read_verdicts
from ilis_guard.scoring import LightGBMScorer
from ilis_guard.scoring.bundle import Bundle, row_digest
from ilis_guard.types import STATISTICS, Fingerprint, Generation, Labels, Message, RemoteFingerprint, Score, Wording

Progress = Callable[[int, int], None]
"""Called with (rows scored, rows in all)."""
Rows = list[dict[str, Any]]
_SCORE_COLUMNS: Final = ("uncertainty", "typicality", "calibrated", "rank")


def score(
    config: GuardConfig,
    harvests: Mapping[str, Path],
    *,
    progress: Progress = lambda _done, _all: None,
) -> AttemptTable:
    """Score one harvest for each tier as the live guard scores answers; rows of one id are one request.

    Args:
        config: names the tiers' bundles.
        harvests: by tier.
        progress: called after each row.

    Raises:
        ConfigError: there is no such tier.
        SimulationError: there is no harvest of the smallest tier, where every request starts.
        AttemptsError: a file isn't a table of attempts.
        FitError: a table holds no answers.
        BundleError: a bundle can't be read.
        BundleMismatchError: a harvest was made with another model, precision or prompt than the tier's bundle.
    """
    for name in harvests:
        config.tier(name)
    smallest = config.tiers[0].name
    if smallest not in harvests:
        raise SimulationError(
            f"every request starts at the smallest tier of guard.yaml, {smallest!r}, and there is no harvest of it; "
            f"give one: HARVEST --tier {smallest}"
        )
    tables = {name: read_attempts(path) for name, path in harvests.items()}
    total = sum(map(len, tables.values()))
    tiers: list[AttemptTier] = []
    rows: Rows = []
    for tier in config.tiers:
        if tier.name not in tables:
            tiers.append(AttemptTier(name=tier.name))
            continue
        before = len(rows)
        step = lambda done, before=before: progress(before + done, total)  # noqa: E731 - one callback a tier
        scored, of_tier = _score_tier(tier, harvests[tier.name], tables[tier.name], step)
        tiers.append(scored)
        rows += of_tier
    _join_tiers(rows)
    return AttemptTable.of_rows(AttemptManifest(origin="harvest", tiers=tuple(tiers)), rows)


def score_decisions(tiers: Sequence[str], decisions: Path, verdicts: Path | None = None) -> AttemptTable:
    """Tabulate the attempts of a guard's decisions, labelled by people's verdicts.

    The decisions' scores were given by bundles that were fitted before the requests came, so all rows are unseen.

    Args:
        tiers: of the guard, from small to large.
        decisions: JSON lines, each a decision as `ilis-guard ask --json` prints it.
        verdicts: what `ilis-guard queue export` wrote. A verdict belongs to the decision whose ticket it ended.

    Raises:
        AttemptsError: a line is wrong, or names a tier that isn't one of these.
    """
    made = read_decisions(decisions)
    wrong = _wrong(made, [] if verdicts is None else read_verdicts(verdicts))
    groups = join_rows(len(made), equal_rows([_same_answer(decision) for decision in made])).tolist()
    rows = [
        _decision_row(decision, attempt, wrong.get((decision.id, attempt.tier))) | {"group": made[first].id}
        for decision, first in zip(made, groups, strict=True)
        for attempt in decision.attempts
    ]
    bundles = {tier: {decision.bundles.get(tier) for decision in made} for tier in tiers}
    scores_prompts = {attempt.tier for one in made for attempt in one.attempts if attempt.prompt_score is not None}
    known = tuple(
        AttemptTier(
            name=tier,
            bundle=next(iter(digests)) if len(digests := bundles[tier]) == 1 else None,
            prompt_bundle="logged" if tier in scores_prompts else None,
        )
        for tier in tiers
    )
    return _table(AttemptManifest(origin="decisions", tiers=known), rows, decisions)


def score_verdicts(tiers: Sequence[str], verdicts: Path) -> AttemptTable:
    """Tabulate the attempts that people gave verdicts on, and no others.

    Args:
        tiers: of the guard, from small to large.
        verdicts: what `ilis-guard queue export` wrote.

    Raises:
        AttemptsError: a line is wrong, or names a tier that isn't one of these.
    """
    judged = [verdict for verdict in read_verdicts(verdicts) if verdict.tier is not None]
    groups = verdict_groups(judged, [None] * len(judged)).tolist()
    rows = [_verdict_row(verdict) | {"group": judged[first].id} for verdict, first in zip(judged, groups, strict=True)]
    known = tuple(AttemptTier(name=tier) for tier in tiers)
    return _table(AttemptManifest(origin="verdicts", tiers=known), rows, verdicts)


def splits_of(bundle: Bundle, scored: Sequence[str], unscored: Sequence[str]) -> Mapping[str, Split]:
    """Find the split of each harvested row in a bundle's fit, by row id.

    Args:
        bundle: that scored the rows.
        scored: ids of rows with a scored answer.
        unscored: ids of the other rows, which a fit leaves out.
    """
    splits = bundle.calibration_set.splits
    if splits is None:
        return dict.fromkeys([*scored, *unscored], "unknown")
    of_digest = {digest: name for name, digests in splits.items() for digest in digests}
    known: dict[str, Split] = {row: of_digest.get(row_digest(row), "unseen") for row in scored}
    is_fitted_to_these = any(split != "unseen" for split in known.values())
    return known | {row: random_split(row) if is_fitted_to_these else "unseen" for row in unscored}


def random_split(row: str) -> Split:
    """Assign a row that a fit left out to a split, so that such rows are as rare in each split as among all rows."""
    *ends, _ = accumulate(SHARES.values())
    *splits, last = SHARES
    return next((name for name, end in zip(splits, ends, strict=True) if is_sampled(row, "split", end)), last)


def most_flattering(splits: Sequence[Split]) -> Split:
    """Return the most flattering of the splits of one row in several bundles; `unseen` without any."""
    ranks: tuple[Split, ...] = get_args(Split)
    return min(splits, key=ranks.index, default="unseen")


def _join_tiers(rows: Rows) -> None:
    """Give the rows of a request one group, whichever of the harvests says that it depends on another."""
    by_id = equal_rows([row["id"] for row in rows])
    groups = join_rows(len(rows), by_id, equal_rows([row["group"] for row in rows])).tolist()
    for row, first in zip(rows, groups, strict=True):
        row["group"] = rows[first]["group"] or rows[first]["id"]


def _same_answer(decision: DecisionJson) -> Hashable:
    """What two decisions share only if one question was asked twice; None where that can't be known.

    A decision doesn't hold its prompt, and the numbers of one answer are those of another only by being its own.
    """
    first = decision.attempts[0]
    known = first.statistics
    if known is None or abs(known.logprob_sum or 0.0) < CERTAIN:
        return None
    return first.tier, first.text, decision.prompt_length, known.logprob_sum, known.entropy_mean, known.margin_min


@dataclass(frozen=True, slots=True, kw_only=True)
class _HarvestedModel:
    """Stands in for the model whose answers were harvested."""

    fingerprint: Fingerprint | RemoteFingerprint
    max_new_tokens: int | None

    def generate(self, messages: Sequence[Message]) -> Generation:  # noqa: ARG002 - a model's signature
        raise ModelError("this model isn't run: its answers were harvested")


def _score_tier(
    config: TierConfig, path: Path, harvest: AttemptTable, progress: Callable[[int], None]
) -> tuple[AttemptTier, Rows]:
    scorer = None if config.bundle is None else load_scorer(config, config.bundle, "answer")
    prompt_scorer = None if config.prompt_bundle is None else load_scorer(config, config.prompt_bundle, "prompt")
    scorers = [found for found in (scorer, prompt_scorer) if found is not None]
    manifest = harvest.harvest
    model = _HarvestedModel(fingerprint=manifest.fingerprint, max_new_tokens=manifest.max_new_tokens)
    try:
        tier = Tier(name=config.name, model=model, scorer=scorer, prompt_scorer=prompt_scorer, cost=config.cost)
    except BundleMismatchError as error:
        raise BundleMismatchError(
            f"{path} wasn't harvested from the model of the tier {config.name!r}: {error}"
        ) from error
    rows: Rows = []
    for row, (_, answer), wording in zip(harvest.rows(), harvest.generations(), harvest.wordings(), strict=True):
        rows.append(row | _scores(tier, answer, wording, {DATASET: row["dataset"]}))
        progress(len(rows))
    scored = set(harvest.answers().ids.tolist())
    unscored = [row["id"] for row in rows if row["id"] not in scored]
    splits = [splits_of(found.bundle, sorted(scored), unscored) for found in scorers]
    for row in rows:
        row["split"] = most_flattering([of_bundle[row["id"]] for of_bundle in splits])
    return AttemptTier(name=config.name, bundle=_digest(scorer), prompt_bundle=_digest(prompt_scorer)), rows


def _digest(scorer: LightGBMScorer | None) -> str | None:
    return None if scorer is None else scorer.bundle.digest


def _scores(tier: Tier, answer: Generation, wording: Wording, labels: Labels) -> dict[str, Any]:
    """The columns that scoring fills in. Nothing is raised: an answer that can't be scored has an error."""
    score = prompt_score = None
    error = ""
    cost = prompt_cost = None
    if tier.cost is not None:
        # Without a prompt bundle, rules of stage `prompt` are evaluated before the model is called.
        cost = tier.cost.of(1, answer.usage)
        prompt_cost = 0.0 if tier.prompt_scorer is None else tier.cost.of_prompt(answer.usage)
    if tier.prompt_scorer is not None:
        with suppress(ScoringError):  # only policies with rules of stage `prompt` need it
            prompt_score = tier.score_prompt(answer, wording, labels)
    try:
        score = tier.score(answer, wording, labels)
    except ScoringError as why:
        error = type(why).__name__
    statistics = {} if answer.statistics is None else answer.statistics.to_dict()
    return {
        "tier": tier.name,
        **_columns(score, ""),
        **_columns(prompt_score, "prompt_"),
        **{name: value if math.isfinite(value) else None for name, value in statistics.items()},
        "cost": cost,
        "prompt_cost": prompt_cost,
        "error": error,
    }


def _columns(score: Score | None, prefix: str) -> dict[str, Any]:
    known = {} if score is None else score.to_dict()
    return {f"{prefix}{name}": known.get(name) for name in _SCORE_COLUMNS}


def _decision_row(decision: DecisionJson, attempt: AttemptJson, wrong: bool | None) -> dict[str, Any]:
    # An answer that a stream stopped has no final score: for a simulation it was stopped at the prompt.
    is_complete = attempt.stage == "answer" and attempt.stopped_at is None
    at_prompt = attempt.stage == "prompt"
    prompt = attempt.prompt_score
    return {
        "id": decision.id,
        "tier": attempt.tier,
        "dataset": "",
        "split": "unseen",
        "stage": "answer" if is_complete else "prompt",
        "uncertainty": attempt.uncertainty if is_complete else None,
        "typicality": attempt.typicality if is_complete else None,
        "calibrated": not attempt.departures if is_complete and attempt.uncertainty is not None else None,
        "rank": attempt.rank if is_complete else None,
        **{f"prompt_{name}": getattr(prompt, name, None) for name in _SCORE_COLUMNS},
        **{name: getattr(attempt.statistics, name, None) for name in STATISTICS},
        "tokens": attempt.tokens,
        "prompt_tokens": attempt.prompt_tokens,
        "seconds": attempt.seconds if is_complete else None,
        "cost": attempt.cost if is_complete else None,
        "prompt_seconds": attempt.seconds if at_prompt else attempt.prompt_seconds,
        "prompt_cost": attempt.cost if at_prompt else attempt.prompt_cost,
        "prompt_length": decision.prompt_length,
        "text_length": len(attempt.text),
        "finish_reason": attempt.finish_reason or "",
        "error": "" if attempt.error is None else attempt.error.kind,
        "labels": json.dumps(decision.labels, sort_keys=True),
        "wrong": wrong,
    }


def _verdict_row(verdict: VerdictJson) -> dict[str, Any]:
    return {
        "id": verdict.id,
        "tier": verdict.tier,
        "dataset": verdict.dataset,
        "split": "unseen",
        "stage": "answer",
        "uncertainty": verdict.uncertainty,
        "typicality": verdict.typicality,
        "calibrated": None if verdict.uncertainty is None else not verdict.departures,
        "rank": verdict.rank,
        **{name: getattr(verdict, name) for name in STATISTICS},
        "tokens": verdict.tokens,
        "prompt_length": None if verdict.redacted else len(verdict.messages[-1].content),
        "text_length": None if verdict.redacted else len(verdict.text),
        "finish_reason": verdict.finish_reason or "",
        "error": "",
        "labels": json.dumps(verdict.labels, sort_keys=True),
        "wrong": not verdict.correct,
        "probability": verdict.probability,
    }


def _wrong(decisions: Sequence[DecisionJson], verdicts: Sequence[VerdictJson]) -> Mapping[tuple[str, str], bool]:
    """Whether answers were wrong, by decision and tier, as far as there are verdicts."""
    decision_of = {made.ticket.id: made.id for made in decisions if made.ticket is not None}
    return {
        (decision_of[verdict.id], verdict.tier): not verdict.correct
        for verdict in verdicts
        if verdict.tier is not None and verdict.id in decision_of
    }


def _table(manifest: AttemptManifest, rows: Rows, path: Path) -> AttemptTable:
    if not rows:
        raise AttemptsError(f"{path}: there are no attempts in it")
    tiers = [tier.name for tier in manifest.tiers]
    if unknown := sorted({row["tier"] for row in rows} - set(tiers)):
        raise AttemptsError(
            f"{path}: the tier {unknown[0]!r} isn't one of guard.yaml's, which are {tiers!r}; give the guard.yaml of "
            "the guard that made them"
        )
    return AttemptTable.of_rows(manifest, rows)
