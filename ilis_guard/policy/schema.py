"""The policy language, version 1: the shape of a policy file.

What a shape can't say (conditions that compile, rules that can be reached) is checked by `policy.loading`.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from ilis_guard.types import Action, Mode, Stage

VERSION: Final = 1
"""Of the language, apart from the package's."""
LONGEST_DUE: Final = 36_525 * 86_400.0
"""Seconds: a century, as long as the review queue lets a ticket wait."""
SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
"""By unit of a duration."""


def _given(remedy: str) -> Callable[[Any], Any]:
    """Refuse a key that is there without a value: nobody can tell what was meant."""

    def check(value: Any) -> Any:
        if value is None:
            raise ValueError(f"has no value; {remedy}")
        return value

    return check


def _condition_text(value: Any) -> Any:
    if isinstance(value, bool):
        remedy = "leave `when` out for a rule that always holds" if value else "delete a rule that never holds"
        raise ValueError(f"must be a condition in CEL; {remedy}")  # noqa: TRY004  # pydantic wants a ValueError
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; leave the key out instead")
    return value


def _duration(value: str) -> str:
    if not 0 < seconds(value) <= LONGEST_DUE:
        raise ValueError("must be longer than nothing and at most a century (36525d)")
    return value


def seconds(duration: str) -> float:
    """The seconds of a duration such as ``90s``, ``15m``, ``4h`` or ``2d``; NaN for any other text."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", duration)
    return float(match[1]) * SECONDS[match[2]] if match else float("nan")


Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^\S(.*\S)?$")]
"""Of a tier, a queue or a policy: any text on one line without spaces around it."""
Id = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
# Validators stand around `str | None`, not inside it: a bare `when:` must not pass for a rule that always holds.
OptionalWhen = Annotated[
    str | None,
    AfterValidator(_not_blank),
    BeforeValidator(_condition_text),
    BeforeValidator(_given("leave `when` out for a rule that always holds")),
]
OptionalTo = Annotated[Name | None, BeforeValidator(_given("leave it out for the usual target"))]
OptionalSay = Annotated[
    Annotated[str, StringConstraints(max_length=2000)] | None,
    AfterValidator(_not_blank),
    BeforeValidator(_given("leave it out to say nothing")),
]
OptionalDue = Annotated[
    Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?[smhd]$"), AfterValidator(_duration)] | None,
    BeforeValidator(_given("leave it out for the queue's own time")),
]
Sample = Annotated[float, Field(gt=0, le=1)]
OptionalSample = Annotated[Sample | None, BeforeValidator(_given("leave it out for all requests"))]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Rule(_Strict):
    """One rule: where its condition holds, its action is taken."""

    id: Id
    stage: Stage = "answer"
    """`prompt`: the rule is asked before a token is generated, and may spare the answer."""
    when: OptionalWhen = None
    """A condition in CEL over facts; None holds always."""
    do: Action
    to: OptionalTo = None
    """A tier's name for retry (None: the next larger), a queue's for escalate (None: `default`)."""
    say: OptionalSay = None
    """What the caller is told, for abstain and escalate."""
    due: OptionalDue = None
    """For escalate: time until the ticket is overdue, such as ``90s``, ``15m``, ``4h`` or ``2d``."""
    sample: OptionalSample = None
    """The rule holds for this share of requests only, drawn by `sampling.drawn`; None for all."""

    @property
    def due_seconds(self) -> float | None:
        """Seconds until the ticket is overdue; None for the queue's own time."""
        return None if self.due is None else seconds(self.due)


class Guarantee(_Strict):
    """What holds of the answers, with a stated confidence: one of three kinds.

    It becomes a threshold per tier, the fact `threshold`; what it covers is `certified`, and nothing else is answered.
    """

    max_error: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of the answered requests, at most this share is wrong."""
    min_coverage: Annotated[float, Field(gt=0, le=1)] | None = None
    """At least this share of requests is covered."""
    max_reviews_per_hour: Annotated[float, Field(gt=0)] | None = None
    """At most so many requests an hour aren't covered, at the traffic of `requests_per_hour`."""
    requests_per_hour: Annotated[float, Field(gt=0)] | None = None
    """The traffic that is expected; only with `max_reviews_per_hour`."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        kinds = (self.max_error, self.min_coverage, self.max_reviews_per_hour)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("must be of one kind: `max_error`, `min_coverage` or `max_reviews_per_hour`")
        if (self.max_reviews_per_hour is None) is not (self.requests_per_hour is None):
            raise ValueError("`max_reviews_per_hour` and `requests_per_hour` (the traffic) need one another")
        return self


class Budget(_Strict):
    """What a request may take, all its attempts together."""

    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """When they are over nothing is answered: that's an error."""
    max_attempts: Annotated[int, Field(ge=1)] | None = None
    """When they are made, no larger tier is left."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """When it is spent, no larger tier is left. In the unit of guard.yaml's prices."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.max_seconds is None and self.max_attempts is None and self.max_cost is None:
            raise ValueError("must limit something: `max_seconds`, `max_attempts` or `max_cost`")
        return self


class Audit(_Strict):
    """Answered requests that a person looks at all the same."""

    fraction: Sample
    """This share of them, drawn by `sampling.drawn`."""
    queue: Name


class PolicyFile(_Strict):
    """A whole policy file."""

    version: Literal[1]
    name: Name
    description: str | None = None
    mode: Mode = "enforce"
    guarantee: Guarantee | None = None
    budget: Budget | None = None
    audit: Audit | None = None
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
