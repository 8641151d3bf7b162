"""Attempts read back from the JSON that decisions and tickets are printed as."""

import math

from pydantic import BaseModel, ConfigDict

from ilis_guard.types import Attempt, ErrorInfo, FinishReason, Score, Stage, Statistics


class Written(BaseModel):
    """Written by ilis_guard, perhaps by a later release: what isn't needed, or isn't known yet, is passed by."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class WrittenScore(Written):
    """The typicality is null where it couldn't be told."""

    uncertainty: float
    typicality: float | None

    @property
    def made(self) -> Score:
        """The score itself."""
        return Score(uncertainty=self.uncertainty, typicality=math.nan if self.typicality is None else self.typicality)


class WrittenStatistics(Written):
    """Null where they were no numbers."""

    logprob_sum: float | None
    logprob_mean: float | None
    entropy_mean: float | None
    margin_min: float | None

    @property
    def made(self) -> Statistics:
        """The statistics themselves."""
        return Statistics(**{name: math.nan if value is None else value for name, value in self.model_dump().items()})


class WrittenAttempt(Written):
    """As `Attempt.to_dict` has it, without signatures."""

    tier: str
    stage: Stage = "answer"
    text: str
    uncertainty: float | None
    typicality: float | None
    prompt_score: WrittenScore | None = None
    prompt_seconds: float | None = None
    """None where no rule of stage `prompt` was asked; so is `prompt_cost`."""
    prompt_cost: float | None = None
    statistics: WrittenStatistics | None
    seconds: float
    tokens: int
    cost: float | None = None
    """None in those of releases that didn't keep it."""
    finish_reason: FinishReason | None
    stopped_at: int | None = None
    error: ErrorInfo | None

    @property
    def made(self) -> Attempt:
        """The attempt itself."""
        score = self.prompt_score
        return Attempt(
            **self.model_dump(exclude={"prompt_score", "statistics", "cost", "error"}),
            cost=self.cost or 0.0,
            error=self.error,
            prompt_score=None if score is None else score.made,
            statistics=None if self.statistics is None else self.statistics.made,
        )
