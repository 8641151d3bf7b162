"""Decisions and tickets gone through again: what the policy was told at each step, and what it says to that."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ilis_guard.policy.explain import Explanation
from ilis_guard.policy.policy import Policy
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.sentences import Said, paragraph, said_in
from ilis_guard.types import Attempt, Labels, Mode, ShadowRuling, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Retold:
    """What is on record of one decision."""

    id: str
    policy: str
    """Fingerprint of the policy that decided."""
    action: str
    queue: str
    """Where it waits for a person; empty where it doesn't."""
    reasons: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    """Without signatures."""
    labels: Labels | None
    """None where they aren't on record."""
    prompt_length: int
    thresholds: Mapping[str, float | None]
    mode: Mode = "enforce"
    shadow: ShadowRuling | None = None
    """As a decision's; tickets hold none."""

    @property
    def said(self) -> tuple[Said, ...]:
        """What the policy said to each attempt, in force or only looking on; less where the reasons don't tell."""
        reasons = self.reasons if self.mode == "enforce" or self.shadow is None else self.shadow.reasons
        return tuple(said_in(reasons))

    @property
    def paragraph(self) -> str:
        """As `Decision.explain`."""
        return paragraph(
            action=self.action,
            attempts=[attempt.to_dict() for attempt in self.attempts],
            reasons=self.reasons,
            queue=self.queue,
            mode=self.mode,
            shadow=None if self.shadow is None else self.shadow.to_dict(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One time that the policy was asked."""

    attempt: int
    """From 1."""
    explanation: Explanation
    """What the policy says to the facts on record."""
    agrees: bool | None
    """Whether that is what was decided; None where the reasons on record don't tell."""


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
            found.append("the reasons on record don't tell what was decided at each step, so that isn't compared")
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
        left=(*tiers, *larger_tiers),
        labels=retold.labels or {},
        prompt_length=retold.prompt_length,
        sampling_key=retold.id,
        thresholds=retold.thresholds,
    )
    said: list[Said | None] = list(retold.said)
    if len(said) != len(tiers):  # redacted by now, or not written by the engine
        said = [None] * len(tiers)
    for number, (attempt, recorded) in enumerate(zip(retold.attempts, said, strict=True), start=1):
        newest, answer_blocked_by = AttemptSummary.of(attempt), ""
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


def _agrees(explanation: Explanation, recorded: Said, *, is_last: bool) -> bool:
    ruling = explanation.ruling
    if not is_last:
        return ruling is None
    return ruling is not None and (ruling.action.value, ruling.rule) == (recorded.action, recorded.rule)
