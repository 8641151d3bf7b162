"""One tier asked once: its model called, its answer scored, and whatever goes wrong on the way taken down."""

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
from ilis_guard.errors import IlisGuardError, ModelError, control_flow
from ilis_guard.models import StepwiseModel
from ilis_guard.models.base import Proceed
from ilis_guard.policy import PromptRuling
from ilis_guard.types import Attempt, FinishReason, Generation, Message, Request, Score, Stage, Statistics

AtPrompt = Callable[[Attempt], PromptRuling]
"""What a policy says before a token is generated, to the attempt as far as it has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is known before a token is generated."""

    score: Score | None = None
    """By the tier's prompt bundle; None where it wasn't asked."""
    seconds: float | None = None
    """As `Attempt.prompt_seconds`; so is `cost`."""
    cost: float | None = None
    ruling: PromptRuling = PromptRuling(ruling=None, reasons=(), answer_blocked_by="")  # noqa: RUF009 - it is frozen
    """What the policy says to that; a policy without a rule of stage `prompt` says nothing."""


class Asking:
    """An attempt that is being made.

    Args:
        tier: whose.
        caller: of the tier's model.
        request: what it is asked.
        at_prompt: asked before a token is generated; None where the policy has no rule of stage `prompt`.
        is_binding: whether the model is spared the answer where such a rule decided; in shadow mode it answers.
        deadline: when it is given up; None for never.
        since: from when on the attempt's seconds count, on the clock of `time.monotonic`.
        follower: of the answer; None where it comes whole. Follows only a model that can be.
    """

    def __init__(
        self,
        tier: Tier,
        caller: ModelCaller,
        request: Request,
        *,
        at_prompt: AtPrompt | None,
        is_binding: bool,
        deadline: Deadline | None,
        since: float,
        follower: EarlyStopper | None = None,
    ) -> None:
        self._tier = tier
        self._caller = caller
        self._request = request
        self._at_prompt = at_prompt
        self._is_binding = is_binding
        self._deadline = deadline
        self._since = since
        self._follower = follower
        # Written by the thread that the model runs in, at once and whole, for it may go on after it was given up.
        self._prompt = Prompt()
        self._prompt_failure: Exception | None = None
        self._calls = 0
        self._cut: Generation | None = None

    def ask(self) -> "Asked":
        """Make the attempt. What went wrong is the attempt's error.

        Nothing is raised but what stops the program, and what leaves the call: see `control_flow`.
        """
        error = logged = ""
        generation: Generation | None = None
        score: Score | None = None
        try:
            generation = self._generate()
            if not self._is_spared(self._prompt):
                assert generation is not None, "only an early ruling spares the model"
                self._check_prompt()
                if self._tier.check is not None:
                    self._tier.check(self._tier.name, generation)
                score = self._tier.score(generation)
                if self._deadline is not None:
                    self._deadline.check()
        except control_flow():
            raise
        except IlisGuardError as known:
            error = logged = f"{type(known).__name__}: {known}"
        except Exception as unknown:  # noqa: BLE001 - fail closed: whatever a model or scorer raises, no answer
            # A stranger's message may quote the prompt: it stands in the decision and stays out of the log.
            error, logged = f"unexpected {type(unknown).__name__}: {unknown}", f"unexpected {type(unknown).__name__}"
        prompt = self._prompt
        return Asked(
            attempt=self._attempt(prompt, generation, score, error),
            prompt=prompt.ruling,
            logged=logged,
            sent=() if generation is None else generation.sent,
        )

    def _is_spared(self, prompt: Prompt) -> bool:
        return self._is_binding and prompt.ruling.ruling is not None

    def _generate(self) -> Generation | None:
        """Let the tier's model answer; None where a rule of stage `prompt` spares it before it was called."""
        tier, model = self._tier, self._tier.model
        if self._at_prompt is None or tier.prompt_scorer is None:
            if self._at_prompt is not None:
                # No score to wait for, so the model isn't needed to ask the rules.
                self._rule(self._at_prompt, None, None)
            return None if self._is_spared(self._prompt) else self._call()
        if not isinstance(model, StepwiseModel):
            raise ModelError(f"the tier {tier.name!r} has a prompt bundle, and a model that can't stop at the prompt")
        at_prompt = self._at_prompt

        def proceed(so_far: Generation) -> bool:
            # Who was told no and asks again, as a repeated call does, isn't told yes.
            if not self._is_spared(self._prompt):
                self._rule_on(so_far, at_prompt)
            return not self._is_spared(self._prompt)

        return self._call(proceed=proceed)

    def _call(self, proceed: Proceed | None = None) -> Generation:
        model, follower = self._tier.model, self._follower

        def work() -> Generation:
            self._calls += 1
            try:
                if follower is not None and isinstance(model, StepwiseModel):
                    return self._follow(model, follower, proceed)
                return self._generation(proceed)
            except asyncio.CancelledError as cancelled:
                # It stops whoever meets it, and here nobody was asked to stop but the model, by itself.
                raise ModelError(f"the model of the tier {self._tier.name!r} cancelled its own call") from cancelled

        return self._caller.call(work, deadline=self._deadline)

    def _generation(self, proceed: Proceed | None) -> Generation:
        """The whole answer, or what there is of it where `proceed` says no."""
        options = self._stopping | ({} if proceed is None else {"proceed": proceed})
        model = self._tier.model
        if self._deadline is not None and isinstance(model, StepwiseModel):
            options["deadline"] = self._deadline
        return _checked(model.generate(self._request.messages, **options))

    def _follow(self, model: StepwiseModel, follower: EarlyStopper, proceed: Proceed | None) -> Generation:
        """As `_generation`, token by token; or the answer as far as it came until it was cut."""
        generation: Generation | None = None
        with closing(model.stream(self._request.messages, **self._stopping)) as steps, follower.following():
            for step in steps:
                if self._deadline is not None:
                    self._deadline.check()
                is_first, generation = generation is None, _checked(step.generation)
                if generation.finish_reason is not None:
                    continue
                if is_first:
                    if proceed is not None and not proceed(generation):
                        break
                elif not follower.goes_on(self._so_far(generation), self._prompt.ruling):
                    self._cut = generation
                    break
        if generation is None:
            raise ModelError(f"the model of the tier {self._tier.name!r} ended its stream without a step")
        return generation

    @property
    def _stopping(self) -> dict[str, Any]:
        """Given only where there is something: a user's own model needn't know of stop sequences."""
        return {"stop": self._request.stop} if self._request.stop else {}

    def _so_far(self, generation: Generation) -> Attempt:
        """The attempt as far as it has come; without an uncertainty where there is none, or it can't be told."""
        assert self._follower is not None
        score: Score | None = None
        if self._follower.wants_scores:
            # What can't be scored on its way may be scored at its end; until then it is neither shown nor cut.
            with suppress(Exception):
                score = self._tier.score_so_far(generation)
        return self._attempt(self._prompt, generation, score, "")

    def _rule_on(self, so_far: Generation, at_prompt: AtPrompt) -> None:
        try:
            score = self._tier.score_prompt(so_far)
        except Exception as error:
            if self._is_binding:
                raise
            # The model answers all the same; what failed is told afterwards.
            self._prompt_failure = error
        else:
            self._rule(at_prompt, score, so_far)

    def _check_prompt(self) -> None:
        """See that the rules of stage `prompt` were asked, with the score that they look at.

        Raises:
            ModelError: the model answered without asking.
            Exception: what the prompt's scorer raised.
        """
        if self._prompt_failure is not None:
            raise self._prompt_failure
        if self._at_prompt is not None and self._tier.prompt_scorer is not None and self._prompt.score is None:
            raise ModelError(f"the model of the tier {self._tier.name!r} answered without asking whether to proceed")

    def _rule(self, at_prompt: AtPrompt, score: Score | None, so_far: Generation | None) -> None:
        # The call that is under way has its price too, and so has the prompt: `TierCost.of_prompt` tells it afterwards.
        attempt = replace(self._attempt_at("prompt", score, prompt_score=score), cost=self._cost(so_far))
        self._prompt = Prompt(score=score, seconds=attempt.seconds, cost=attempt.cost, ruling=at_prompt(attempt))

    def _attempt(self, prompt: Prompt, generation: Generation | None, score: Score | None, error: str) -> Attempt:
        if self._is_spared(prompt):
            attempt = self._attempt_at("prompt", prompt.score, prompt_score=prompt.score)
        else:
            attempt = self._attempt_at("answer", score, prompt_score=prompt.score)
        attempt = replace(
            attempt,
            error=error,
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
            stopped_at=generation.tokens if generation is self._cut else None,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An attempt that was made."""

    attempt: Attempt
    prompt: PromptRuling
    """What the policy said before a token was generated."""
    logged: str
    """The attempt's error as it may be logged: without a stranger's words."""
    sent: tuple[Message, ...] = ()
    """As `Generation.sent`."""


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
