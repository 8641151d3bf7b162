"""Decisions and tickets gone through again: what the policy was told at each step, and what it says to that."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ilis_guard.policy.explain import paragraph
from ilis_guard.policy.explanation import Explanation
from ilis_guard.policy.policy import Policy
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.types import Action, Attempt, ErrorInfo, Labels, Mode, Obstacle, Ruling, ShadowRuling, Stage, Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Retold:
    """What is on record of one decision."""

    id: str
    policy: str
    """Fingerprint of the policy that decided."""
    action: Action
    ticket: Ticket | None
    rulings: tuple[Ruling, ...]
    attempts: tuple[Attempt, ...]
    """Without signatures."""
    labels: Labels | None
    """None where they aren't on record."""
    prompt_length: int
    thresholds: Mapping[str, float | None]
    mode: Mode = "enforce"
    shadow: ShadowRuling | None = None
    """As a decision's; tickets hold none."""
    ticket_error: ErrorInfo | None = None

    @property
    def evaluated(self) -> tuple[Ruling, ...]:
        """What the policy in force said to each attempt, whether it decided or was in shadow mode."""
        return self.rulings if self.mode == "enforce" or self.shadow is None else self.shadow.rulings

    @property
    def paragraph(self) -> str:
        """As `explain_decision`."""
        return paragraph(
            action=self.action,
            attempts=self.attempts,
            rulings=self.rulings,
            ticket=self.ticket,
            ticket_error=self.ticket_error,
            mode=self.mode,
            shadow=self.shadow,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One time that the policy was asked."""

    attempt: int
    """From 1."""
    explanation: Explanation
    """What the policy says to the facts on record."""
    agrees: bool | None
    """Whether that is what was decided; None where the rulings on record aren't one an attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retracing:
    """A decision's way, gone through again."""

    retold: Retold
    policy: str
    """Fingerprint of the policy that was asked now."""
    steps: tuple[Step, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to bear in mind."""
        found = []
        if self.policy != self.retold.policy:
            found.append(f"another policy decided, with the fingerprint {self.retold.policy}; this is {self.policy}")
        if any(step.agrees is None for step in self.steps):
            found.append("the rulings on record aren't one an attempt, so they aren't compared")
        if any(step.agrees is False for step in self.steps):
            found.append("which larger tiers there were isn't on record; give --config guard.yaml")
            if self.retold.labels is None:
                found.append("the caller's labels aren't on record; give them, --facts '{labels: {NAME: VALUE}}'")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "decision": self.retold.id,
            "paragraph": self.retold.paragraph,
            "decided_by": self.retold.policy,
            "policy": self.policy,
            "notes": list(self.notes),
            "steps": [
                {"attempt": step.attempt, "agrees": step.agrees, **step.explanation.to_dict()} for step in self.steps
            ],
        }


def retrace(policy: Policy, retold: Retold, *, larger_tiers: Sequence[str], given: Mapping[str, Any]) -> Retracing:
    """Go a decision's way again, and explain each step of it.

    Args:
        policy: what to ask.
        retold: what is on record.
        larger_tiers: those that were left after the last attempt.
        given: facts that aren't on record, or are to be other than they were.
    """
    steps = tuple(_steps(policy, retold, larger_tiers, given))
    return Retracing(retold=retold, policy=policy.fingerprint, steps=steps)


def _steps(policy: Policy, retold: Retold, larger_tiers: Sequence[str], given: Mapping[str, Any]) -> Iterator[Step]:
    tiers = tuple(attempt.tier for attempt in retold.attempts)
    way = CascadeState(
        policy=policy,
        tiers=(*tiers, *larger_tiers),
        labels=retold.labels or {},
        prompt_length=retold.prompt_length,
        sampling_key=retold.id,
        thresholds=retold.thresholds,
    )
    rulings: Sequence[Ruling | None] = retold.evaluated
    if len(rulings) != len(tiers):
        rulings = [None] * len(tiers)
    for number, (attempt, recorded) in enumerate(zip(retold.attempts, rulings, strict=True), start=1):
        newest = AttemptSummary.of(attempt)
        answer_blocked_by: Obstacle | None = None
        stages = _stages(policy, attempt)
        for stage in stages:
            told = newest if stage == "answer" else AttemptSummary.at_prompt(attempt)
            explanation = policy.explain(replace(way.facts(told, answer_blocked_by), **given), stage)
            answer_blocked_by = explanation.answer_blocked_by
            agrees = None if recorded is None else _agrees(explanation, recorded, is_last=stage == stages[-1])
            yield Step(attempt=number, explanation=explanation, agrees=agrees)
        if number < len(tiers):
            way = way.after_retry(newest, tiers[number])


def _stages(policy: Policy, attempt: Attempt) -> tuple[Stage, ...]:
    if attempt.stage == "prompt":
        return ("prompt",)
    return ("prompt", "answer") if policy.prompt_rules else ("answer",)


def _agrees(explanation: Explanation, recorded: Ruling, *, is_last: bool) -> bool:
    ruling = explanation.ruling
    if not is_last:
        return ruling is None
    return ruling is not None and (ruling.action, ruling.rule) == (recorded.action, recorded.rule)
