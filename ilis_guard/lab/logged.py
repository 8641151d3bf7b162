"""Logged decisions and verdicts -> the rows of a scored table.

A decision's scores were given before anybody knew the answer, by a bundle that was fitted before the request came: all
its rows are unseen. Which answers were wrong, people's verdicts tell.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from ilis_guard.errors import SimulationError
from ilis_guard.lab.scored import ScoredManifest, ScoredTier
from ilis_guard.policy.written import Written, WrittenAttempt
from ilis_guard.types import STATISTICS, FinishReason, Label

T = TypeVar("T", bound="Written")
Rows = list[dict[str, Any]]
Share = float | None


class _Ticket(Written):
    id: str


class _Decision(Written):
    """A line of `Decision.to_dict`."""

    id: str
    attempts: tuple[WrittenAttempt, ...] = Field(min_length=1)
    ticket: _Ticket | None
    labels: Mapping[str, Label] | None = None
    """None in decisions of releases that didn't keep them; so is `prompt_length`."""
    prompt_length: int | None = None
    bundles: Mapping[str, str | None] = Field(default_factory=dict)


class _Message(Written):
    content: str


class _Verdict(Written):
    """A line of `ilis-guard queue export`."""

    id: str
    """Of the ticket."""
    tier: str | None
    correct: bool
    text: str
    messages: tuple[_Message, ...] = Field(min_length=1)
    labels: Mapping[str, Label]
    uncertainty: Share
    typicality: Share
    tokens: int
    finish_reason: FinishReason | None
    logprob_sum: float | None = None
    logprob_mean: float | None = None
    entropy_mean: float | None = None
    margin_min: float | None = None
    redacted: bool


def score_decisions(tiers: Sequence[str], decisions: Path, verdicts: Path | None = None) -> tuple[ScoredManifest, Rows]:
    """The rows of logged decisions, with what verdicts say of their answers.

    Args:
        tiers: of the guard, from small to large.
        decisions: JSON lines, each a decision as `ilis-guard ask --json` prints it.
        verdicts: what `ilis-guard queue export` wrote. A verdict is the decision's whose ticket it ended.

    Raises:
        SimulationError: a line is wrong, or names a tier that isn't one of these.
    """
    made = _read(decisions, _Decision)
    wrong = _wrong(made, [] if verdicts is None else _read(verdicts, _Verdict))
    rows = [
        _row(decision, attempt, wrong.get((decision.id, attempt.tier)))
        for decision in made
        for attempt in decision.attempts
    ]
    _check_tiers(rows, tiers, decisions)
    bundles = {tier: {decision.bundles.get(tier) for decision in made} for tier in tiers}
    scores_prompts = {attempt.tier for one in made for attempt in one.attempts if attempt.prompt_score is not None}
    known = tuple(
        ScoredTier(
            name=tier,
            bundle=next(iter(digests)) if len(digests := bundles[tier]) == 1 else None,
            prompt_bundle="logged" if tier in scores_prompts else None,
        )
        for tier in tiers
    )
    return ScoredManifest(origin="decisions", tiers=known), rows


def score_verdicts(tiers: Sequence[str], verdicts: Path) -> tuple[ScoredManifest, Rows]:
    """The rows of verdicts alone: the attempts that people looked at, and no others.

    Args:
        tiers: of the guard, from small to large.
        verdicts: what `ilis-guard queue export` wrote.

    Raises:
        SimulationError: as `score_decisions`.
    """
    rows = [
        {
            "id": verdict.id,
            "tier": verdict.tier,
            "split": "unseen",
            "stage": "answer",
            "uncertainty": verdict.uncertainty,
            "typicality": verdict.typicality,
            **{name: getattr(verdict, name) for name in STATISTICS},
            "tokens": verdict.tokens,
            "prompt_length": None if verdict.redacted else len(verdict.messages[-1].content),
            "text_length": None if verdict.redacted else len(verdict.text),
            "finish_reason": verdict.finish_reason or "",
            "error": "",
            "labels": _labels(verdict.labels),
            "wrong": not verdict.correct,
        }
        for verdict in _read(verdicts, _Verdict)
        if verdict.tier is not None
    ]
    _check_tiers(rows, tiers, verdicts)
    known = tuple(ScoredTier(name=tier, bundle=None, prompt_bundle=None) for tier in tiers)
    return ScoredManifest(origin="verdicts", tiers=known), rows


def _row(decision: _Decision, attempt: WrittenAttempt, wrong: bool | None) -> dict[str, Any]:
    # What a stream cut is as good as never answered: how sure it would have been at its end isn't known.
    ended = attempt.stage == "answer" and attempt.stopped_at is None
    prompt = attempt.prompt_score
    known = {} if attempt.statistics is None else attempt.statistics.model_dump()
    return {
        "id": decision.id,
        "tier": attempt.tier,
        "split": "unseen",
        "stage": "answer" if ended else "prompt",
        "uncertainty": attempt.uncertainty if ended else None,
        "typicality": attempt.typicality if ended else None,
        "prompt_uncertainty": None if prompt is None else prompt.uncertainty,
        "prompt_typicality": None if prompt is None else prompt.typicality,
        **{name: known.get(name) for name in STATISTICS},
        "tokens": attempt.tokens,
        "seconds": attempt.seconds if ended else None,
        "cost": attempt.cost if ended else None,
        "prompt_seconds": attempt.seconds if attempt.stage == "prompt" else attempt.prompt_seconds,
        "prompt_cost": attempt.cost if attempt.stage == "prompt" else attempt.prompt_cost,
        "prompt_length": decision.prompt_length,
        "text_length": len(attempt.text),
        "finish_reason": attempt.finish_reason or "",
        "error": "" if attempt.error is None else attempt.error.kind,
        "labels": None if decision.labels is None else _labels(decision.labels),
        "wrong": wrong,
    }


def _wrong(decisions: Sequence[_Decision], verdicts: Sequence[_Verdict]) -> Mapping[tuple[str, str], bool]:
    """By decision and tier, whether its answer was wrong, as far as verdicts tell."""
    of_ticket = {made.ticket.id: made.id for made in decisions if made.ticket is not None}
    return {
        (of_ticket[verdict.id], verdict.tier): not verdict.correct
        for verdict in verdicts
        if verdict.tier is not None and verdict.id in of_ticket
    }


def _labels(labels: Mapping[str, Label]) -> str:
    return json.dumps(labels, sort_keys=True)


def _check_tiers(rows: Rows, tiers: Sequence[str], path: Path) -> None:
    if not rows:
        raise SimulationError(f"{path}: nobody's attempt stands in it")
    if unknown := sorted({row["tier"] for row in rows} - set(tiers)):
        raise SimulationError(
            f"{path}: the tier {unknown[0]!r} isn't one of guard.yaml's, which are {list(tiers)!r}; give the "
            "guard.yaml of the guard that made them"
        )


def _read(path: Path, kind: type[T]) -> list[T]:
    return list(_lines(path, kind))


def _lines(path: Path, kind: type[T]) -> Iterator[T]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _line(f"{path}:{number}", line, kind)
    except OSError as error:
        raise SimulationError(f"{path}: {error.strerror}") from error


def _line(where: str, line: bytes, kind: type[T]) -> T:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # what was got may be a prompt
        key = ".".join(map(str, first["loc"]))
        what = f"{key!r}: {first['msg']}" if key else first["msg"]
        source = "ask --json" if kind is _Decision else "queue export"
        raise SimulationError(f"{where}: not a line of `ilis-guard {source}`: {what}") from error
