"""A request decided: walked through the tiers, ruled on, put before people where the policy wants that, and told."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from tenacity.wait import wait_base

from ilis_guard import events
from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.cascade.cascade import Walk
from ilis_guard.cascade.escalation import Review, Tickets
from ilis_guard.cascade.outcome import Outcome, as_before, as_ruled
from ilis_guard.cascade.shadow import looked_on
from ilis_guard.cascade.stream import Audience
from ilis_guard.cascade.tier import Check, Tier
from ilis_guard.errors import ClientDisconnected, ConfigError
from ilis_guard.models import Model
from ilis_guard.models.unavailable import UnavailableModel
from ilis_guard.policy import Ruling
from ilis_guard.policy.binding import ActivePolicies
from ilis_guard.types import Decision, Request, ShadowRuling


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """What decides requests, whichever policy is in force for each."""

    tiers: tuple[Tier, ...]
    """From small to large."""
    callers: Mapping[str, ModelCaller]
    """Of the tiers' models, by tier: what is kept from one request to the next."""
    review: Review | None
    """Where escalated requests go."""
    log_texts: bool
    """Whether log events may carry prompts and answers."""

    @classmethod
    def of(cls, tiers: Sequence[Tier], *, review: Review | None, log_texts: bool, backoff: wait_base) -> Self:
        """One whose tiers nobody has asked yet."""
        callers = {
            tier.name: ModelCaller(tier.name, max_concurrent=tier.max_concurrent, breaker=tier.breaker, backoff=backoff)
            for tier in tiers
        }
        _warn_of_unscored(tiers)
        return cls(tiers=tuple(tiers), callers=callers, review=review, log_texts=log_texts)

    def with_model(self, name: str, model: Model, check: Check | None) -> Self:
        """With another model in a tier's place; see `Guard.with_model`."""
        if name not in self.callers:
            raise ConfigError(f"there is no tier {name!r}; there are {list(self.callers)!r}")
        tiers = [tier.with_model(model) if tier.name == name else tier for tier in self.tiers]
        _warn_of_unscored([tier for tier in tiers if tier.name == name])
        return replace(
            self,
            tiers=tuple(replace(tier, check=check) for tier in tiers),
            callers={**self.callers, name: self.callers[name].anew()},
        )

    def without_models(self, why: str) -> Self:
        """With tiers that all fail; see `Guard.without_models`."""
        return replace(
            self,
            tiers=tuple(replace(tier, model=UnavailableModel(why), prompt_scorer=None) for tier in self.tiers),
            # Nobody waits in line for a model that isn't asked.
            callers={tier.name: ModelCaller(tier.name) for tier in self.tiers},
        )

    def decide(
        self,
        request: Request,
        in_force: ActivePolicies,
        *,
        decision: str,
        since: float,
        audience: Audience | None = None,
    ) -> Decision:
        """Walk the request through the tiers, and see to what comes of it.

        Args:
            request: what is asked.
            in_force: the policies for it.
            decision: its id.
            since: when the request came, on the clock of `time.monotonic`.
            audience: who reads the answer while it comes; None for nobody.

        Raises:
            ClientDisconnected: the audience has left; there is no decision, and no ticket.
        """
        policy = in_force.enforced.policy
        walk = Walk(
            request, self.tiers, self.callers, in_force.enforced, decision=decision, since=since, audience=audience
        )
        ruling = _ruling(walk, audience, decision=decision, since=since)
        outcome = self._outcome(walk, ruling, in_force, decision)
        made = Decision(
            id=decision,
            action=outcome.action,
            text=outcome.text,
            uncertainty=walk.attempts[-1].uncertainty,
            rules=outcome.rules,
            reasons=outcome.reasons,
            attempts=tuple(walk.attempts),
            policy=policy.fingerprint,
            labels=request.labels,
            prompt_length=len(request.prompt),
            mode=policy.mode,
            thresholds=in_force.enforced.thresholds,
            bundles={tier.name: tier.bundle.digest for tier in self.tiers if tier.bundle is not None},
            shadow=outcome.shadow or self._looked_on(request, walk, in_force, decision),
            ticket=outcome.ticket,
        )
        self._log(request, made, time.monotonic() - since)
        return made

    def _outcome(self, walk: Walk, ruling: Ruling, in_force: ActivePolicies, decision: str) -> Outcome:
        policy = in_force.enforced.policy
        if policy.mode == "shadow":
            return as_before(walk, ruling, policy)
        if self.review is None:
            return as_ruled(walk, ruling, None)
        tickets = Tickets(
            self.review,
            policy,
            decision=decision,
            request=walk.request,
            attempts=walk.attempts,
            reasons=walk.reasons,
        )
        return as_ruled(walk, ruling, tickets)

    def _looked_on(self, request: Request, walk: Walk, in_force: ActivePolicies, decision: str) -> ShadowRuling | None:
        """What guard.yaml's `shadow` says, once everything is done."""
        if in_force.shadow is None:
            return None
        return looked_on(in_force.shadow, request, [tier.name for tier in self.tiers], walk.attempts, decision=decision)

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


def _ruling(walk: Walk, audience: Audience | None, *, decision: str, since: float) -> Ruling:
    """The walk's last ruling, unless nobody waits for it any more."""
    try:
        ruling = walk.run()
        if audience is not None:
            audience.catch_up()
    except ClientDisconnected:
        events.log().info(events.STREAM_LEFT, decision=decision, seconds=time.monotonic() - since)
        raise
    return ruling


def _warn_of_unscored(tiers: Sequence[Tier]) -> None:
    for tier in tiers:
        if tier.scorer is None:
            events.log().warning(events.TIER_UNSCORED, tier=tier.name)
