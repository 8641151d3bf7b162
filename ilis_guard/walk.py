"""A request's way through the tiers: asked, scored and ruled on, until no rule wants a larger one."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import tenacity

from ilis_guard import events
from ilis_guard.errors import IlisGuardError, ModelError
from ilis_guard.models import StepwiseModel
from ilis_guard.policy import Policy, PromptRuling, Ruling
from ilis_guard.policy.way import AttemptFacts, Way
from ilis_guard.tiers import Tier
from ilis_guard.types import Action, Attempt, Generation, Request, Score, Stage

_GO_ON = PromptRuling(ruling=None, reasons=(), held_back="")
"""What a policy without a rule of stage `prompt` says."""


class Walk:
    """One request's way. What happened on it stands in `attempts`, `rulings` and `reasons`, as it came about."""

    def __init__(
        self, request: Request, tiers: Sequence[Tier], policy: Policy, *, decision: str, calls: tenacity.Retrying
    ) -> None:
        self.attempts: list[Attempt] = []
        self.rulings: list[Ruling] = []
        """One an attempt."""
        self.reasons: list[str] = []
        self._request = request
        self._tiers = {tier.name: tier for tier in tiers}
        self._policy = policy
        self._way = Way(
            policy=policy,
            left=tuple(self._tiers),
            labels=request.labels,
            prompt_length=len(request.prompt),
            lot=decision,
        )
        self._decision = decision
        self._calls = calls

    def run(self) -> Ruling:
        """Go from tier to tier; the last ruling, which is no retry."""
        while True:
            ruling = self._try(self._tiers[self._way.left[0]])
            self.rulings.append(ruling)
            self.reasons.extend(ruling.reasons)
            if ruling.action is not Action.RETRY:
                return ruling
            self._way = self._way.after_retry(AttemptFacts.of(self.attempts[-1]), ruling.to)

    def _try(self, tier: Tier) -> Ruling:
        """One tier's attempt, and what the policy says to it."""
        trial = _Trial(tier=tier.name)
        attempt = self._ask(tier, trial)
        self.attempts.append(attempt)
        if trial.early.ruling is None:
            self.reasons.extend(trial.early.reasons)
        if attempt.error:
            self.reasons.append(f"tier {tier.name!r} failed: {attempt.error}")
        # What a rule said at the prompt stands, even where the model that it spared fails afterwards.
        return trial.early.ruling or self._way.at_answer(AttemptFacts.of(attempt), held_back=trial.early.held_back)

    def _ask(self, tier: Tier, trial: "_Trial") -> Attempt:
        """Put the request to a tier. Nothing is raised: what went wrong is the attempt's error."""
        error = logged = ""
        try:
            self._generate(tier, trial)
            if trial.early.ruling is None:
                assert trial.generation is not None, "only an early ruling spares the model"
                trial.score = tier.score(trial.generation)
        except IlisGuardError as known:
            error = logged = f"{type(known).__name__}: {known}"
        except Exception as unknown:  # noqa: BLE001 - fail closed: whatever a model or scorer raises, no answer
            # A stranger's message may quote the prompt: it stands in the decision and stays out of the log.
            error, logged = f"unexpected {type(unknown).__name__}: {unknown}", f"unexpected {type(unknown).__name__}"
        attempt = trial.attempt(error)
        self._log(attempt, logged)
        return attempt

    def _generate(self, tier: Tier, trial: "_Trial") -> None:
        """Let the tier's model answer, unless a rule of stage `prompt` spares it."""
        call = self._calls.copy(before_sleep=_log_repeat(tier.name))
        if not self._policy.prompt_rules:
            trial.generation = _checked(call(tier.model.generate, self._request.messages))
        elif tier.prompt_scorer is None:
            # No score to wait for, so the model isn't needed to ask the rules.
            if self._proceeds(trial):
                trial.generation = _checked(call(tier.model.generate, self._request.messages))
        elif isinstance(tier.model, StepwiseModel):

            def proceed(so_far: Generation) -> bool:
                # Who was told no and asks again, as a repeated call does, isn't told yes.
                if trial.early.ruling is not None:
                    return False
                trial.prompt_score = tier.score_prompt(so_far)
                return self._proceeds(trial)

            trial.generation = _checked(call(tier.model.generate, self._request.messages, proceed=proceed))
            if trial.prompt_score is None:
                raise ModelError(f"the model of the tier {tier.name!r} answered without asking whether to proceed")
        else:
            raise ModelError(f"the tier {tier.name!r} has a prompt bundle, and a model that can't stop at the prompt")

    def _proceeds(self, trial: "_Trial") -> bool:
        trial.early = self._way.at_prompt(AttemptFacts.of(trial.attempt_at("prompt")))
        return trial.early.ruling is None

    def _log(self, attempt: Attempt, error: str) -> None:
        told = {
            "decision": self._decision,
            "tier": attempt.tier,
            "attempt": len(self.attempts) + 1,
            "seconds": attempt.seconds,
        }
        if error:
            events.log().warning(events.ATTEMPT_FAILED, error=error, **told)
        else:
            events.log().info(
                events.ATTEMPT_FINISHED,
                stage=attempt.stage,
                uncertainty=attempt.uncertainty,
                shift=attempt.shift,
                tokens=attempt.tokens,
                **told,
            )


@dataclass(slots=True, kw_only=True)
class _Trial:
    """What is known so far of an attempt that is being made."""

    tier: str
    started: float = field(default_factory=time.perf_counter)
    prompt_score: Score | None = None
    early: PromptRuling = _GO_ON
    generation: Generation | None = None
    score: Score | None = None

    def attempt(self, error: str) -> Attempt:
        """As it stands at its end."""
        attempt = self.attempt_at("answer" if self.early.ruling is None else "prompt")
        if self.generation is None:
            return replace(attempt, error=error)
        return replace(
            attempt,
            text=self.generation.text,
            signatures=self.generation.signatures,
            statistics=self.generation.statistics,
            tokens=self.generation.tokens,
            finish_reason=self.generation.finish_reason,
            error=error,
        )

    def attempt_at(self, stage: Stage) -> Attempt:
        """With the score of that stage, and nothing generated."""
        score = self.prompt_score if stage == "prompt" else self.score
        return Attempt(
            tier=self.tier,
            stage=stage,
            uncertainty=None if score is None else score.uncertainty,
            # NaN, a shift that the scorer can't tell, is no JSON.
            shift=None if score is None or math.isnan(score.shift) else score.shift,
            prompt_score=self.prompt_score,
            seconds=time.perf_counter() - self.started,
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


def _log_repeat(tier: str) -> Callable[[tenacity.RetryCallState], None]:
    def log(state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        events.log().warning(events.ATTEMPT_REPEATED, tier=tier, call=state.attempt_number, error=type(error).__name__)

    return log
