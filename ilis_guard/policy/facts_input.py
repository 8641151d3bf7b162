"""Facts that a person writes down, to ask what a policy would say to them."""

import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ilis_guard.config.base import StrictModel
from ilis_guard.config.strict_yaml import Document, parse, read
from ilis_guard.config.validation import validate
from ilis_guard.errors import FactsError
from ilis_guard.types import Label, Statistics

INLINE: Final = "--facts"
"""What messages call facts that stand in the command itself."""


def _label_name(value: str) -> str:
    if not value.isidentifier():
        raise ValueError("must be an identifier: conditions say labels.NAME")
    return value


def _label(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool):
        raise ValueError("must be a text, a number, true or false")  # noqa: TRY004  # pydantic wants a ValueError
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
LabelName = Annotated[str, AfterValidator(_label_name)]
LabelValue = Annotated[Label, BeforeValidator(_label)]


class GivenStatistics(StrictModel):
    """Those that are left out are missing."""

    logprob_sum: float = math.nan
    logprob_mean: float = math.nan
    entropy_mean: float = math.nan
    margin_min: float = math.nan


class GivenFacts(StrictModel):
    """Facts as a rule's condition names them. Those that are left out are as `Facts` has them."""

    uncertainty: Share | None = None
    typicality: Share | None = None
    calibrated: bool = True
    rank: Share | None = None
    threshold: Share | None = None
    tier: str = ""
    last_tier: bool = True
    attempt: Annotated[int, Field(ge=1)] = 1
    tokens: Count = 0
    seconds: Amount = 0.0
    cost: Amount = 0.0
    prompt_length: Count = 0
    text_length: Count = 0
    finish_reason: Literal["stop", "length", ""] = ""
    labels: dict[LabelName, LabelValue] = Field(default_factory=dict)
    error: str = ""
    statistics: GivenStatistics | None = None
    sampling_key: str = ""
    """What samples are drawn from: a decision's id."""

    @property
    def values(self) -> dict[str, Any]:
        """The facts that were given, as `Facts` takes them."""
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        if self.statistics is not None:
            given["statistics"] = Statistics(**self.statistics.model_dump())
        return given


def given_facts(text: str) -> dict[str, Any]:
    """Read facts: YAML or JSON itself, or the path of a file that holds it, with or without ``@`` before it.

    Returns:
        What `Facts` takes, without what wasn't given.

    Raises:
        FactsError: the file can't be read, or a fact is unknown or of the wrong type; with ``file:line:column``.
    """
    is_inline = text.lstrip().startswith("{") or ": " in text or "\n" in text
    document = parse(text, path=INLINE, error=FactsError) if is_inline else _file(text.removeprefix("@"))
    if "certified" in document.data:
        raise FactsError(
            f"{document.key_place(('certified',))}: `certified` follows from `uncertainty` and `threshold`; give those"
        )
    return validate(document, GivenFacts, error=FactsError).values


def _file(path: str) -> Document:
    return read(Path(path), error=FactsError)
