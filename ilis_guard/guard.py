"""The guard: a request in, a decision out."""

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import tenacity
from tenacity.wait import wait_base

from ilis_guard import events
from ilis_guard.config import GuardConfig, read_config
from ilis_guard.errors import ConfigError
from ilis_guard.models.weights import Progress
from ilis_guard.policy import DEFAULT_QUEUE, Policy, Ruling
from ilis_guard.tiers import Tier, load_tier
from ilis_guard.types import Action, Attempt, Decision, Labels, Message, Request, Ticket
from ilis_guard.walk import Walk

CALLS_PER_ATTEMPT: Final = 3
"""A tier whose model fails in passing is called so often before the attempt counts as failed."""
BACKOFF: Final = tenacity.wait_exponential_jitter(multiplier=0.5, max=8)
"""Seconds between these calls."""


class Review(Protocol):
    """Where escalated requests go."""

    def escalate(
        self,
        *,
        decision: str,
        request: Request,
        attempts: Sequence[Attempt],
        queue: str,
        policy: str,
        rule: str | None,
        reasons: Sequence[str],
        say: str = "",
    ) -> Ticket:
        """Store a ticket; returns when it is safe."""

    def close(self) -> None:
        """Let go of the storage."""


class Guard:
    """Decides what to do with a model's answer.

    A guard holds no state between requests, and threads may share it.

    Args:
        tiers: from small to large; the first one answers first.
        policy: what decides.
        review: where escalated requests go; needed if the policy escalates.
        log_texts: whether log events may carry prompts and answers.
        backoff: tenacity's wait between calls of a model that failed in passing.

    Raises:
        ConfigError: the policy names a tier that doesn't exist, or escalates and there is no queue.
    """

    def __init__(
        self,
        *,
        tiers: Sequence[Tier],
        policy: Policy,
        review: Review | None = None,
        log_texts: bool = False,
        backoff: wait_base = BACKOFF,
    ) -> None:
        self.policy = policy
        self._tiers = tuple(tiers)
        self._review = review
        self._log_texts = log_texts
        self._calls = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: bool(getattr(error, "is_retryable", False))),
            stop=tenacity.stop_after_attempt(CALLS_PER_ATTEMPT),
            wait=backoff,
            reraise=True,
        )
        scored = [tier.name for tier in tiers if tier.prompt_scorer is not None]
        check_wiring(policy, [tier.name for tier in tiers], prompts_scored_by=scored, has_queue=review is not None)
        for tier in tiers:
            if tier.scorer is None:
                events.log().warning(events.TIER_UNSCORED, tier=tier.name)

    @classmethod
    def from_config(cls, path: str | Path, progress: Progress | None = None) -> Self:
        """Build a guard from ``guard.yaml``: load its models and bundles, its policy and its queue.

        Args:
            path: the file.
            progress: told of the steps where packaged weights are converted first.

        Raises:
            ConfigError: the file is wrong, or doesn't go with its policy.
            PolicyError: the policy is wrong.
            ModelError: a model can't be loaded.
            BundleError: a bundle can't be read, or was fitted to another model.
            ReviewError: the queue's storage can't be used.
        """
        config = read_config(path)
        # What is quick to check comes before models are loaded.
        policy = Policy.load(config.policy)
        check_config(policy, config)
        review = None if config.review is None else config.review.open()
        tiers = [load_tier(tier, progress) for tier in config.tiers]
        return cls(tiers=tiers, policy=policy, review=review, log_texts=config.log_texts)

    def decide(self, prompt: str | Sequence[Message | Mapping[str, str]], *, labels: Labels | None = None) -> Decision:
        """Ask, score, and decide.

        Whatever goes wrong with a model, a score or the queue ends as a decision that isn't an answer, with its
        reason; an escalation is returned only after its ticket is committed.

        Args:
            prompt: a question, or a conversation that ends with the user's turn.
            labels: what the policy's conditions see as ``labels.NAME``.

        Raises:
            RequestError: the prompt or the labels can't be used.
        """
        return self._decide(Request.of(prompt, labels))

    async def adecide(
        self, prompt: str | Sequence[Message | Mapping[str, str]], *, labels: Labels | None = None
    ) -> Decision:
        """As `decide`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self._decide, Request.of(prompt, labels))

    def close(self) -> None:
        """Let go of the queue's storage."""
        if self._review is not None:
            self._review.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decide(self, request: Request) -> Decision:
        started = time.perf_counter()
        decision = uuid.uuid4().hex
        walk = Walk(request, self._tiers, self.policy, decision=decision, calls=self._calls)
        ruling = walk.run()
        action, ticket, text = ruling.action, None, ruling.say
        if action is Action.ANSWER:
            text = walk.attempts[-1].text
        elif action is Action.ESCALATE:
            ticket = self._escalate(request, decision, ruling, walk)
            if ticket is None:
                # What the policy would have said may promise a reviewer.
                action, text = Action.ABSTAIN, ""
        made = Decision(
            id=decision,
            action=action,
            text=text,
            uncertainty=walk.attempts[-1].uncertainty,
            rules=tuple(ruling.rule for ruling in walk.rulings),
            reasons=tuple(walk.reasons),
            attempts=tuple(walk.attempts),
            policy=self.policy.fingerprint,
            ticket=ticket,
        )
        self._log_decision(request, made, time.perf_counter() - started)
        return made

    def _escalate(self, request: Request, decision: str, ruling: Ruling, walk: Walk) -> Ticket | None:
        """Store a ticket; None where it can't be stored, with the reason added."""
        assert self._review is not None, "check_wiring refuses a policy that escalates without a queue"
        try:
            return self._review.escalate(
                decision=decision,
                request=request,
                attempts=walk.attempts,
                queue=ruling.to or DEFAULT_QUEUE,
                policy=self.policy.fingerprint,
                rule=ruling.rule,
                reasons=walk.reasons,
                say=ruling.say,
            )
        except Exception as error:  # noqa: BLE001 - fail closed: a request that can't wait safely is no answer either
            walk.reasons.append(f"abstained: the ticket couldn't be stored: {type(error).__name__}: {error}")
            events.log().error(events.ESCALATION_FAILED, decision=decision, queue=ruling.to, error=type(error).__name__)
            return None

    def _log_decision(self, request: Request, decision: Decision, seconds: float) -> None:
        texts = {"prompt": request.prompt, "text": decision.text} if self._log_texts else {}
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
            **texts,
        )


def check_config(policy: Policy, config: GuardConfig) -> None:
    """See that a policy goes with a guard.yaml, before its models are loaded.

    Raises:
        ConfigError: as `check_wiring`.
    """
    scored = [tier.name for tier in config.tiers if tier.prompt_bundle is not None]
    has_queue = config.review is not None
    check_wiring(policy, [tier.name for tier in config.tiers], prompts_scored_by=scored, has_queue=has_queue)


def check_wiring(policy: Policy, tiers: Sequence[str], *, prompts_scored_by: Sequence[str], has_queue: bool) -> None:
    """See that there is what a policy asks for.

    Args:
        policy: what decides.
        tiers: names, from small to large.
        prompts_scored_by: those of them that have a prompt bundle.
        has_queue: whether there is somewhere to escalate to.

    Raises:
        ConfigError: there is no tier, two have one name, the policy retries on one that doesn't exist, looks at a
            prompt's score that no tier gives, or escalates and there is no queue; what the policy asks for is named
            with its place.
    """
    if not tiers:
        raise ConfigError("a guard needs at least one tier")
    if len(set(tiers)) < len(tiers):
        raise ConfigError(f"tiers must have different names, got {list(tiers)!r}")
    for rule, tier in policy.retry_targets.items():
        if tier not in tiers:
            raise ConfigError(
                f"{policy.place(rule, 'to')}: rule {rule!r} retries on the tier {tier!r}, which doesn't exist; there "
                f"are {list(tiers)!r}"
            )
    if policy.scored_prompt_rules and not prompts_scored_by:
        rule_id = policy.scored_prompt_rules[0].id
        raise ConfigError(
            f"{policy.place(rule_id, 'when')}: rule {rule_id!r} looks at a score at stage `prompt`, and no tier has a "
            "`prompt_bundle` that gives one; fit one (ilis-guard fit --stage prompt), or take the rule out"
        )
    escalating = [rule.id for rule in policy.rules if rule.do is Action.ESCALATE]
    if escalating and not has_queue:
        raise ConfigError(
            f"{policy.place(escalating[0], 'do')}: rule {escalating[0]!r} escalates, and there is no queue; give "
            "guard.yaml a `review` with its `storage`"
        )
