"""Attempts: call one tier's model, score its answer, and record any error."""

from asyncio import CancelledError
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.cascade.early_stop import EarlyStopper
from ilis_guard.cascade.generation_check import check_generation
from ilis_guard.cascade.tier import Tier
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.concurrency.interrupts import is_interrupt
from ilis_guard.errors import (
    BudgetError,
    ModelError,
    ThinkingError,
    TransientModelError,
    UnfinishedAnswerError,
    control_flow,
    log_detail,
)
from ilis_guard.models import StepwiseModel
from ilis_guard.models.base import Proceed, check_finished
from ilis_guard.types import (
    Attempt,
    ErrorInfo,
    Generation,
    Message,
    PromptRuling,
    Request,
    Score,
    Stage,
    Usage,
    Wording,
    to_known,
)

EvaluatePrompt = Callable[[Attempt], PromptRuling]
"""The policy's ruling before a token is generated, on the attempt so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPhase:
    """The state of an attempt at stage `prompt`."""

    score: Score | None = None
    """From the tier's prompt bundle; None where it wasn't used."""
    seconds: float | None = None
    """As `Attempt.prompt_seconds`; so is `cost`."""
    cost: float | None = None
    ruling: PromptRuling = PromptRuling()  # noqa: RUF009 - it is frozen
    """The policy's; empty without rules of stage `prompt`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """A finished attempt."""

    attempt: Attempt
    prompt: PromptRuling
    """The policy's ruling before a token was generated."""
    log_detail: str
    """The attempt's error for logs; empty where there is none."""
    sent: tuple[Message, ...] = ()
    """As `Generation.sent`."""


class AttemptRunner:
    """Makes one attempt.

    Args:
        tier: the tier.
        caller: calls the tier's model.
        request: the request.
        evaluate_prompt: called before a token is generated; None where the policy has no rule of stage `prompt`.
        is_binding: whether such a rule stops the model before it answers; in shadow mode it answers all the same.
        deadline: when the call is abandoned; None for never.
        since: when the attempt began, on the clock.
        clock: seconds, monotonic.
        stopper: follows the answer token by token; None where it comes whole. Used only with a `StepwiseModel`.
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
        clock: Callable[[], float],
        stopper: EarlyStopper | None = None,
    ) -> None:
        self._tier = tier
        self._caller = caller
        self._request = request
        self._evaluate_prompt = evaluate_prompt
        self._is_binding = is_binding
        self._deadline = deadline
        self._since = since
        self._clock = clock
        self._stopper = stopper
        # The model's thread replaces it as a whole, since it may go on after its call was abandoned.
        self._prompt = PromptPhase()
        self._prompt_failure: BaseException | None = None
        self._calls = 0
        self._has_lost_reply = False
        self._stopped: Generation | None = None

    def run(self) -> AttemptResult:
        """Make the attempt. Errors become the attempt's error.

        Only what stops the program (`is_interrupt`), or is control flow (`errors.control_flow`), is raised.
        """
        failure: BaseException | None = None
        generation: Generation | None = None
        score: Score | None = None
        try:
            generation = self._finished(self._generate())
            if not self._is_spared(self._prompt):
                assert generation is not None, "only a ruling on the prompt spares the model"
                self._check_prompt()
                _check_thinking(generation)
                if self._tier.check is not None:
                    self._tier.check(self._tier.name, generation)
                score = self._tier.score(generation, self._wording(generation), self._request.labels)
                if self._deadline is not None:
                    self._deadline.check()
                if generation is not self._stopped:  # half an answer is none of the traffic's
                    self._tier.follow(generation, score)
        except control_flow():
            raise
        except BaseException as error:  # fail closed: whatever a model or scorer raises, there is no answer
            if is_interrupt(error):
                raise
            failure = error
        prompt = self._prompt
        return AttemptResult(
            attempt=self._attempt(prompt, generation, score, failure),
            prompt=prompt.ruling,
            log_detail="" if failure is None else log_detail(failure),
            sent=() if generation is None else generation.sent,
        )

    def _finished(self, generation: Generation | None) -> Generation | None:
        """Check that a generation is whole, unless it was stopped from here.

        Raises:
            UnfinishedAnswerError: it just ended.
        """
        if generation is None or generation is self._stopped or self._is_spared(self._prompt):
            return generation
        check_finished(self._tier.model, generation)
        return generation

    def _is_spared(self, prompt: PromptPhase) -> bool:
        return self._is_binding and prompt.ruling.ruling is not None

    def _generate(self) -> Generation | None:
        """Call the tier's model; None where a rule of stage `prompt` decided before it was called."""
        tier, model, evaluate_prompt = self._tier, self._tier.model, self._evaluate_prompt
        if evaluate_prompt is None:
            return self._call()
        if tier.prompt_scorer is None:
            # The rules read no score of the prompt, so they don't need the model.
            self._rule(evaluate_prompt, None, None)
            return None if self._is_spared(self._prompt) else self._call()
        if not isinstance(model, StepwiseModel):
            raise ModelError(f"the tier {tier.name!r} has a prompt bundle, and a model that can't stop at the prompt")

        def proceed(so_far: Generation) -> bool:
            # A repeated call keeps the first call's ruling.
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
            except TransientModelError as error:
                self._has_lost_reply |= error.is_reply_lost
                raise
            except Exception:
                raise
            except BaseException as error:
                if is_interrupt(error):
                    raise
                # Raised further, SystemExit would end the server, and CancelledError the caller's task.
                what = (
                    "cancelled its own call" if isinstance(error, CancelledError) else f"raised {type(error).__name__}"
                )
                raise ModelError(f"the model of the tier {self._tier.name!r} {what}") from error

        return self._caller.call(work, deadline=self._deadline)

    def _generation(self, proceed: Proceed | None) -> Generation:
        """The whole answer, or the generation at the prompt where `proceed` returns False."""
        options = self._stop_option | ({} if proceed is None else {"proceed": proceed})
        model = self._tier.model
        if self._deadline is not None and isinstance(model, StepwiseModel):
            options["deadline"] = self._deadline
        return check_generation(model.generate(self._request.messages, **options))

    def _follow(self, model: StepwiseModel, stopper: EarlyStopper, proceed: Proceed | None) -> Generation:
        """As `_generation`, token by token; or the answer so far where the stopper stopped it."""
        generation: Generation | None = None
        with closing(model.stream(self._request.messages, **self._stop_option)) as steps, stopper.follow():
            for step in steps:
                if self._deadline is not None:
                    self._deadline.check()
                is_first, generation = generation is None, check_generation(step.generation)
                if generation.tokens is None:
                    raise ModelError(f"the model of the tier {self._tier.name!r} doesn't count the tokens of its steps")
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
        """Empty without stop sequences: a user's own model needn't take the option."""
        return {"stop": self._request.stop} if self._request.stop else {}

    def _so_far(self, generation: Generation, stopper: EarlyStopper) -> Attempt:
        """The attempt so far; without an uncertainty where there is none, or it can't be computed."""
        score: Score | None = None
        if stopper.needs_scores:
            # What can't be scored yet may be scored at its end; until then it is neither shown nor stopped.
            with suppress(Exception):
                score = self._tier.score_so_far(generation, self._wording(generation), self._request.labels)
        return self._attempt(self._prompt, generation, score, None)

    def _score_and_rule(self, so_far: Generation, evaluate_prompt: EvaluatePrompt) -> None:
        try:
            score = self._tier.score_prompt(so_far, self._wording(so_far), self._request.labels)
        except BaseException as error:
            if self._is_binding or is_interrupt(error):
                raise
            # The model answers all the same; `_check_prompt` raises the error afterwards.
            self._prompt_failure = error
        else:
            self._rule(evaluate_prompt, score, so_far)

    def _wording(self, generation: Generation) -> Wording:
        """How the question was put to the model, which may have made its own conversation of it."""
        return self._tier.wording(generation.sent) if generation.sent else self._request_wording

    @cached_property
    def _request_wording(self) -> Wording:
        return self._tier.wording(self._request.messages)

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
        # The call that is under way has its price, and so has the prompt that it read.
        usage = Usage() if so_far is None else so_far.usage
        attempt = replace(self._attempt_at("prompt", score, prompt_score=score), cost=self._cost(usage))
        self._prompt = PromptPhase(
            score=score, seconds=attempt.seconds, cost=attempt.cost, ruling=evaluate_prompt(attempt)
        )

    def _attempt(
        self, prompt: PromptPhase, generation: Generation | None, score: Score | None, failure: BaseException | None
    ) -> Attempt:
        if self._is_spared(prompt):
            attempt = self._attempt_at("prompt", prompt.score, prompt_score=prompt.score)
        else:
            attempt = self._attempt_at("answer", score, prompt_score=prompt.score)
        usage = self._usage(generation, failure)
        attempt = replace(
            attempt,
            error=None if failure is None else ErrorInfo.of(failure),
            cost=self._cost(usage),
            prompt_tokens=usage.prompt_tokens,
            tokens=usage.tokens,
            prompt_seconds=prompt.seconds,
            prompt_cost=prompt.cost,
        )
        if generation is None:
            return attempt
        return replace(
            attempt,
            text=generation.text,
            # An overflowed model's couldn't be stored, and nobody can learn from it.
            signatures={
                position: signature
                for position, signature in generation.signatures.items()
                if np.isfinite(signature).all()
            },
            statistics=generation.statistics,
            finish_reason=generation.finish_reason,
            stopped_at=generation.tokens if generation is self._stopped else None,
        )

    def _attempt_at(self, stage: Stage, score: Score | None, *, prompt_score: Score | None) -> Attempt:
        """An attempt at that stage with its score, and nothing generated."""
        return Attempt(
            tier=self._tier.name,
            stage=stage,
            uncertainty=None if score is None else to_known(score.uncertainty),
            typicality=None if score is None else to_known(score.typicality),
            rank=None if score is None else to_known(score.rank),
            departures=() if score is None else score.departures,
            prompt_score=prompt_score,
            seconds=self._clock() - self._since,
        )

    def _usage(self, generation: Generation | None, failure: BaseException | None) -> Usage:
        if self._has_lost_reply:  # of one of the calls, if not of the last
            return Usage(prompt_tokens=None, tokens=None)
        if generation is not None:
            return generation.usage
        if isinstance(failure, UnfinishedAnswerError):
            return Usage(prompt_tokens=failure.prompt_tokens, tokens=failure.tokens)
        # A call that was given up may go on at the provider's; one that failed gave nothing back.
        was_given_up = isinstance(failure, BudgetError) and self._calls > 0
        return Usage(prompt_tokens=None, tokens=None) if was_given_up else Usage()

    def _cost(self, usage: Usage) -> float | None:
        if not self._calls:
            return 0.0
        return None if self._tier.cost is None else self._tier.cost.of(self._calls, usage)


def _check_thinking(generation: Generation) -> None:
    """Check that a generation is more than thinking.

    Raises:
        ThinkingError: it isn't.
    """
    if generation.finish_reason is None or not generation.thinking_problem:
        return
    if generation.thinking_problem == "unfinished":
        raise ThinkingError(
            f"the model never left its thinking, so there is no answer ({generation.tokens} tokens, finish reason "
            f"{generation.finish_reason!r}): give it more tokens, or turn its thinking off (chat_template_kwargs)"
        )
    raise ThinkingError(
        f"the model thought in the middle of its answer, so that it can't be told what is answer ({generation.tokens} "
        "tokens)"
    )
