"""Tiers: a model with the scorers of its bundles."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Self

from ilis_guard import events
from ilis_guard.cascade.generation_check import check_generation
from ilis_guard.config.tiers import BreakerSettings, TierCost
from ilis_guard.errors import ConfigError, ModelError, ProfileError, ScoringError
from ilis_guard.models import Model, StepwiseModel, StoppableModel
from ilis_guard.models.answer_text import StepBuilder
from ilis_guard.policy.binding import PolicyContext
from ilis_guard.scoring import Bundle, LightGBMScorer, Scorer
from ilis_guard.scoring.rolling_profile import RollingProfile
from ilis_guard.scoring.scorer import NO_LABELS
from ilis_guard.scoring.unsupervised import UnsupervisedScorer, surprise
from ilis_guard.text import is_blank
from ilis_guard.types import (
    DEPARTURES,
    Departure,
    Fingerprint,
    Generation,
    Labels,
    Message,
    Score,
    Stage,
    Step,
    Wording,
    in_order,
    to_float,
)

Check = Callable[[str, Generation], None]
"""Called with the tier's name and a generation; raises if that can't be used as an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A named model with its scorers.

    Raises:
        BundleMismatchError: a bundle was fitted to another model.
        ProfileError: the profile holds answers that another bundle or model scored.
    """

    name: str
    model: Model
    scorer: Scorer | None = None
    """None where no bundle was fitted yet, or it was fitted to another model: answers have no score, unless there is a
    `profile`, in which their perplexities rank them."""
    profile: RollingProfile | None = None
    """The last answers of its own traffic, in which the next ones are ranked; None where they aren't followed."""
    prompt_scorer: Scorer | None = None
    """Predicts before a token is generated whether the answer will be wrong; needs a `StepwiseModel`."""
    cost: TierCost | None = None
    """Prices; None where they are unknown."""
    max_concurrent: int | None = None
    """Calls of the model under way at once; None for any number."""
    breaker: BreakerSettings | None = None
    """When its circuit opens; None for never."""
    check: Check | None = None
    """Checks an answer before it is scored, such as a chain's parser; None for no check."""

    def __post_init__(self) -> None:
        for scorer in (self.scorer, self.prompt_scorer):
            self._check_fits(scorer)
        if self.profile is not None:
            self.profile.check_fits(self._source)

    @property
    def bundle(self) -> Bundle | None:
        """The bundle that scores its answers; None where it has none."""
        return self.scorer.bundle if isinstance(self.scorer, LightGBMScorer) else None

    @property
    def prompt_bundle(self) -> Bundle | None:
        """The bundle that scores its prompts; None where it has none."""
        return self.prompt_scorer.bundle if isinstance(self.prompt_scorer, LightGBMScorer) else None

    @property
    def scores_answers(self) -> bool:
        """Whether its answers can have a score: an uncertainty, or at least a rank."""
        return self.scorer is not None or self.profile is not None

    @property
    def takes_stop(self) -> bool:
        """Whether its model ends answers at stop sequences."""
        return isinstance(self.model, StoppableModel)

    def with_model(self, model: Model) -> Self:
        """Replace the model. A bundle fitted to it is kept, so is a profile of its answers, and any other scorer.

        Answers of a model that can't be tapped, and that no bundle was fitted to, have no score, or only a rank.

        Raises:
            BundleMismatchError: the model can be tapped, and isn't the one that a bundle was fitted to; another
                wording, decoding or length of answers makes its scores uncalibrated.
            ConfigError: the tier has a prompt bundle, and the model can't stop at the prompt.
        """
        if self.prompt_scorer is not None and not isinstance(model, StepwiseModel):
            raise ConfigError(
                f"the tier {self.name!r} has a prompt bundle, and the model that takes its place can't stop at the "
                "prompt; name another tier, or take `prompt_bundle` out"
            )
        scorer, fingerprint = self.scorer, model.fingerprint
        if isinstance(scorer, LightGBMScorer) and not isinstance(fingerprint, Fingerprint):
            fitted = scorer.bundle.metadata.fingerprint
            if fingerprint is None or isinstance(fitted, Fingerprint):
                scorer = None
            elif different := fitted.hard_differences(fingerprint):
                scorer = None
                events.log().warning(events.BUNDLE_MISMATCHED, tier=self.name, differing=list(different))
        other = replace(self, model=model, scorer=scorer, profile=None)
        try:
            return replace(other, profile=self.profile)
        except ProfileError as error:
            events.log().warning(events.PROFILE_MISMATCHED, tier=self.name, error=str(error))
            return other

    def wording(self, messages: Sequence[Message]) -> Wording:
        """Find how a conversation is put to the model."""
        return Wording.of(messages, prompt=self._prompt)

    def departures(self, stage: Stage) -> tuple[Departure, ...]:
        """What makes every score of a stage's bundle uncalibrated, whatever the request; empty without a bundle."""
        bundle = self._bundle_of(stage)
        if bundle is None:
            return ()
        found, prompt = (*self._model_departures(bundle), *self._traffic_departures(stage)), self._prompt
        is_known = any(known.prompt == prompt for known in bundle.metadata.wordings)
        return in_order(found if is_known else ("wording", *found))

    def score(self, generation: Generation, wording: Wording, labels: Labels = NO_LABELS) -> Score:
        """Score an answer: numbers from 0 to 1; typicality is NaN where the scorer has none, and so is the rank.

        Without a bundle, and with a profile, it has no uncertainty (NaN) and a rank by its perplexity.

        Args:
            generation: the answer.
            wording: of the conversation that it answers.
            labels: of the request.

        Raises:
            ScoringError: the tier has neither a bundle nor a profile, the answer is empty, or it can't be scored.
            BundleMismatchError: its bundle was fitted to another model, as a remote one may have become in memory.
            ProfileError: its profile holds answers that another bundle or model scored.
        """
        if self.scorer is None and self.profile is None:
            raise ScoringError(f"the tier {self.name!r} has no bundle, so its answers have no score")
        if is_blank(generation.text):
            raise ScoringError(f"there is nothing to score: the answer is empty ({generation.tokens} tokens)")
        scorer = UnsupervisedScorer() if self.scorer is None else self.scorer
        self._check_fits(scorer)
        score = self._departing("answer", _scored(scorer, generation, wording, labels), generation, wording)
        if self.profile is None:
            return score
        return replace(score, rank=self.profile.rank(_ranked_value(score, generation), self._source))

    def follow(self, generation: Generation, score: Score) -> None:
        """Add a whole answer that was scored to the profile of the tier's traffic, where it has one.

        Raises:
            ProfileError: as `score`.
        """
        if self.profile is None:
            return
        added = self.profile.add(_ranked_value(score, generation), self._source)
        if added.problem:
            events.log().warning(events.PROFILE_NOT_STORED, tier=self.name, error=added.problem)
        if added.drift is not None:
            events.log().warning(events.PROFILE_DRIFTED, tier=self.name, **asdict(added.drift))

    def score_prompt(self, generation: Generation, wording: Wording, labels: Labels = NO_LABELS) -> Score:
        """As `score`, of a generation at the prompt.

        Raises:
            ScoringError: the tier has no prompt bundle, or the prompt can't be scored.
            BundleMismatchError: as `score`.
        """
        if self.prompt_scorer is None:
            raise ScoringError(f"the tier {self.name!r} has no prompt bundle, so its prompts have no score")
        self._check_fits(self.prompt_scorer)
        return self._departing("prompt", _scored(self.prompt_scorer, generation, wording, labels), generation, wording)

    def _check_fits(self, scorer: Scorer | None) -> None:
        if isinstance(scorer, LightGBMScorer) and (found := self.model.fingerprint) is not None:
            scorer.check_fits(found)

    def stream(self, messages: Sequence[Message], labels: Labels = NO_LABELS) -> Generator[Step, None, None]:
        """Answer step by step, each step with the score so far; closing the iterator ends the generation.

        As everywhere, what a model returns is checked, and what it thought is taken out.

        Args:
            messages: the conversation.
            labels: of the request.

        Raises:
            ModelError: the model isn't a `StepwiseModel`, failed, or returned what is no generation.
            ScoringError: a step can't be scored.
            SignatureError: an activation is missing or not finite.
        """
        if not isinstance(self.model, StepwiseModel):
            raise ModelError(f"the model of the tier {self.name!r} can't be followed: only local models stream")
        builder, wording = StepBuilder(), self.wording(messages)
        with closing(self.model.stream(messages)) as steps:
            for step in steps:
                generation = check_generation(step.generation)
                yield replace(builder.step(generation), score=self.score_so_far(generation, wording, labels))

    def score_so_far(self, generation: Generation, wording: Wording, labels: Labels = NO_LABELS) -> Score | None:
        """Score an unfinished generation; None where there is nothing to score, or no scorer.

        Raises:
            ScoringError: it can't be scored.
        """
        # A finished answer that has only the prompt's map is scored as an answer, not as a prompt.
        if generation.finish_reason is None and set(generation.signatures) == {"prompt"}:
            return None if self.prompt_scorer is None else self.score_prompt(generation, wording, labels)
        # The text so far may be one incomplete character.
        return (
            self.score(generation, wording, labels) if self.scores_answers and not is_blank(generation.text) else None
        )

    @property
    def _source(self) -> str:
        """What scores its answers: scores of one source can be compared."""
        if self.bundle is not None:
            return f"bundle {self.bundle.digest}"
        if self.scorer is not None:
            return f"{type(self.scorer).__module__}:{type(self.scorer).__qualname__}"
        found = self.model.fingerprint
        return f"perplexity of {'a model without a fingerprint' if found is None else found.source}"

    @property
    def _prompt(self) -> str:
        """The model's `Fingerprint.prompt`; empty where it has none."""
        found = self.model.fingerprint
        return found.prompt if isinstance(found, Fingerprint) else ""

    def _model_departures(self, bundle: Bundle) -> tuple[Departure, ...]:
        """What the model decodes otherwise than a bundle's, as it is now: a program may change a remote one."""
        limit = getattr(self.model, "max_new_tokens", None)
        return bundle.metadata.departures(self.model.fingerprint, limit)

    def _traffic_departures(self, stage: Stage) -> tuple[Departure, ...]:
        scorer = self.scorer if stage == "answer" else self.prompt_scorer
        return scorer.departures if isinstance(scorer, LightGBMScorer) else ()

    def _bundle_of(self, stage: Stage) -> Bundle | None:
        return self.bundle if stage == "answer" else self.prompt_bundle

    def _departing(self, stage: Stage, score: object, generation: Generation, wording: Wording) -> Score:
        """A scorer's score with the departures that the tier knows of."""
        checked, bundle = _checked(score), self._bundle_of(stage)
        if bundle is None:  # what a user's own scorer was calibrated on, only it can say
            return checked
        departures = (
            *checked.departures,
            *bundle.metadata.wording_departures(wording),
            *self._model_departures(bundle),
            *generation.departures,
        )
        return replace(checked, departures=in_order(departures))


def _scored(scorer: Scorer, generation: Generation, wording: Wording, labels: Labels) -> object:
    """Score; a bundle's traffic profile asks how the request was put, and of what kind it is."""
    if isinstance(scorer, LightGBMScorer):
        return scorer.score(generation, wording, labels)
    return scorer.score(generation)


def _checked(score: object) -> Score:
    """Convert to Python's numbers: NumPy's aren't valid JSON."""
    if not isinstance(score, Score):
        raise ScoringError(f"a scorer returns a Score, got a {type(score).__name__}")
    if unknown := [name for name in score.departures if name not in DEPARTURES]:
        raise ScoringError(f"a score's departures are among {DEPARTURES!r}, got {unknown[0]!r:.60}")
    # Only without labelled rows is there no probability; from a scorer that has some, NaN is a failure.
    uncertainty = _number("uncertainty", score.uncertainty)
    is_unknown = math.isnan(uncertainty) and "labels" in score.departures
    return Score(
        uncertainty=uncertainty if is_unknown else _share("uncertainty", uncertainty),
        typicality=_share_or_nan("typicality", score.typicality),
        rank=_share_or_nan("rank", score.rank),
        departures=in_order(score.departures),
    )


def _ranked_value(score: Score, generation: Generation) -> float:
    """What ranks an answer among others."""
    return surprise(generation) if math.isnan(score.uncertainty) else score.uncertainty


def _number(name: str, value: object) -> float:
    number = to_float(value)
    if number is None:
        raise ScoringError(f"the {name} must be a number, got a {type(value).__name__}")
    return number


def _share_or_nan(name: str, value: object) -> float:
    number = _number(name, value)
    return number if math.isnan(number) else _share(name, number)


def _share(name: str, value: float) -> float:
    # Also false for NaN.
    if not 0 <= value <= 1:
        raise ScoringError(f"the {name} must lie between 0 and 1, got {value!r}")
    return value


def policy_context(tiers: Sequence[Tier], *, has_queue: bool) -> PolicyContext:
    """The context of policies over these tiers."""
    return PolicyContext(
        tiers=tuple(tier.name for tier in tiers),
        bundles=lambda: {tier.name: tier.bundle for tier in tiers if tier.bundle is not None},
        prompt_bundles=lambda: {tier.name: tier.prompt_bundle for tier in tiers if tier.prompt_bundle is not None},
        prompts_scored_by=tuple(tier.name for tier in tiers if tier.prompt_scorer is not None),
        without_cost=tuple(tier.name for tier in tiers if tier.cost is None),
        has_queue=has_queue,
    )
