"""A request's way through the tiers as far as a policy goes: what it is told, what it says, who is asked next.

No model runs here and no clock is asked. The live guard brings what its models said and how long they took, the
simulation what was recorded of them; both walk this way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from ilis_guard.policy.engine import PromptRuling, Ruling
from ilis_guard.policy.facts import Facts
from ilis_guard.policy.policy import Policy
from ilis_guard.types import Attempt, Labels, Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFacts:
    """What a policy is told of one attempt. Prompts and answers are no facts, so their texts aren't here."""

    tier: str
    uncertainty: float | None = None
    """At the stage that it has come to; so is `shift`."""
    shift: float | None = None
    statistics: Statistics | None = None
    tokens: int = 0
    seconds: float = 0.0
    error: str = ""

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        """Those of an attempt that was made, or has come as far as the prompt."""
        return cls(
            tier=attempt.tier,
            uncertainty=attempt.uncertainty,
            shift=attempt.shift,
            statistics=attempt.statistics,
            tokens=attempt.tokens,
            seconds=attempt.seconds,
            error=attempt.error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where a request stands: at the first of the tiers that are left, with its attempts on smaller ones behind it."""

    policy: Policy
    left: Sequence[str]
    """The tiers that may still be asked, from small to large; the first is asked now."""
    labels: Labels = field(default_factory=dict)
    before: tuple[AttemptFacts, ...] = ()
    """Attempts on earlier tiers, each of which ended in a retry."""

    def at_prompt(self, newest: AttemptFacts) -> PromptRuling:
        """What the policy says before a token is generated."""
        return self.policy.evaluate_prompt(self._facts(newest))

    def at_answer(self, newest: AttemptFacts, *, held_back: str = "") -> Ruling:
        """What the policy says to an attempt that was made.

        Args:
            newest: the attempt.
            held_back: as the prompt's ruling has it.
        """
        return self.policy.evaluate(self._facts(newest, held_back))

    def after_retry(self, newest: AttemptFacts, to: str | None) -> Self:
        """Where a retry leads.

        Args:
            newest: the attempt that it follows on.
            to: one of the tiers left; None for the next larger one.
        """
        return replace(self, left=self.left[1 if to is None else self.left.index(to) :], before=(*self.before, newest))

    def _facts(self, newest: AttemptFacts, held_back: str = "") -> Facts:
        larger = tuple(self.left[1:])
        return Facts(
            uncertainty=newest.uncertainty,
            shift=newest.shift,
            tier=newest.tier,
            last_tier=not larger,
            larger_tiers=larger,
            attempt=len(self.before) + 1,
            tokens=newest.tokens + sum(attempt.tokens for attempt in self.before),
            seconds=newest.seconds + sum(attempt.seconds for attempt in self.before),
            labels=self.labels,
            error=newest.error,
            statistics=newest.statistics,
            held_back=held_back,
        )
