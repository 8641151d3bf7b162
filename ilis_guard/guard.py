"""The guard: the one loop that walks a request from the smallest tier to a decision."""

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, SupportsFloat

import tenacity
from tenacity.wait import wait_base

from ilis_guard import events
from ilis_guard.config import read_config
from ilis_guard.errors import ConfigError, IlisGuardError, ModelError, ScoringError
from ilis_guard.models.weights import Progress
from ilis_guard.policy import DEFAULT_QUEUE, Facts, Policy, Ruling
from ilis_guard.tiers import Tier, load_tier
from ilis_guard.types import Action, Attempt, Decision, Generation, Labels, Message, Request, Score, Ticket

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
        check_wiring(policy, [tier.name for tier in tiers], has_queue=review is not None)
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
        check_wiring(policy, [tier.name for tier in config.tiers], has_queue=config.review is not None)
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
        attempts: list[Attempt] = []
        reasons: list[str] = []
        rulings = self._walk(request, decision, attempts, reasons)
        ruling = rulings[-1]
        action, ticket, text = ruling.action, None, ruling.say
        if action is Action.ANSWER:
            text = attempts[-1].text
        elif action is Action.ESCALATE:
            ticket = self._escalate(request, decision, ruling, attempts, reasons)
            if ticket is None:
                # What the policy would have said may promise a reviewer.
                action, text = Action.ABSTAIN, ""
        made = Decision(
            id=decision,
            action=action,
            text=text,
            uncertainty=attempts[-1].uncertainty,
            rules=tuple(ruling.rule for ruling in rulings),
            reasons=tuple(reasons),
            attempts=tuple(attempts),
            policy=self.policy.fingerprint,
            ticket=ticket,
        )
        self._log_decision(request, made, time.perf_counter() - started)
        return made

    def _walk(self, request: Request, decision: str, attempts: list[Attempt], reasons: list[str]) -> list[Ruling]:
        """Try tier after tier until the policy wants no larger one; attempts and reasons are added as they come."""
        left = list(self._tiers)
        rulings: list[Ruling] = []
        while True:
            tier = left.pop(0)
            attempts.append(self._attempt(tier, request, decision, len(attempts) + 1))
            if attempts[-1].error:
                reasons.append(f"tier {tier.name!r} failed: {attempts[-1].error}")
            ruling = self.policy.evaluate(_facts(request, attempts, left))
            rulings.append(ruling)
            reasons.extend(ruling.reasons)
            if ruling.action is not Action.RETRY:
                return rulings
            while ruling.to is not None and left[0].name != ruling.to:
                left.pop(0)

    def _attempt(self, tier: Tier, request: Request, decision: str, number: int) -> Attempt:
        """One tier's try. Nothing is raised: what went wrong is the attempt's error, and the policy's to rule on."""
        started = time.perf_counter()
        generation: Generation | None = None
        score: Score | None = None
        error = logged = ""
        try:
            returned = self._calls.copy(before_sleep=_log_repeat(tier.name))(tier.model.generate, request.messages)
            generation = _checked(returned)
            score = _score(tier, generation)
        except IlisGuardError as known:
            error = logged = f"{type(known).__name__}: {known}"
        except Exception as unknown:  # noqa: BLE001 - fail closed: whatever a model or scorer raises, no answer
            # A stranger's message may quote the prompt: it stands in the decision and stays out of the log.
            error, logged = f"unexpected {type(unknown).__name__}: {unknown}", f"unexpected {type(unknown).__name__}"
        attempt = Attempt(
            tier=tier.name,
            text="" if generation is None else generation.text,
            uncertainty=None if score is None else score.uncertainty,
            # NaN, a shift that the scorer can't tell, is no JSON.
            shift=None if score is None or math.isnan(score.shift) else score.shift,
            signatures={} if generation is None else generation.signatures,
            statistics=None if generation is None else generation.statistics,
            seconds=time.perf_counter() - started,
            tokens=0 if generation is None else generation.tokens,
            finish_reason=None if generation is None else generation.finish_reason,
            error=error,
        )
        told = {"decision": decision, "tier": tier.name, "attempt": number, "seconds": attempt.seconds}
        if error:
            events.log().warning(events.ATTEMPT_FAILED, error=logged, **told)
        else:
            events.log().info(
                events.ATTEMPT_FINISHED,
                uncertainty=attempt.uncertainty,
                shift=attempt.shift,
                tokens=attempt.tokens,
                **told,
            )
        return attempt

    def _escalate(
        self, request: Request, decision: str, ruling: Ruling, attempts: list[Attempt], reasons: list[str]
    ) -> Ticket | None:
        """Store a ticket; None where it can't be stored, with the reason added."""
        assert self._review is not None, "check_wiring refuses a policy that escalates without a queue"
        try:
            return self._review.escalate(
                decision=decision,
                request=request,
                attempts=attempts,
                queue=ruling.to or DEFAULT_QUEUE,
                policy=self.policy.fingerprint,
                rule=ruling.rule,
                reasons=reasons,
                say=ruling.say,
            )
        except Exception as error:  # noqa: BLE001 - fail closed: a request that can't wait safely is no answer either
            reasons.append(f"abstained: the ticket couldn't be stored: {type(error).__name__}: {error}")
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


def check_wiring(policy: Policy, tiers: Sequence[str], *, has_queue: bool) -> None:
    """See that a policy's tiers and queues exist.

    Raises:
        ConfigError: there is no tier, two have one name, the policy retries on one that doesn't exist, or it
            escalates and there is no queue; what the policy asks for is named with its place.
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
    escalating = [rule.id for rule in policy.rules if rule.do is Action.ESCALATE]
    if escalating and not has_queue:
        raise ConfigError(
            f"{policy.place(escalating[0], 'do')}: rule {escalating[0]!r} escalates, and there is no queue; give "
            "guard.yaml a `review` with its `storage`"
        )


def _checked(generation: object) -> Generation:
    """What a model returned; a user's own may return anything."""
    if not isinstance(generation, Generation):
        raise ModelError(f"the model must return a Generation, got a {type(generation).__name__}")
    if not isinstance(generation.text, str) or type(generation.tokens) is not int or generation.tokens < 0:
        raise ModelError(
            f"a Generation's text is a string and its tokens are counted from 0, got a "
            f"{type(generation.text).__name__} and {generation.tokens!r}"
        )
    return generation


def _score(tier: Tier, generation: Generation) -> Score:
    """The score in numbers from 0 to 1; a shift that the scorer can't tell may be NaN."""
    if tier.scorer is None:
        raise ScoringError(f"the tier {tier.name!r} has no bundle, so its answers have no score")
    if not generation.text.strip():
        raise ScoringError(f"there is nothing to score: the answer is empty ({generation.tokens} tokens)")
    score = tier.scorer.score(generation)
    shift = _number("shift", score.shift)
    return Score(
        uncertainty=_share("uncertainty", _number("uncertainty", score.uncertainty)),
        shift=shift if math.isnan(shift) else _share("shift", shift),
    )


def _number(name: str, value: object) -> float:
    """As Python's own: NumPy's numbers are no JSON."""
    if not isinstance(value, SupportsFloat):
        raise ScoringError(f"the {name} must be a number, got a {type(value).__name__}")
    return float(value)


def _share(name: str, value: float) -> float:
    # Also false for NaN.
    if not 0 <= value <= 1:
        raise ScoringError(f"the {name} must lie between 0 and 1, got {value!r}")
    return value


def _facts(request: Request, attempts: list[Attempt], left: list[Tier]) -> Facts:
    newest = attempts[-1]
    return Facts(
        uncertainty=newest.uncertainty,
        shift=newest.shift,
        tier=newest.tier,
        last_tier=not left,
        larger_tiers=tuple(tier.name for tier in left),
        attempt=len(attempts),
        tokens=sum(attempt.tokens for attempt in attempts),
        seconds=sum(attempt.seconds for attempt in attempts),
        labels=request.labels,
        error=newest.error,
        statistics=newest.statistics,
    )


def _log_repeat(tier: str) -> Callable[[tenacity.RetryCallState], None]:
    def log(state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        events.log().warning(events.ATTEMPT_REPEATED, tier=tier, call=state.attempt_number, error=type(error).__name__)

    return log
