"""Attempts: one tier tried once. Its model is called, its answer scored, and whatever goes wrong is recorded."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, SupportsFloat, get_args

import numpy as np

from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.cascade.early_stop import EarlyStopper
from ilis_guard.cascade.tier import Tier
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.errors import ModelError, control_flow, log_detail
from ilis_guard.models import StepwiseModel
from ilis_guard.models.base import Proceed
from ilis_guard.types import (
    Attempt,
    ErrorInfo,
    FinishReason,
    Generation,
    Message,
    PromptRuling,
    Request,
    Score,
    Stage,
    Statistics,
)

EvaluatePrompt = Callable[[Attempt], PromptRuling]
"""What a policy says before a token is generated, to the attempt as far as it has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPhase:
    """What is known before a token is generated."""

    score: Score | None = None
    """By the tier's prompt bundle; None where it wasn't used."""
    seconds: float | None = None
    """As `Attempt.prompt_seconds`; so is `cost`."""
    cost: float | None = None
    ruling: PromptRuling = PromptRuling()  # noqa: RUF009 - it is frozen
    """What the policy says to that; without a rule of stage `prompt` it says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """An attempt that was made."""

    attempt: Attempt
    prompt: PromptRuling
    """What the policy said before a token was generated."""
    log_detail: str
    """The attempt's error as it may be logged; empty where there is none."""
    sent: tuple[Message, ...] = ()
    """As `Generation.sent`."""


class AttemptRunner:
    """Makes one attempt.

    Args:
        tier: the tier.
        caller: of the tier's model.
        request: the request.
        evaluate_prompt: called before a token is generated; None where the policy has no rule of stage `prompt`.
        is_binding: whether the model is spared the answer where such a rule decided; in shadow mode it answers.
        deadline: when it is given up; None for never.
        since: from when on the attempt's seconds count, on the clock of `time.monotonic`.
        stopper: follows the answer; None where it comes whole. Used only with a model that can be followed.
    """

    def __init__(
        self,
        tier: Tier,
        caller: ModelCaller,
        request: Request,
        *,
        evaluate_prompt: EvaluatePrompt | None,
        is_binding: bool,
        deadline: Deadline | None,
        since: float,
        stopper: EarlyStopper | None = None,
    ) -> None:
        self._tier = tier
        self._caller = caller
        self._request = request
        self._evaluate_prompt = evaluate_prompt
        self._is_binding = is_binding
        self._deadline = deadline
        self._since = since
        self._stopper = stopper
        # Written by the thread that the model runs in, at once and whole, for it may go on after it was given up.
        self._prompt = PromptPhase()
        self._prompt_failure: Exception | None = None
        self._calls = 0
        self._stopped: Generation | None = None

    def run(self) -> AttemptResult:
        """Make the attempt. What goes wrong is the attempt's error.

        Nothing is raised but what stops the program, and what leaves the call: see `control_flow`.
        """
        failure: Exception | None = None
        generation: Generation | None = None
        score: Score | None = None
        try:
            generation = self._generate()
            if not self._is_spared(self._prompt):
                assert generation is not None, "only a ruling on the prompt spares the model"
                self._check_prompt()
                if self._tier.check is not None:
                    self._tier.check(self._tier.name, generation)
                score = self._tier.score(generation)
                if self._deadline is not None:
                    self._deadline.check()
        except control_flow():
            raise
        except Exception as error:  # noqa: BLE001 - fail closed: whatever a model or scorer raises, no answer
            failure = error
        prompt = self._prompt
        return AttemptResult(
            attempt=self._attempt(prompt, generation, score, failure),
            prompt=prompt.ruling,
            log_detail="" if failure is None else log_detail(failure),
            sent=() if generation is None else generation.sent,
        )

    def _is_spared(self, prompt: PromptPhase) -> bool:
        return self._is_binding and prompt.ruling.ruling is not None

    def _generate(self) -> Generation | None:
        """Let the tier's model answer; None where a rule of stage `prompt` spares it before it was called."""
        tier, model, evaluate_prompt = self._tier, self._tier.model, self._evaluate_prompt
        if evaluate_prompt is None:
            return self._call()
        if tier.prompt_scorer is None:
            # No score to wait for, so the rules don't need the model.
            self._rule(evaluate_prompt, None, None)
            return None if self._is_spared(self._prompt) else self._call()
        if not isinstance(model, StepwiseModel):
            raise ModelError(f"the tier {tier.name!r} has a prompt bundle, and a model that can't stop at the prompt")

        def proceed(so_far: Generation) -> bool:
            # A repeated call doesn't overrule the first one's ruling.
            if not self._is_spared(self._prompt):
                self._score_and_rule(so_far, evaluate_prompt)
            return not self._is_spared(self._prompt)

        return self._call(proceed=proceed)

    def _call(self, proceed: Proceed | None = None) -> Generation:
        model, stopper = self._tier.model, self._stopper

        def work() -> Generation:
            self._calls += 1
            try:
                if stopper is not None and isinstance(model, StepwiseModel):
                    return self._follow(model, stopper, proceed)
                return self._generation(proceed)
            except asyncio.CancelledError as cancelled:
                # It would stop whoever catches it, and here only the model cancelled itself.
                raise ModelError(f"the model of the tier {self._tier.name!r} cancelled its own call") from cancelled

        return self._caller.call(work, deadline=self._deadline)

    def _generation(self, proceed: Proceed | None) -> Generation:
        """The whole answer, or what there is of it where `proceed` says no."""
        options = self._stop_option | ({} if proceed is None else {"proceed": proceed})
        model = self._tier.model
        if self._deadline is not None and isinstance(model, StepwiseModel):
            options["deadline"] = self._deadline
        return _checked(model.generate(self._request.messages, **options))

    def _follow(self, model: StepwiseModel, stopper: EarlyStopper, proceed: Proceed | None) -> Generation:
        """As `_generation`, token by token; or the answer as far as it came until it was stopped."""
        generation: Generation | None = None
        with closing(model.stream(self._request.messages, **self._stop_option)) as steps, stopper.follow():
            for step in steps:
                if self._deadline is not None:
                    self._deadline.check()
                is_first, generation = generation is None, _checked(step.generation)
                if generation.finish_reason is not None:
                    continue
                if is_first:
                    if proceed is not None and not proceed(generation):
                        break
                elif not stopper.goes_on(self._so_far(generation, stopper), self._prompt.ruling):
                    self._stopped = generation
                    break
        if generation is None:
            raise ModelError(f"the model of the tier {self._tier.name!r} ended its stream without a step")
        return generation

    @property
    def _stop_option(self) -> dict[str, Any]:
        """Passed only where there is something: a user's own model needn't know of stop sequences."""
        return {"stop": self._request.stop} if self._request.stop else {}

    def _so_far(self, generation: Generation, stopper: EarlyStopper) -> Attempt:
        """The attempt as far as it has come; without an uncertainty where there is none, or it can't be computed."""
        score: Score | None = None
        if stopper.needs_scores:
            # What can't be scored yet may be scored at its end; until then it is neither written nor stopped.
            with suppress(Exception):
                score = self._tier.score_so_far(generation)
        return self._attempt(self._prompt, generation, score, None)

    def _score_and_rule(self, so_far: Generation, evaluate_prompt: EvaluatePrompt) -> None:
        try:
            score = self._tier.score_prompt(so_far)
        except Exception as error:
            if self._is_binding:
                raise
            # The model answers all the same; the failure is raised afterwards.
            self._prompt_failure = error
        else:
            self._rule(evaluate_prompt, score, so_far)

    def _check_prompt(self) -> None:
        """Check that the rules of stage `prompt` were evaluated, with the score that they read.

        Raises:
            ModelError: the model answered without calling `proceed`.
            Exception: what the prompt's scorer raised.
        """
        if self._prompt_failure is not None:
            raise self._prompt_failure
        is_scored = self._evaluate_prompt is not None and self._tier.prompt_scorer is not None
        if is_scored and self._prompt.score is None:
            raise ModelError(f"the model of the tier {self._tier.name!r} answered without asking whether to proceed")

    def _rule(self, evaluate_prompt: EvaluatePrompt, score: Score | None, so_far: Generation | None) -> None:
        # The call that is under way has its price too, and so has the prompt: see `TierCost.of_prompt`.
        attempt = replace(self._attempt_at("prompt", score, prompt_score=score), cost=self._cost(so_far))
        self._prompt = PromptPhase(
            score=score, seconds=attempt.seconds, cost=attempt.cost, ruling=evaluate_prompt(attempt)
        )

    def _attempt(
        self, prompt: PromptPhase, generation: Generation | None, score: Score | None, failure: Exception | None
    ) -> Attempt:
        if self._is_spared(prompt):
            attempt = self._attempt_at("prompt", prompt.score, prompt_score=prompt.score)
        else:
            attempt = self._attempt_at("answer", score, prompt_score=prompt.score)
        attempt = replace(
            attempt,
            error=None if failure is None else ErrorInfo.of(failure),
            cost=self._cost(generation),
            prompt_seconds=prompt.seconds,
            prompt_cost=prompt.cost,
        )
        if generation is None:
            return attempt
        return replace(
            attempt,
            text=generation.text,
            signatures=generation.signatures,
            statistics=generation.statistics,
            prompt_tokens=generation.prompt_tokens,
            tokens=generation.tokens,
            finish_reason=generation.finish_reason,
            stopped_at=generation.tokens if generation is self._stopped else None,
        )

    def _attempt_at(self, stage: Stage, score: Score | None, *, prompt_score: Score | None) -> Attempt:
        """With the score of that stage, and nothing generated."""
        return Attempt(
            tier=self._tier.name,
            stage=stage,
            uncertainty=None if score is None else score.uncertainty,
            # NaN, a typicality that the scorer can't tell, is no JSON.
            typicality=None if score is None or math.isnan(score.typicality) else score.typicality,
            prompt_score=prompt_score,
            seconds=time.monotonic() - self._since,
        )

    def _cost(self, generation: Generation | None) -> float:
        return 0.0 if self._tier.cost is None else self._tier.cost.of(self._calls, generation)


def _checked(generation: object) -> Generation:
    """What a model returned, as far as policies and tickets rest on it; a user's own may return anything."""
    if not isinstance(generation, Generation):
        raise ModelError(f"the model must return a Generation, got a {type(generation).__name__}")
    if not isinstance(generation.text, str) or type(generation.tokens) is not int or generation.tokens < 0:
        raise ModelError(
            f"a Generation's text is a string and its tokens are counted from 0, got a "
            f"{type(generation.text).__name__} and {generation.tokens!r}"
        )
    if type(generation.prompt_tokens) is not int or generation.prompt_tokens < 0:
        raise ModelError(f"a Generation's prompt_tokens are counted from 0, got {generation.prompt_tokens!r}")
    if generation.finish_reason not in (None, *get_args(FinishReason)):
        raise ModelError("a Generation's finish_reason is 'stop', 'length' or None, got another; map it to one of them")
    signatures = generation.signatures
    if not isinstance(signatures, Mapping) or not all(isinstance(each, np.ndarray) for each in signatures.values()):
        raise ModelError("a Generation's signatures are a mapping of NumPy arrays by position, got something else")
    return replace(generation, statistics=_checked_statistics(generation.statistics))


def _checked_statistics(statistics: object) -> Statistics | None:
    """In Python's own numbers: NumPy's are no JSON."""
    if statistics is None:
        return None
    if not isinstance(statistics, Statistics):
        raise ModelError(f"a Generation's statistics are Statistics or None, got a {type(statistics).__name__}")
    values = statistics.to_dict()
    for name, value in values.items():
        if not isinstance(value, SupportsFloat):
            raise ModelError(f"a Generation's statistics are numbers, got a {type(value).__name__} as {name}")
    return Statistics(**{name: float(value) for name, value in values.items()})
