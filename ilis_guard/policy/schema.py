"""The policy language, version 1: the shape of a policy file.

What a shape can't say (conditions that compile, rules that can be reached) is checked by `policy.loading`.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from ilis_guard.types import Action, Stage

VERSION: Final = 1
"""Of the language, apart from the package's."""


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


class PolicyFile(_Strict):
    """A whole policy file."""

    version: Literal[1]
    name: Name
    description: str | None = None
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
