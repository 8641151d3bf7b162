"""Where a request stands in the cascade, as far as a policy goes: the facts, the rulings, the tiers that are left.

No model runs here and no clock is read. The live guard brings what its models returned and how long they took, the
simulation what was recorded of that; both go through this class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Self

from ilis_guard.errors import BudgetError
from ilis_guard.policy.facts import COLD_START_SALT, Facts, is_sampled
from ilis_guard.policy.policy import Policy
from ilis_guard.types import (
    Action,
    Attempt,
    FinishReason,
    Labels,
    Obstacle,
    PromptRuling,
    Ruling,
    SpentBudget,
    Statistics,
    to_known,
    total,
)

OUT_OF_TIME: Final = BudgetError.__name__
"""The error, as a fact, of an attempt by whose end the request's seconds were over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSummary:
    """What a policy may know of one attempt. Prompts and answers are no facts, so their texts aren't here."""

    tier: str
    uncertainty: float | None = None
    """At the stage that it has come to; so are the next three."""
    typicality: float | None = None
    calibrated: bool = True
    """As `Facts.calibrated`."""
    rank: float | None = None
    statistics: Statistics | None = None
    tokens: int | None = 0
    seconds: float = 0.0
    cost: float | None = 0.0
    text_length: int = 0
    finish_reason: FinishReason | Literal[""] = ""
    stopped_at: int | None = None
    """As `Attempt.stopped_at`: what was stopped early is no answer."""
    error: str = ""
    """As `ErrorInfo.kind`; empty where there is none."""

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        """Summarise an attempt that was made, or has just come as far as the prompt."""
        return cls(
            tier=attempt.tier,
            uncertainty=attempt.uncertainty,
            typicality=attempt.typicality,
            calibrated=attempt.calibrated,
            rank=attempt.rank,
            statistics=attempt.statistics,
            tokens=attempt.tokens,
            seconds=attempt.seconds,
            cost=attempt.cost,
            text_length=len(attempt.text),
            finish_reason=attempt.finish_reason or "",
            stopped_at=attempt.stopped_at,
            error="" if attempt.error is None else attempt.error.kind,
        )

    @classmethod
    def at_prompt(cls, attempt: Attempt) -> Self:
        """Summarise a recorded attempt as it stood at the prompt; seconds are 0 where they aren't known."""
        score = attempt.prompt_score
        return cls(
            tier=attempt.tier,
            uncertainty=None if score is None else score.uncertainty,
            typicality=None if score is None else to_known(score.typicality),
            calibrated=score is not None and score.calibrated,
            rank=None if score is None else to_known(score.rank),
            seconds=attempt.prompt_seconds or 0.0,
            cost=attempt.prompt_cost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeState:
    """A request at the first of the tiers that are left, with its attempts on smaller ones behind it."""

    policy: Policy
    tiers: Sequence[str]
    """The tiers that are left, from small to large; the first is tried now."""
    labels: Labels = field(default_factory=dict)
    prompt_length: int = 0
    """Characters of the user's last turn."""
    sampling_key: str = ""
    """What decides whether the request is in a sample."""
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    """By tier: the uncertainty up to which the policy's guarantee holds; None where it can't be certified."""
    earlier: tuple[AttemptSummary, ...] = ()
    """Attempts on earlier tiers, each of which ended in a retry."""

    def evaluate_prompt(self, newest: AttemptSummary) -> PromptRuling:
        """What the policy says before a token is generated."""
        return self.policy.evaluate_prompt(self.facts(newest))

    def evaluate_answer(self, newest: AttemptSummary, *, answer_blocked_by: Obstacle | None = None) -> Ruling:
        """What the policy says to an attempt that was made.

        Args:
            newest: the attempt.
            answer_blocked_by: as the prompt's ruling has it.
        """
        return self.policy.evaluate(self.facts(newest, answer_blocked_by))

    def may_answer(self, so_far: AttemptSummary, *, answer_blocked_by: Obstacle | None = None) -> bool:
        """Whether the policy may still answer with an attempt that is under way; as `Policy.may_answer`."""
        return self.policy.may_answer(self.facts(so_far, answer_blocked_by))

    def is_shadowed(self, newest: AttemptSummary, *, answer_blocked_by: Obstacle | None = None) -> bool:
        """Whether an answer that can't be ranked yet is given all the same, as the policy's `cold_start` says.

        Only where the rank alone is missing: among the surest, the policy would answer it.

        Args:
            newest: the attempt.
            answer_blocked_by: as the prompt's ruling has it.
        """
        cold_start = self.policy.cold_start
        if cold_start is None or newest.error or newest.uncertainty is not None or newest.rank is not None:
            return False
        if is_sampled(self.sampling_key, COLD_START_SALT, cold_start.enforced):
            return False
        at_best = self.evaluate_answer(replace(newest, rank=0.0), answer_blocked_by=answer_blocked_by)
        return at_best.action is Action.ANSWER

    def after_retry(self, newest: AttemptSummary, to: str | None) -> Self:
        """The state that a retry leads to.

        Args:
            newest: the attempt that it follows.
            to: one of the tiers left; None for the next larger one.
        """
        left = self.tiers[1 if to is None else self.tiers.index(to) :]
        return replace(self, tiers=left, earlier=(*self.earlier, newest))

    def spent_budget(self, newest: AttemptSummary) -> SpentBudget | None:
        """The part of the policy's budget that is spent, so that no larger tier may be tried; None where none is."""
        budget = self.policy.budget
        if budget is None:
            return None
        if budget.max_seconds is not None and self._seconds(newest) > budget.max_seconds:
            return SpentBudget(limit="max_seconds", value=budget.max_seconds)
        if budget.max_attempts is not None and len(self.earlier) + 1 >= budget.max_attempts:
            return SpentBudget(limit="max_attempts", value=budget.max_attempts)
        if budget.max_cost is not None:
            cost = self._cost(newest)
            if cost is None or cost >= budget.max_cost:
                return SpentBudget(limit="max_cost", value=budget.max_cost, is_known=cost is not None)
        return None

    def facts(self, newest: AttemptSummary, answer_blocked_by: Obstacle | None = None) -> Facts:
        """The facts once the newest attempt has come to its stage."""
        larger = () if self.spent_budget(newest) else tuple(self.tiers[1:])
        return Facts(
            uncertainty=newest.uncertainty,
            typicality=newest.typicality,
            calibrated=newest.calibrated,
            rank=newest.rank,
            threshold=self.thresholds.get(newest.tier),
            tier=newest.tier,
            last_tier=not larger,
            larger_tiers=larger,
            attempt=len(self.earlier) + 1,
            tokens=total((attempt.tokens for attempt in (*self.earlier, newest)), start=0),
            seconds=self._seconds(newest),
            cost=self._cost(newest),
            prompt_length=self.prompt_length,
            text_length=newest.text_length,
            finish_reason=newest.finish_reason,
            labels=self.labels,
            error=newest.error or self._late(newest),
            statistics=newest.statistics,
            answer_blocked_by=answer_blocked_by or _stopped_early(newest),
            sampling_key=self.sampling_key,
        )

    def _late(self, newest: AttemptSummary) -> str:
        """The error of an answer that comes too late, however good it is; empty where it doesn't."""
        limit = None if self.policy.budget is None else self.policy.budget.max_seconds
        return OUT_OF_TIME if limit is not None and self._seconds(newest) > limit else ""

    def _seconds(self, newest: AttemptSummary) -> float:
        earlier = total((attempt.seconds for attempt in self.earlier), start=0.0)
        assert earlier is not None, "seconds are known"
        return newest.seconds + earlier

    def _cost(self, newest: AttemptSummary) -> float | None:
        earlier = total((attempt.cost for attempt in self.earlier), start=0.0)
        return None if newest.cost is None or earlier is None else newest.cost + earlier


def _stopped_early(newest: AttemptSummary) -> Obstacle | None:
    return None if newest.stopped_at is None else Obstacle(kind="stopped_early", tokens=newest.stopped_at)
