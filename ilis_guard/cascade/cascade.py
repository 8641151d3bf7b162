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
from ilis_guard.cascade.escalation import Escalation, Escalator, Review, TransactionalReview
from ilis_guard.cascade.settlement import Settlement
from ilis_guard.cascade.shadow import shadow_ruling
from ilis_guard.cascade.stream import RetractionReason, StreamWriter
from ilis_guard.cascade.tier import Check, Tier
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.errors import ClientDisconnected, ConfigError, DecisionRecordedError, ReviewError, TicketPendingError
from ilis_guard.models import Model, StepwiseModel
from ilis_guard.models.base import UnavailableModel
from ilis_guard.policy.binding import ActivePolicies, BoundPolicy
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.text import is_blank
from ilis_guard.types import (
    STAGES,
    Action,
    Attempt,
    Decision,
    DecisionRecord,
    ErrorInfo,
    Mode,
    PromptRuling,
    Request,
    Ruling,
    ShadowRuling,
)


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
        _warn_of_scores(tiers)
        return cls(tiers=tuple(tiers), callers=callers, review=review, log_texts=log_texts, clock=clock)

    def with_model(self, name: str, model: Model, check: Check | None) -> Self:
        """Replace a tier's model; see `Guard.with_model`."""
        if name not in self.callers:
            raise ConfigError(f"there is no tier {name!r}; there are {list(self.callers)!r}")
        tiers = [tier.with_model(model) if tier.name == name else tier for tier in self.tiers]
        _warn_of_scores([tier for tier in tiers if tier.name == name])
        return replace(
            self,
            tiers=tuple(replace(tier, check=check) for tier in tiers),
            callers={**self.callers, name: self.callers[name].for_other_model()},
        )

    def without_models(self, why: str) -> Self:
        """Make all tiers fail; see `Guard.without_models`."""
        return replace(
            self,
            tiers=tuple(
                replace(tier, model=UnavailableModel(why), prompt_scorer=None, profile=None) for tier in self.tiers
            ),
            # Models that aren't called need no limiter and no circuit breaker.
            callers={tier.name: ModelCaller(tier.name) for tier in self.tiers},
        )

    def decide(
        self,
        request: Request,
        active: ActivePolicies,
        *,
        decision: str,
        since: float,
        settlement: Settlement | None,
        writer: StreamWriter | None = None,
        digest: str | None = None,
    ) -> Decision:
        """Try the tiers, and carry out the last ruling.

        Nothing can fail once the decision is committed: all of it was made before.

        Args:
            request: the request.
            active: the policies for it.
            decision: its id.
            since: when the request came, on the clock.
            settlement: the request's; None where it can't be given up.
            writer: writes the stream; None without one.
            digest: of the caller's request, where the caller gave the id: then the queue keeps the decision under it.

        Raises:
            ClientDisconnected: the request was given up; there is no decision, and no ticket.
            DecisionRecordedError: another process has recorded a decision under this id.
            RequestConflictError: the id belongs to another request.
        """
        run = CascadeRun(
            cascade=self, bound=active.enforced, decision=decision, since=since, settlement=settlement, writer=writer
        )
        try:
            result = run.run(request)
            if writer is not None:
                writer.wait_for_reader()
            made = self._settle(self._make(result, active, decision), result, active.enforced, settlement, digest)
        except ClientDisconnected:
            events.log().info(events.STREAM_ABANDONED, decision=decision, seconds=self.clock() - since)
            raise
        self._log(request, made, self.clock() - since)
        return made

    def _make(self, result: "CascadeResult", active: ActivePolicies, decision: str) -> Decision:
        """Make the decision, without its ticket."""
        policy, ruling, text = active.enforced.policy, result.ruling, result.attempts[-1].text
        if result.mode == "shadow":  # as without a policy: any answer is given
            action, text = (Action.ABSTAIN, "") if is_blank(text) else (Action.ANSWER, text)
        else:
            action, text = ruling.action, text if ruling.action is Action.ANSWER else ruling.say
        return Decision(
            id=decision,
            action=action,
            text=text,
            uncertainty=result.attempts[-1].uncertainty,
            rulings=() if result.mode == "shadow" else result.rulings,
            attempts=result.attempts,
            policy=policy.fingerprint,
            labels=result.request.labels,
            prompt_length=len(result.request.prompt),
            mode=result.mode,
            thresholds=active.enforced.thresholds,
            bundles={tier.name: tier.bundle.digest for tier in self.tiers if tier.bundle is not None},
            shadow=self._shadow(result, active, decision),
        )

    def _settle(
        self,
        made: Decision,
        result: "CascadeResult",
        bound: BoundPolicy,
        settlement: Settlement | None,
        digest: str | None,
    ) -> Decision:
        """Store what belongs to a decision: its ticket, and itself where its caller gave it an id."""
        store = self._store_of_ticket(made, result, bound)
        pending = ErrorInfo.of(TicketPendingError("the time was over while the ticket was being stored"))
        if settlement is not None:
            settlement.begin(made if store is None else _with_ticket(made, Escalation(error=pending)))
        commit = _commit_nothing if settlement is None else settlement.commit
        keeps = digest is not None and isinstance(self.review, TransactionalReview)
        record = DecisionRecord(id=made.id, digest=digest, values=made.to_dict()) if digest and keeps else None
        if store is not None:
            return _with_ticket(made, store(record, commit))
        if record is not None:
            self._record(record, commit)
        commit()
        return made

    def _store_of_ticket(self, made: Decision, result: "CascadeResult", bound: BoundPolicy) -> "_StoreTicket | None":
        """What stores the decision's ticket; None where it has none."""
        if made.mode == "shadow" or made.action not in (Action.ANSWER, Action.ESCALATE):
            return None
        if self.review is None:
            return _store_nowhere if made.action is Action.ESCALATE else None
        escalator = Escalator(
            review=self.review,
            policy=bound.policy,
            decision=made.id,
            request=result.request,
            attempts=result.attempts,
            rulings=result.rulings,
        )
        if made.action is Action.ESCALATE:
            return escalator.escalate
        return escalator.audit if escalator.audits else None

    def _record(self, record: DecisionRecord, commit: Callable[[], None]) -> None:
        """Keep a decision without a ticket under its id; it is given even where that fails."""
        assert isinstance(self.review, TransactionalReview), "there is a record only for one"
        try:
            self.review.record_decision(record, before_commit=commit)
        except DecisionRecordedError:
            raise
        except ReviewError as error:
            events.log().error(events.DECISION_NOT_RECORDED, decision=record.id, error=type(error).__name__)

    def _shadow(self, result: "CascadeResult", active: ActivePolicies, decision: str) -> ShadowRuling | None:
        """The ruling of the shadow policy, or of the active policy in the mode `shadow`; None where there is none."""
        if result.mode == "shadow":
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
            calibrated=decision.calibrated,
            rank=decision.rank,
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
    mode: Mode = "enforce"
    """`shadow` where the last ruling is only recorded."""

    @property
    def ruling(self) -> Ruling:
        """The last one, which isn't a retry; in shadow mode the first tier's."""
        return self.rulings[-1]


_StoreTicket = Callable[[DecisionRecord | None, Callable[[], None]], Escalation]
"""Stores a ticket, as `Escalator.escalate` does."""


def _with_ticket(made: Decision, escalation: Escalation) -> Decision:
    """Add a ticket to a decision, or why there is none: then the policy's message, which may promise one, goes."""
    if made.action is Action.ESCALATE and escalation.ticket is None:
        return replace(made, action=Action.ABSTAIN, text="", ticket_error=escalation.error)
    return replace(made, ticket=escalation.ticket, ticket_error=escalation.error)


def _store_nowhere(decision_record: DecisionRecord | None, before_commit: Callable[[], None]) -> Escalation:
    del decision_record
    before_commit()
    return Escalation()


def _commit_nothing() -> None:
    """The request can't be given up."""


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
    settlement: Settlement | None
    writer: StreamWriter | None

    def run(self, request: Request) -> CascadeResult:
        """Try one tier after the other until no rule retries; in shadow mode, only the first.

        Raises:
            ClientDisconnected: the request was given up.
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
            mode = self._mode(made, ruling, state)
            result = replace(
                result, attempts=(*result.attempts, made.attempt), rulings=(*result.rulings, ruling), mode=mode
            )
            if self.writer is not None and mode == "enforce" and ruling.action is not Action.ANSWER:
                self.writer.retract(_retraction_reason(made.attempt))
            if ruling.action is not Action.RETRY or mode == "shadow":
                return result
            state = state.after_retry(AttemptSummary.of(made.attempt), ruling.to)

    def _mode(self, made: AttemptResult, ruling: Ruling, state: CascadeState) -> Mode:
        """Whether a ruling is carried out, or only recorded."""
        if not self._is_binding:
            return "shadow"
        if ruling.action is Action.ANSWER or made.prompt.ruling is not None:
            return "enforce"
        newest = AttemptSummary.of(made.attempt)
        return "shadow" if state.is_shadowed(newest, answer_blocked_by=made.prompt.answer_blocked_by) else "enforce"

    @property
    def _is_binding(self) -> bool:
        return self.bound.policy.mode == "enforce"

    def _deadline(self) -> Deadline | None:
        budget, token = self.bound.policy.budget, None if self.settlement is None else self.settlement.cancel_token
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
        # None of its answers is given or shown.
        if not tier.scores_answers:
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
                rank=attempt.rank,
                departures=list(attempt.departures),
                tokens=attempt.tokens,
                stopped_at=attempt.stopped_at,
                **fields,
            )


def _retraction_reason(attempt: Attempt) -> RetractionReason:
    if attempt.stopped_at is not None:
        return "stopped_early"
    return "not_answered" if attempt.error is None else "attempt_failed"


def _warn_of_scores(tiers: Sequence[Tier]) -> None:
    """Name the tiers without scores, and those whose scores are calibrated for no request."""
    for tier in tiers:
        if not tier.scores_answers:
            events.log().warning(events.TIER_UNSCORED, tier=tier.name)
        for stage in STAGES:
            if departures := tier.departures(stage):
                events.log().warning(events.TIER_UNCALIBRATED, tier=tier.name, stage=stage, departures=list(departures))
