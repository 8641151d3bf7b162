"""A request's way through the tiers: asked, scored and ruled on, until no rule wants a larger one."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ilis_guard import events
from ilis_guard.cascade.attempt import Asked, Asking
from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.cascade.early_stop import PATIENCE, EarlyStopper
from ilis_guard.cascade.stream import Audience
from ilis_guard.cascade.tier import Tier
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.models import StepwiseModel
from ilis_guard.policy import PromptRuling, Ruling
from ilis_guard.policy.binding import BoundPolicy
from ilis_guard.policy.state import AttemptSummary
from ilis_guard.sentences import cut_after
from ilis_guard.types import Action, Attempt, Request


class Walk:
    """One request's way. What happened on it stands in `attempts`, `rulings` and `reasons`, as it came about.

    Args:
        request: what is asked.
        tiers: from small to large.
        callers: of their models, by tier.
        wired: the policy that decides, or in shadow mode only looks on.
        decision: its id.
        since: when the request came, on the clock of `time.monotonic`.
        audience: of the stream that it is; None where nobody looks on.
    """

    def __init__(
        self,
        request: Request,
        tiers: Sequence[Tier],
        callers: Mapping[str, ModelCaller],
        wired: BoundPolicy,
        *,
        decision: str,
        since: float,
        audience: Audience | None = None,
    ) -> None:
        self.attempts: list[Attempt] = []
        self.rulings: list[Ruling] = []
        """One an attempt."""
        self.reasons: list[str] = []
        self.request = request
        """What is asked; from an attempt on whose model words its own prompt, that."""
        self._tiers = {tier.name: tier for tier in tiers}
        self._callers = callers
        self._policy = wired.policy
        self._is_binding = wired.policy.mode == "enforce"
        self._way = wired.way(request, tuple(self._tiers), sampling_key=decision)
        self._audience = audience
        self._deadline = self._deadline_after(since)
        self._decision = decision
        self._since = since

    def run(self) -> Ruling:
        """Go from tier to tier; the last ruling, which is no retry. In shadow mode, the first tier's ruling.

        Raises:
            ClientDisconnected: the audience has left.
        """
        while True:
            ruling = self._try(self._way.left[0])
            self.rulings.append(ruling)
            self.reasons.extend(ruling.reasons)
            if self._audience is not None and self._is_binding and ruling.action is not Action.ANSWER:
                self._audience.shown.withdraw(_withdrawn(self.attempts[-1], ruling))
            if ruling.action is not Action.RETRY or not self._is_binding:
                return ruling
            self._way = self._way.after_retry(AttemptSummary.of(self.attempts[-1]), ruling.to)

    def _deadline_after(self, since: float) -> Deadline | None:
        budget, cancel_token = self._policy.budget, None if self._audience is None else self._audience.cancel_token
        # In shadow mode everything is as it was before the guard: the slowest answer too.
        max_seconds = None if budget is None or not self._is_binding else budget.max_seconds
        if max_seconds is None and cancel_token is None:
            return None
        return Deadline.after(max_seconds, since=since, cancel_token=cancel_token)

    def _try(self, name: str) -> Ruling:
        """One tier's attempt, and what the policy says to it."""
        asked = Asking(
            self._tiers[name],
            self._callers[name],
            self.request,
            at_prompt=self._at_prompt if self._policy.prompt_rules else None,
            is_binding=self._is_binding,
            deadline=self._deadline,
            since=self._since,
            follower=self._follower(self._tiers[name]),
        ).ask()
        self._since = time.monotonic()
        if self._audience is not None:
            self._audience.shown.close()
        self._log(asked)
        if asked.sent:
            self.request = replace(self.request, messages=asked.sent)
        attempt, prompt = asked.attempt, asked.prompt
        self.attempts.append(attempt)
        if prompt.ruling is None:
            self.reasons.extend(prompt.reasons)
        if attempt.error:
            self.reasons.append(f"tier {name!r} failed: {attempt.error}")
        if attempt.stopped_at is not None:
            why = f"for {PATIENCE} tokens in a row, no rule could have answered"
            self.reasons.append(f"tier {name!r} was {cut_after(attempt.stopped_at)}: {why}")
        facts = AttemptSummary.of(attempt)
        goes_on = prompt.ruling is not None and prompt.ruling.action is Action.RETRY
        if len(self._way.left) > 1 and not goes_on and (spent := self._way.spent(facts)):
            self.reasons.append(f"no larger tier is left: {spent}")
        # What a rule said at the prompt stands, even where the model that it spared fails afterwards.
        return prompt.ruling or self._way.at_answer(facts, answer_blocked_by=prompt.answer_blocked_by)

    def _follower(self, tier: Tier) -> EarlyStopper | None:
        """Who follows the tier's answer; None where it comes whole."""
        audience = self._audience
        if audience is None or audience.mode == "hold" or not isinstance(tier.model, StepwiseModel):
            return None
        shows = audience.mode == "optimistic"
        if shows and audience.shown.is_withdrawn:
            return None
        if not self._is_binding:
            return EarlyStopper(may_answer=None, showing=audience.shown.begin()) if shows else None
        # Of a tier without a bundle nothing is ever answered: there is nothing to show, and nothing to go by.
        if tier.scorer is None:
            return None
        return EarlyStopper(may_answer=self._may_answer, showing=audience.shown.begin() if shows else None)

    def _may_answer(self, so_far: Attempt, prompt: PromptRuling) -> bool:
        return self._way.may_answer(AttemptSummary.of(so_far), answer_blocked_by=prompt.answer_blocked_by)

    def _at_prompt(self, attempt: Attempt) -> PromptRuling:
        return self._way.at_prompt(AttemptSummary.of(attempt))

    def _log(self, asked: Asked) -> None:
        attempt = asked.attempt
        told = {
            "decision": self._decision,
            "tier": attempt.tier,
            "attempt": len(self.attempts) + 1,
            "seconds": attempt.seconds,
        }
        if asked.logged:
            events.log().warning(events.ATTEMPT_FAILED, error=asked.logged, **told)
        else:
            events.log().info(
                events.ATTEMPT_FINISHED,
                stage=attempt.stage,
                uncertainty=attempt.uncertainty,
                typicality=attempt.typicality,
                tokens=attempt.tokens,
                stopped_at=attempt.stopped_at,
                **told,
            )


def _withdrawn(attempt: Attempt, ruling: Ruling) -> str:
    if attempt.stopped_at is not None:
        return f"the answer was {cut_after(attempt.stopped_at)}: no rule could have given it any more"
    if attempt.error:
        return "the attempt failed"
    return f"the policy doesn't give this answer: {ruling.action.value}"
