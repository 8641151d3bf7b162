"""Score: harvested rows, each scored by its tier's own bundles -> the rows of a scored table."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilis_guard.cascade.tier import Tier, load_scorer
from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.config.tiers import TierConfig
from ilis_guard.errors import BundleMismatchError, ModelError, ScoringError, SimulationError
from ilis_guard.lab.harvest import HarvestedRow, Manifest, read_harvest, read_rows
from ilis_guard.lab.held_out import most_flattering, splits_of
from ilis_guard.lab.questions import Question
from ilis_guard.lab.scored import ScoredManifest, ScoredTier
from ilis_guard.scoring import LightGBMScorer
from ilis_guard.types import Fingerprint, Generation, Message, RemoteFingerprint, Score

Progress = Callable[[int, int], None]
"""Told (rows scored, rows in all)."""
Rows = list[dict[str, Any]]


def score(
    config: GuardConfig,
    harvests: Mapping[str, Path],
    *,
    questions: Sequence[Question] = (),
    progress: Progress = lambda _done, _all: None,
) -> tuple[ScoredManifest, Rows]:
    """Score one harvest a tier as the live guard scores answers; rows of one id are one request.

    Args:
        config: where the tiers' bundles are.
        harvests: by tier.
        questions: what was asked, where policies are to see how long it is.
        progress: told of each row.

    Raises:
        ConfigError: there is no such tier.
        SimulationError: there is no harvest of the smallest tier, where every request starts.
        FitError: a file isn't one of harvested rows.
        BundleError: a bundle can't be read.
        BundleMismatchError: a harvest was made with another model, precision or prompt than the tier's bundle.
    """
    harvested = {name: config.tier(name) for name in harvests}
    smallest = config.tiers[0].name
    if smallest not in harvested:
        raise SimulationError(
            f"every request starts at the smallest tier of guard.yaml, {smallest!r}, and there is no harvest of it; "
            f"give one: HARVEST --tier {smallest}"
        )
    lengths = {asked.id: len(asked.prompt()) for asked in questions}
    read = {name: read_rows(path) for name, path in harvests.items()}
    total = sum(len(of_tier) for _, of_tier in read.values())
    tiers: list[ScoredTier] = []
    rows: Rows = []
    for tier in config.tiers:
        if tier.name in harvested:
            before = len(rows)
            tell = lambda done, before=before: progress(before + done, total)  # noqa: E731 - a name for the one after
            scored, of_tier = _scored(tier, harvests[tier.name], read[tier.name], lengths, tell)
        else:
            scored, of_tier = ScoredTier(name=tier.name, bundle=None, prompt_bundle=None), []
        tiers.append(scored)
        rows += of_tier
    return ScoredManifest(origin="harvest", tiers=tuple(tiers)), rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    """In a model's place: what it said was harvested."""

    fingerprint: Fingerprint | RemoteFingerprint

    def generate(self, messages: Sequence[Message]) -> Generation:  # noqa: ARG002 - a model's signature
        raise ModelError("this model isn't run: what it said was harvested")


def _scored(
    config: TierConfig,
    path: Path,
    read: tuple[Manifest, Sequence[HarvestedRow]],
    lengths: Mapping[str, int],
    progress: Callable[[int], None],
) -> tuple[ScoredTier, Rows]:
    manifest, harvested = read
    scorer = None if config.bundle is None else load_scorer(config, config.bundle, "answer")
    prompt_scorer = None if config.prompt_bundle is None else load_scorer(config, config.prompt_bundle, "prompt")
    for found in filter(None, (scorer, prompt_scorer)):
        _check_fits(found, manifest, config.name, path)
    model = _Recording(fingerprint=manifest.fingerprint)
    tier = Tier(name=config.name, model=model, scorer=scorer, prompt_scorer=prompt_scorer, cost=config.cost)
    rows: Rows = []
    for row in harvested:
        rows.append(_row(tier, row, lengths.get(row.id)))
        progress(len(rows))
    harvest = read_harvest(path)
    splits = [
        splits_of(found.bundle, harvest, {row["id"]: row[name] for row in rows})
        for found, name in ((scorer, "uncertainty"), (prompt_scorer, "prompt_uncertainty"))
        if found is not None
    ]
    for scored in rows:
        scored["split"] = most_flattering([of_row[scored["id"]] for of_row in splits])
    return ScoredTier(name=config.name, bundle=_digest(scorer), prompt_bundle=_digest(prompt_scorer)), rows


def _digest(scorer: LightGBMScorer | None) -> str | None:
    return None if scorer is None else scorer.bundle.digest


def _check_fits(scorer: LightGBMScorer, manifest: Manifest, tier: str, path: Path) -> None:
    try:
        scorer.check_fits(manifest.fingerprint)
    except BundleMismatchError as error:
        raise BundleMismatchError(f"{path} wasn't harvested from the model of the tier {tier!r}: {error}") from error


def _row(tier: Tier, harvested: HarvestedRow, prompt_length: int | None) -> dict[str, Any]:
    """A row of the scored table, but for its split. Nothing is raised: what can't be scored is the row's error."""
    answer = harvested.generation
    score = prompt_score = None
    error = ""
    cost = prompt_cost = None
    if tier.cost is not None:
        # A model that scores no prompts isn't called before rules of stage `prompt` are asked.
        cost, prompt_cost = tier.cost.of(1, answer), 0.0 if tier.prompt_scorer is None else tier.cost.of_prompt(answer)
    if tier.prompt_scorer is not None:
        with suppress(ScoringError):  # only policies with rules of stage `prompt` would ask for it
            prompt_score = tier.score_prompt(answer)
    try:
        score = tier.score(answer)
    except ScoringError as why:
        error = f"{type(why).__name__}: {why}"
    known = {} if answer.statistics is None else answer.statistics.to_dict()
    return {
        "id": harvested.id,
        "tier": tier.name,
        "stage": "answer",
        **_numbers(score, ""),
        **_numbers(prompt_score, "prompt_"),
        **{name: value for name, value in known.items() if math.isfinite(value)},
        "tokens": answer.tokens,
        "cost": cost,
        "prompt_cost": prompt_cost,
        "prompt_length": prompt_length,
        "text_length": len(answer.text),
        "finish_reason": answer.finish_reason or "",
        "error": error,
        "labels": "{}",
        "wrong": not harvested.correct,
    }


def _numbers(score: Score | None, prefix: str) -> dict[str, float | None]:
    known = {} if score is None else score.to_dict()
    return {f"{prefix}uncertainty": known.get("uncertainty"), f"{prefix}typicality": known.get("typicality")}
