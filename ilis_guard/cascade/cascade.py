"""The cascade: try tiers from small to large until a rule ends the request, and carry out the ruling."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from tenacity.wait import wait_base

from ilis_guard import events
from ilis_guard.cascade.attempt import AttemptResult, AttemptRunner
from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.cascade.early_stop import EarlyStopper
from ilis_guard.cascade.escalation import Escalation, Escalator, Review
from ilis_guard.cascade.shadow import shadow_ruling
from ilis_guard.cascade.stream import RetractionReason, StreamWriter
from ilis_guard.cascade.tier import Check, Tier
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.errors import ClientDisconnected, ConfigError
from ilis_guard.models import Model, StepwiseModel
from ilis_guard.models.base import UnavailableModel
from ilis_guard.policy.binding import ActivePolicies, BoundPolicy
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.types import Action, Attempt, Decision, PromptRuling, Request, Ruling, ShadowRuling, is_blank


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """Decides requests, whichever policies are active for each."""

    tiers: tuple[Tier, ...]
    """From small to large."""
    callers: Mapping[str, ModelCaller]
    """By tier. They keep state from one request to the next."""
    review: Review | None
    """Where escalated requests go."""
    log_texts: bool
    """Whether log events may carry prompts and answers."""
    clock: Callable[[], float]
    """Seconds, monotonic."""

    @classmethod
    def of(
        cls,
        tiers: Sequence[Tier],
        *,
        review: Review | None,
        log_texts: bool,
        backoff: wait_base,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Build a cascade with new callers of the tiers' models."""
        callers = {
            tier.name: ModelCaller(
                tier.name,
                max_concurrent=tier.max_concurrent,
                breaker=tier.breaker,
                backoff=backoff,
                clock=clock,
            )
            for tier in tiers
        }
        _warn_of_unscored(tiers)
        return cls(tiers=tuple(tiers), callers=callers, review=review, log_texts=log_texts, clock=clock)

    def with_model(self, name: str, model: Model, check: Check | None) -> Self:
        """Replace a tier's model; see `Guard.with_model`."""
        if name not in self.callers:
            raise ConfigError(f"there is no tier {name!r}; there are {list(self.callers)!r}")
        tiers = [tier.with_model(model) if tier.name == name else tier for tier in self.tiers]
        _warn_of_unscored([tier for tier in tiers if tier.name == name])
        return replace(
            self,
            tiers=tuple(replace(tier, check=check) for tier in tiers),
            callers={**self.callers, name: self.callers[name].for_other_model()},
        )

    def without_models(self, why: str) -> Self:
        """Make all tiers fail; see `Guard.without_models`."""
        return replace(
            self,
            tiers=tuple(replace(tier, model=UnavailableModel(why), prompt_scorer=None) for tier in self.tiers),
            # Models that aren't called need no limiter and no circuit breaker.
            callers={tier.name: ModelCaller(tier.name) for tier in self.tiers},
        )

    def decide(
        self, request: Request, active: ActivePolicies, *, decision: str, since: float, writer: StreamWriter | None
    ) -> Decision:
        """Try the tiers, and carry out the last ruling.

        Args:
            request: the request.
            active: the policies for it.
            decision: its id.
            since: when the request came, on the clock.
            writer: writes the stream; None without one.

        Raises:
            ClientDisconnected: the stream's reader has disconnected; there is no decision, and no ticket.
        """
        policy = active.enforced.policy
        run = CascadeRun(cascade=self, bound=active.enforced, decision=decision, since=since, writer=writer)
        try:
            result = run.run(request)
            if writer is not None:
                writer.wait_for_reader()
        except ClientDisconnected:
            events.log().info(events.STREAM_ABANDONED, decision=decision, seconds=self.clock() - since)
            raise
        outcome = _unruled(result) if policy.mode == "shadow" else self._carry_out(result, active.enforced, decision)
        made = Decision(
            id=decision,
            action=outcome.action,
            text=outcome.text,
            uncertainty=result.attempts[-1].uncertainty,
            rulings=() if policy.mode == "shadow" else result.rulings,
            attempts=result.attempts,
            policy=policy.fingerprint,
            labels=result.request.labels,
            prompt_length=len(result.request.prompt),
            mode=policy.mode,
            thresholds=active.enforced.thresholds,
            bundles={tier.name: tier.bundle.digest for tier in self.tiers if tier.bundle is not None},
            # A ticket comes first: a policy in shadow delays nobody's escalation.
            shadow=self._shadow(result, active, decision),
            ticket=outcome.escalation.ticket,
            ticket_error=outcome.escalation.error,
        )
        self._log(request, made, self.clock() - since)
        return made

    def _carry_out(self, result: "CascadeResult", bound: BoundPolicy, decision: str) -> "_Outcome":
        """Give the answer or escalate the request, as the policy rules, and audit answers."""
        ruling, escalation = result.ruling, Escalation()
        if self.review is not None and ruling.action in (Action.ANSWER, Action.ESCALATE):
            escalator = Escalator(
                review=self.review,
                policy=bound.policy,
                decision=decision,
                request=result.request,
                attempts=result.attempts,
                rulings=result.rulings,
            )
            escalation = escalator.audit() if ruling.action is Action.ANSWER else escalator.escalate()
        if ruling.action is Action.ANSWER:
            return _Outcome(action=Action.ANSWER, text=result.attempts[-1].text, escalation=escalation)
        if ruling.action is Action.ESCALATE and escalation.ticket is None:
            # The policy's message may promise a reviewer.
            return _Outcome(action=Action.ABSTAIN, text="", escalation=escalation)
        return _Outcome(action=ruling.action, text=ruling.say, escalation=escalation)

    def _shadow(self, result: "CascadeResult", active: ActivePolicies, decision: str) -> ShadowRuling | None:
        """The ruling of the shadow policy, or of the active policy in the mode `shadow`; None where there is none."""
        if active.enforced.policy.mode == "shadow":
            ruling = result.ruling
            return ShadowRuling(
                policy=active.enforced.policy.fingerprint,
                action=ruling.action,
                rule=ruling.rule,
                rulings=result.rulings,
            )
        if active.shadow is None:
            return None
        tiers = [tier.name for tier in self.tiers]
        return shadow_ruling(active.shadow, result.request, tiers, result.attempts, decision=decision)

    def _log(self, request: Request, decision: Decision, seconds: float) -> None:
        texts = {"prompt": request.prompt, "text": decision.text} if self.log_texts else {}
        shadow = decision.shadow
        events.log().info(
            events.DECISION_MADE,
            decision=decision.id,
            action=decision.action.value,
            rule=decision.rule,
            tier=decision.attempts[-1].tier,
            uncertainty=decision.uncertainty,
            attempts=len(decision.attempts),
            ticket=None if decision.ticket is None else decision.ticket.id,
            seconds=seconds,
            cost=decision.cost,
            mode=decision.mode,
            policy=decision.policy,
            thresholds=dict(decision.thresholds),
            bundles=dict(decision.bundles),
            shadow=None if shadow is None else {"policy": shadow.policy, "action": shadow.action, "rule": shadow.rule},
            **texts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeResult:
    """A request's attempts and the rulings on them."""

    request: Request
    """The one that the last model was sent: a chain makes its own prompt, and larger tiers and tickets get that one."""
    attempts: tuple[Attempt, ...] = ()
    rulings: tuple[Ruling, ...] = ()
    """One an attempt."""

    @property
    def ruling(self) -> Ruling:
        """The last one, which isn't a retry; in shadow mode the first tier's."""
        return self.rulings[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """The end of a request, as the decision has it."""

    action: Action
    text: str
    escalation: Escalation = Escalation()  # noqa: RUF009 - it is frozen


def _unruled(result: CascadeResult) -> _Outcome:
    """The outcome without a policy: any answer is given."""
    text = result.attempts[-1].text
    return _Outcome(action=Action.ABSTAIN, text="") if is_blank(text) else _Outcome(action=Action.ANSWER, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeRun:
    """One request in the cascade."""

    cascade: Cascade
    bound: BoundPolicy
    """The active policy."""
    decision: str
    """The decision's id, which is also the sampling key."""
    since: float
    """When the request came, on the cascade's clock."""
    writer: StreamWriter | None

    def run(self, request: Request) -> CascadeResult:
        """Try one tier after the other until no rule retries; in shadow mode, only the first.

        Raises:
            ClientDisconnected: the stream's reader has disconnected.
        """
        tiers = {tier.name: tier for tier in self.cascade.tiers}
        state = self.bound.initial_state(request, tuple(tiers), sampling_key=self.decision)
        result, since, deadline = CascadeResult(request=request), self.since, self._deadline()
        while True:
            made = self._attempt(tiers[state.tiers[0]], result.request, state, deadline, since)
            since = self.cascade.clock()
            if made.sent:
                result = replace(result, request=replace(result.request, messages=made.sent))
                state = replace(state, prompt_length=len(result.request.prompt))
            self._log(made, number=len(result.attempts) + 1)
            ruling = self._rule(made, state)
            result = replace(result, attempts=(*result.attempts, made.attempt), rulings=(*result.rulings, ruling))
            if self.writer is not None and self._is_binding and ruling.action is not Action.ANSWER:
                self.writer.retract(_retraction_reason(made.attempt))
            if ruling.action is not Action.RETRY or not self._is_binding:
                return result
            state = state.after_retry(AttemptSummary.of(made.attempt), ruling.to)

    @property
    def _is_binding(self) -> bool:
        return self.bound.policy.mode == "enforce"

    def _deadline(self) -> Deadline | None:
        budget, token = self.bound.policy.budget, None if self.writer is None else self.writer.cancel_token
        # In shadow mode the answer is given as without a guard, however slow it is.
        max_seconds = None if budget is None or not self._is_binding else budget.max_seconds
        if max_seconds is None and token is None:
            return None
        return Deadline.after(max_seconds, since=self.since, cancel_token=token, clock=self.cascade.clock)

    def _attempt(
        self, tier: Tier, request: Request, state: CascadeState, deadline: Deadline | None, since: float
    ) -> AttemptResult:
        made = AttemptRunner(
            tier,
            self.cascade.callers[tier.name],
            request,
            evaluate_prompt=(
                (lambda attempt: state.evaluate_prompt(AttemptSummary.of(attempt)))
                if state.policy.prompt_rules
                else None
            ),
            is_binding=self._is_binding,
            deadline=deadline,
            since=since,
            clock=self.cascade.clock,
            stopper=self._stopper(tier, state),
        ).run()
        if self.writer is not None:
            self.writer.close_attempt()
        return made

    @staticmethod
    def _rule(made: AttemptResult, state: CascadeState) -> Ruling:
        """The policy's ruling on an attempt. A ruling on the prompt stands, even if the model failed afterwards."""
        if made.prompt.ruling is not None:
            ruling, outcomes = made.prompt.ruling, made.prompt.ruling.outcomes
        else:
            ruling = state.evaluate_answer(
                AttemptSummary.of(made.attempt), answer_blocked_by=made.prompt.answer_blocked_by
            )
            outcomes = (*made.prompt.outcomes, *ruling.outcomes)
        may_retry = len(state.tiers) > 1 and ruling.action is not Action.RETRY
        spent = state.spent_budget(AttemptSummary.of(made.attempt)) if may_retry else None
        return replace(ruling, outcomes=outcomes, spent=spent)

    def _stopper(self, tier: Tier, state: CascadeState) -> EarlyStopper | None:
        """The early stopper of the tier's answer; None where the answer comes whole."""
        writer = self.writer
        if writer is None or writer.mode == "hold" or not isinstance(tier.model, StepwiseModel):
            return None
        is_shown = writer.mode == "optimistic"
        if is_shown and writer.is_retracted:
            return None
        if not self._is_binding:
            return EarlyStopper(may_answer=None, writer=writer.open_attempt()) if is_shown else None
        # A tier without a bundle has no scores, so none of its answers is given or shown.
        if tier.scorer is None:
            return None

        def may_answer(so_far: Attempt, prompt: PromptRuling) -> bool:
            return state.may_answer(AttemptSummary.of(so_far), answer_blocked_by=prompt.answer_blocked_by)

        return EarlyStopper(may_answer=may_answer, writer=writer.open_attempt() if is_shown else None)

    def _log(self, made: AttemptResult, *, number: int) -> None:
        attempt = made.attempt
        fields = {
            "decision": self.decision,
            "tier": attempt.tier,
            "attempt": number,
            "seconds": attempt.seconds,
        }
        if made.log_detail:
            events.log().warning(events.ATTEMPT_FAILED, error=made.log_detail, **fields)
        else:
            events.log().info(
                events.ATTEMPT_FINISHED,
                stage=attempt.stage,
                uncertainty=attempt.uncertainty,
                typicality=attempt.typicality,
                tokens=attempt.tokens,
                stopped_at=attempt.stopped_at,
                **fields,
            )


def _retraction_reason(attempt: Attempt) -> RetractionReason:
    if attempt.stopped_at is not None:
        return "stopped_early"
    return "not_answered" if attempt.error is None else "attempt_failed"


def _warn_of_unscored(tiers: Sequence[Tier]) -> None:
    for tier in tiers:
        if tier.scorer is None:
            events.log().warning(events.TIER_UNSCORED, tier=tier.name)
