"""A request's way through the tiers as far as a policy goes: what it is told, what it says, who is asked next.

No model runs here and no clock is asked. The live guard brings what its models said and how long they took, the
simulation what was recorded of them; both walk this way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from ilis_guard.policy.engine import PromptRuling, Ruling
from ilis_guard.policy.facts import Facts
from ilis_guard.policy.policy import Policy
from ilis_guard.sentences import cut_after
from ilis_guard.types import Attempt, FinishReason, Labels, Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSummary:
    """What a policy is told of one attempt. Prompts and answers are no facts, so their texts aren't here."""

    tier: str
    uncertainty: float | None = None
    """At the stage that it has come to; so is `typicality`."""
    typicality: float | None = None
    statistics: Statistics | None = None
    tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    text_length: int = 0
    finish_reason: FinishReason | Literal[""] = ""
    stopped_at: int | None = None
    """As `Attempt.stopped_at`: what was cut is no answer."""
    error: str = ""

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        """Those of an attempt that was made, or has just come as far as the prompt."""
        return cls(
            tier=attempt.tier,
            uncertainty=attempt.uncertainty,
            typicality=attempt.typicality,
            statistics=attempt.statistics,
            tokens=attempt.tokens,
            seconds=attempt.seconds,
            cost=attempt.cost,
            text_length=len(attempt.text),
            finish_reason=attempt.finish_reason or "",
            stopped_at=attempt.stopped_at,
            error=attempt.error,
        )

    @classmethod
    def at_prompt(cls, attempt: Attempt) -> Self:
        """Those that an attempt on record had at the prompt; seconds and cost are told as 0 where nobody asked then."""
        score = attempt.prompt_score
        return cls(
            tier=attempt.tier,
            uncertainty=None if score is None else score.uncertainty,
            typicality=None if score is None or math.isnan(score.typicality) else score.typicality,
            seconds=attempt.prompt_seconds or 0.0,
            cost=attempt.prompt_cost or 0.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeState:
    """Where a request stands: at the first of the tiers that are left, with its attempts on smaller ones behind it."""

    policy: Policy
    left: Sequence[str]
    """The tiers that may still be asked, from small to large; the first is asked now."""
    labels: Labels = field(default_factory=dict)
    prompt_length: int = 0
    """Characters of the user's last turn."""
    sampling_key: str = ""
    """What samples are drawn from."""
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    """By tier: the uncertainty up to which the policy's guarantee holds; None where it can't be certified."""
    before: tuple[AttemptSummary, ...] = ()
    """Attempts on earlier tiers, each of which ended in a retry."""

    def at_prompt(self, newest: AttemptSummary) -> PromptRuling:
        """What the policy says before a token is generated."""
        return self.policy.evaluate_prompt(self.facts(newest))

    def at_answer(self, newest: AttemptSummary, *, answer_blocked_by: str = "") -> Ruling:
        """What the policy says to an attempt that was made.

        Args:
            newest: the attempt.
            answer_blocked_by: as the prompt's ruling has it.
        """
        return self.policy.evaluate(self.facts(newest, answer_blocked_by))

    def may_answer(self, so_far: AttemptSummary, *, answer_blocked_by: str = "") -> bool:
        """Whether the policy may still answer with an attempt that is under way; as `Policy.may_answer`."""
        return self.policy.may_answer(self.facts(so_far, answer_blocked_by))

    def after_retry(self, newest: AttemptSummary, to: str | None) -> Self:
        """Where a retry leads.

        Args:
            newest: the attempt that it follows on.
            to: one of the tiers left; None for the next larger one.
        """
        return replace(self, left=self.left[1 if to is None else self.left.index(to) :], before=(*self.before, newest))

    def spent(self, newest: AttemptSummary) -> str:
        """Which part of the policy's budget is spent, so that no larger tier may be asked; empty where none is."""
        budget = self.policy.budget
        if budget is None:
            return ""
        if budget.max_seconds is not None and self._seconds(newest) > budget.max_seconds:
            return f"the request's {budget.max_seconds:g} seconds are over"
        if budget.max_attempts is not None and len(self.before) + 1 >= budget.max_attempts:
            return f"the request's attempts ({budget.max_attempts}) are made"
        if budget.max_cost is not None and self._cost(newest) >= budget.max_cost:
            return f"what the request may cost ({budget.max_cost:g}) is spent"
        return ""

    def facts(self, newest: AttemptSummary, answer_blocked_by: str = "") -> Facts:
        """What the policy is told once the newest attempt has come to its stage."""
        larger = () if self.spent(newest) else tuple(self.left[1:])
        return Facts(
            uncertainty=newest.uncertainty,
            typicality=newest.typicality,
            threshold=self.thresholds.get(newest.tier),
            tier=newest.tier,
            last_tier=not larger,
            larger_tiers=larger,
            attempt=len(self.before) + 1,
            tokens=newest.tokens + sum(attempt.tokens for attempt in self.before),
            seconds=self._seconds(newest),
            cost=self._cost(newest),
            prompt_length=self.prompt_length,
            text_length=newest.text_length,
            finish_reason=newest.finish_reason,
            labels=self.labels,
            error=newest.error or self._out_of_time(newest),
            statistics=newest.statistics,
            answer_blocked_by=answer_blocked_by or _cut(newest),
            sampling_key=self.sampling_key,
        )

    def _out_of_time(self, newest: AttemptSummary) -> str:
        """An answer that comes too late is an error, however good it is."""
        limit = None if self.policy.budget is None else self.policy.budget.max_seconds
        return out_of_time(limit) if limit is not None and self._seconds(newest) > limit else ""

    def _seconds(self, newest: AttemptSummary) -> float:
        return newest.seconds + _added_up([attempt.seconds for attempt in self.before])

    def _cost(self, newest: AttemptSummary) -> float:
        return newest.cost + _added_up([attempt.cost for attempt in self.before])


def _cut(newest: AttemptSummary) -> str:
    if newest.stopped_at is None:
        return ""
    return f"the answer was {cut_after(newest.stopped_at)}, so nothing is answered"


def out_of_time(max_seconds: float) -> str:
    """The error of an attempt by whose end the request's seconds were over."""
    return f"BudgetError: the request's {max_seconds:g} seconds are over"


def _added_up(values: Sequence[float]) -> float:
    # One after the other, as the simulation adds up its columns: Python's sum() rounds otherwise from 3.12 on.
    total = 0.0
    for value in values:
        total += value
    return total
