"""guard.yaml, `tiers`: which models there are, how they are called, and what that costs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ilis_guard.types import Generation, Precision

NAME: Final = r"^[A-Za-z][A-Za-z0-9_-]*$"
QUESTION: Final = "{question}"
"""Where the user's last turn stands in a prompt's wording."""
PACKAGED_PREFIX: Final = "packaged:"
"""Before the name of weights or bundles that come as Python packages."""

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


class RemoteConfig(_Section):
    """A LangChain chat model."""

    chat_model: str = Field(pattern=r"^[\w.]+:\w+$")
    """Import path, ``package.module:Class``."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Passed to the class. Secrets don't belong here: LangChain's integrations read them from the environment."""


class TierConfig(_Section):
    """A named model: local (`model`) or remote (`remote`)."""

    name: str = Field(pattern=NAME)
    model: str | None = Field(default=None, min_length=1)
    """A folder, a hub id, or ``packaged:NAME``."""
    remote: RemoteConfig | None = None
    precision: Precision = "full"
    prompt: str = "{question}"
    """The wording around the user's last turn. A base model needs worked examples here."""
    max_new_tokens: int = Field(default=64, ge=1)
    decoding: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    """Options of transformers' GenerationConfig, such as ``do_sample``; greedy without any."""
    device_map: str | None = Field(default=None, min_length=1)
    """A device, or ``auto`` to spread the layers over all; by default one device, CUDA where there is one."""
    batch: int = Field(default=1, ge=1)
    """So many requests that wait at the same time go through its model side by side; 1 for each by itself."""
    proof: bool = True
    """Whether each tap is disturbed once at the first start, to see that the logits move."""
    bundle: str | None = Field(default=None, min_length=1)
    """A folder, or ``packaged:NAME`` for one that comes with ilis_guard."""
    prompt_bundle: str | None = Field(default=None, min_length=1)
    """As `bundle`: fitted to the stage `prompt`, for policies with rules of that stage."""
    cost: TierCost | None = None
    """What it charges; None where that is unknown, and then a policy can't limit the cost."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """So many calls of its model are under way at once, and the others wait in line; None for any number."""
    breaker: BreakerSettings | None = None
    """When it counts as down; None for never."""
