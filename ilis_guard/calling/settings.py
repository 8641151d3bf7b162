"""What guard.yaml says of how a tier is called, and what that costs."""

from dataclasses import replace
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ilis_guard.types import Generation

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""In the currency of the policy's ``max_cost``, whichever that is."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TierCost(_Section):
    """What a tier charges. At least one of the three is given; what is left out is free."""

    per_request: Price = 0.0
    """For each call of the model, also one that failed or was given up."""
    per_million_prompt_tokens: Price = 0.0
    per_million_tokens: Price = 0.0
    """Of the answer."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"must have at least one of {names}; a tier that is free says per_request: 0")
        return self

    def of(self, calls: int, generation: Generation | None) -> float:
        """The cost of an attempt: its calls, and the tokens of what came back."""
        cost = calls * self.per_request
        if generation is not None:
            cost += _millions(generation.prompt_tokens) * self.per_million_prompt_tokens
            cost += _millions(generation.tokens) * self.per_million_tokens
        return cost

    def of_prompt(self, answer: Generation) -> float:
        """The cost of an attempt as rules of stage `prompt` see it, where the model has read the prompt by then.

        Args:
            answer: what came, or would have come, of it.
        """
        return self.of(1, replace(answer, tokens=0))


def _millions(tokens: int) -> float:
    # A user's own model may count as far as it likes; a float doesn't.
    return min(tokens, 2**63) / 1e6


class BreakerSettings(_Section):
    """When a tier counts as down."""

    failures: int = Field(default=5, ge=1)
    """So many calls in a row that fail open the breaker: the tier isn't called any more."""
    seconds: float = Field(default=30.0, gt=0, le=86_400)
    """So long after it opened, one call is let through; its outcome closes the breaker or opens it anew."""
