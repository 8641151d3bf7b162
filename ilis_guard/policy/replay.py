"""Replay a recorded decision: evaluate a policy on the facts of each attempt and compare its rulings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ilis_guard.policy.explain import paragraph
from ilis_guard.policy.explanation import Explanation
from ilis_guard.policy.policy import Policy
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.types import Action, Attempt, ErrorInfo, Labels, Mode, Obstacle, Ruling, ShadowRuling, Stage, Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """What is on record of one decision, read back from a decision or a ticket."""

    id: str
    policy: str
    """Fingerprint of the policy that decided."""
    action: Action
    ticket: Ticket | None
    rulings: tuple[Ruling, ...]
    attempts: tuple[Attempt, ...]
    """Without signatures."""
    labels: Labels
    prompt_length: int
    thresholds: Mapping[str, float | None]
    mode: Mode = "enforce"
    shadow: ShadowRuling | None = None
    """As a decision's; tickets hold none."""
    ticket_error: ErrorInfo | None = None

    @property
    def policy_rulings(self) -> tuple[Ruling, ...]:
        """The rulings of the policy in force, whether it decided or was in shadow mode."""
        return self.rulings if self.mode == "enforce" or self.shadow is None else self.shadow.rulings

    @property
    def paragraph(self) -> str:
        """The explanation of `explain_decision`."""
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
class ReplayStep:
    """One evaluation of the policy."""

    attempt: int
    """From 1."""
    explanation: Explanation
    """The ruling on the facts on record."""
    agrees: bool | None
    """Whether it is the ruling on record; None where there isn't one ruling for each attempt on record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A decision that was replayed."""

    record: DecisionRecord
    policy: str
    """Fingerprint of the policy that was evaluated now."""
    steps: tuple[ReplayStep, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Reasons why the replay may differ from the record."""
        found = []
        if self.policy != self.record.policy:
            found.append(f"another policy decided, with the fingerprint {self.record.policy}; this is {self.policy}")
        if any(step.agrees is None for step in self.steps):
            found.append("the rulings on record aren't one an attempt, so they aren't compared")
        if any(step.agrees is False for step in self.steps):
            found.append("which larger tiers there were isn't on record; give --config guard.yaml")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "decision": self.record.id,
            "paragraph": self.record.paragraph,
            "decided_by": self.record.policy,
            "policy": self.policy,
            "notes": list(self.notes),
            "steps": [
                {"attempt": step.attempt, "agrees": step.agrees, **step.explanation.to_dict()} for step in self.steps
            ],
        }


def replay(policy: Policy, record: DecisionRecord, *, larger_tiers: Sequence[str], given: Mapping[str, Any]) -> Replay:
    """Evaluate a policy on each attempt of a recorded decision, and explain each ruling.

    Args:
        policy: to evaluate.
        record: what is on record.
        larger_tiers: those that were left after the last attempt.
        given: facts that aren't on record, or that override it.
    """
    steps = tuple(_steps(policy, record, larger_tiers, given))
    return Replay(record=record, policy=policy.fingerprint, steps=steps)


def _steps(
    policy: Policy, record: DecisionRecord, larger_tiers: Sequence[str], given: Mapping[str, Any]
) -> Iterator[ReplayStep]:
    tiers = tuple(attempt.tier for attempt in record.attempts)
    state = CascadeState(
        policy=policy,
        tiers=(*tiers, *larger_tiers),
        labels=record.labels,
        prompt_length=record.prompt_length,
        sampling_key=record.id,
        thresholds=record.thresholds,
    )
    rulings: Sequence[Ruling | None] = record.policy_rulings
    if len(rulings) != len(tiers):
        rulings = [None] * len(tiers)
    for number, (attempt, recorded) in enumerate(zip(record.attempts, rulings, strict=True), start=1):
        newest = AttemptSummary.of(attempt)
        answer_blocked_by: Obstacle | None = None
        stages = _stages(policy, attempt)
        for stage in stages:
            summary = newest if stage == "answer" else AttemptSummary.at_prompt(attempt)
            explanation = policy.explain(replace(state.facts(summary, answer_blocked_by), **given), stage)
            answer_blocked_by = explanation.answer_blocked_by
            agrees = None if recorded is None else _agrees(explanation, recorded, is_last=stage == stages[-1])
            yield ReplayStep(attempt=number, explanation=explanation, agrees=agrees)
        if number < len(tiers):
            state = state.after_retry(newest, tiers[number])


def _stages(policy: Policy, attempt: Attempt) -> tuple[Stage, ...]:
    if attempt.stage == "prompt":
        return ("prompt",)
    return ("prompt", "answer") if policy.prompt_rules else ("answer",)


def _agrees(explanation: Explanation, recorded: Ruling, *, is_last: bool) -> bool:
    ruling = explanation.ruling
    if not is_last:
        return ruling is None
    return ruling is not None and (ruling.action, ruling.rule) == (recorded.action, recorded.rule)
