"""Rulings: what a policy says to one attempt, rule by rule, as data; `policy.explain` makes sentences of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final, Literal, Self

from ilis_guard.errors import IlisGuardError, error_text, public_class

Stage = Literal["prompt", "answer"]
"""When a rule may act: once the prompt was read and before a token is generated, or on the answer."""
STAGES: Final[tuple[Stage, ...]] = ("prompt", "answer")
Mode = Literal["enforce", "shadow"]
"""Whether a policy decides, or only says what it would have decided."""
FactValue = bool | int | float | str
"""The value of a fact or a label."""


class Action(StrEnum):
    """What is done with an answer."""

    ANSWER = "answer"
    ABSTAIN = "abstain"
    RETRY = "retry"
    ESCALATE = "escalate"


Outcome = Literal["decided", "not_held", "not_sampled", "failed", "obstructed"]
"""What became of a rule: it decided; its condition was false; its `sample` left the request out; its condition
couldn't be evaluated; or it held, and an obstacle kept it from acting."""
ObstacleKind = Literal[
    "attempt_failed",
    "no_score",
    "not_calibrated",
    "not_certified",
    "missing_fact",
    "no_larger_tier",
    "same_tier",
    "not_a_larger_tier",
    "invalid_labels",
    "stopped_early",
    "rule_failed",
    "rule_undetermined",
]
"""Why a rule that holds can't act. The last four block every answer: rules can't look at the labels, a stream stopped
the answer early, or an earlier rule failed or might have held if a missing fact were known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a rule that holds can't act. Fields that don't belong to the kind keep their defaults."""

    kind: ObstacleKind
    rule: str = ""
    """Id of the earlier rule that blocks the answer."""
    fact: str = ""
    """The fact that is missing."""
    tier: str = ""
    """The tier that a retry can't go to."""
    threshold: float | None = None
    """The uncertainty, 0 to 1, up to which the guarantee holds; None where nothing is certified."""
    tokens: int | None = None
    """Answer tokens there were when the answer was stopped early."""
    detail: str = ""
    """What is wrong with the labels or the condition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOutcome:
    """What a condition, or a part of one, came to."""

    condition: str
    """On one line, shortened where it is long."""
    value: bool
    facts: Mapping[str, FactValue | None]
    """The facts and labels (``labels.NAME``) that it reads; None where one is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOutcome:
    """What became of one rule."""

    rule: str
    """Id of the rule."""
    stage: Stage
    outcome: Outcome
    parts: tuple[PartOutcome, ...] = ()
    """The parts of its condition that made it true, or the whole of one that was false. Empty where it has none."""
    sample: float | None = None
    """The rule's `sample`, 0 to 1, where it has one."""
    obstacle: Obstacle | None = None
    """Where the outcome is `obstructed`."""
    condition: str = ""
    """The condition that couldn't be evaluated, where the outcome is `failed`."""
    detail: str = ""
    """Why it couldn't."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentBudget:
    """The part of a policy's budget that is spent, so that no larger tier may be tried."""

    limit: Literal["max_seconds", "max_attempts", "max_cost"]
    value: float
    """The limit's value in the policy: seconds, attempts, or the unit of guard.yaml's prices."""
    is_known: bool = True
    """False where the cost isn't known, because a provider didn't say what a reply took: it counts as spent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What a policy says to one attempt."""

    action: Action
    rule: str | None
    """Id of the rule that decided; None where no rule held."""
    stage: Stage = "answer"
    """When it decided."""
    to: str | None = None
    """A queue's name for escalate; a tier's for retry, or None for the next larger; None for other actions."""
    say: str = ""
    """The message for the caller; may be empty."""
    due: float | None = None
    """Seconds until an escalated request's ticket is overdue; None for the queue's own time, and for other actions."""
    outcomes: tuple[RuleOutcome, ...] = ()
    """Of each rule that was looked at, in order, those of stage `prompt` first; the last one says what decided, unless
    no rule held."""
    spent: SpentBudget | None = None
    """Why no larger tier was left, where one would have been."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = json_values(self)
        return values

    def for_callers(self) -> dict[str, Any]:
        """As JSON values, without facts and details: which rules were looked at, and what became of them."""
        return {
            "action": self.action.value,
            "rule": self.rule,
            "stage": self.stage,
            "outcomes": [
                {
                    "rule": one.rule,
                    "stage": one.stage,
                    "outcome": one.outcome,
                    "obstacle": None if one.obstacle is None else one.obstacle.kind,
                }
                for one in self.outcomes
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRuling:
    """What a policy says before a token is generated. It never answers: there is nothing to answer with."""

    ruling: Ruling | None = None
    """None where no rule of stage `prompt` held: the model goes on to answer."""
    outcomes: tuple[RuleOutcome, ...] = ()
    """Of each rule of that stage that was looked at."""
    answer_blocked_by: Obstacle | None = None
    """Why no rule may answer afterwards: a rule that couldn't be evaluated might have stopped it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """An error as data. `kind` and `message` are for callers; `detail` is for operators and reviewers only."""

    kind: str
    """The name of a class in `ilis_guard.errors`; ``UnexpectedError`` for any other exception."""
    message: str
    """A sentence by kind alone: it quotes neither the exception nor the request."""
    detail: str = field(default="", repr=False)
    """The exception's own text, cut; it may quote a prompt, a key, a path or a host."""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Describe an exception."""
        known = public_class(error)
        if known is None:
            detail = f"{type(error).__name__}: {error_text(error)}"
            return cls(kind="UnexpectedError", message=IlisGuardError.caller_message, detail=detail)
        return cls(kind=known.__name__, message=known.caller_message, detail=error_text(error))

    def for_callers(self) -> dict[str, str]:
        """As JSON values, without the detail."""
        return {"kind": self.kind, "message": self.message}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowNote:
    """What limits a shadow ruling."""

    kind: Literal["prompt_not_scored", "answer_spared", "answer_stopped_early", "tier_not_tried"]
    tier: str
    tokens: int | None = None
    """Answer tokens there were when the answer was stopped early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowRuling:
    """What a policy in shadow would have decided."""

    policy: str
    """Its fingerprint."""
    action: Action | None
    """`retry` where it wants a tier that wasn't tried; None where that depends on an answer that was never made, or
    where evaluating it failed."""
    rule: str | None
    """Id of the rule that would have decided; None where no rule held."""
    rulings: tuple[Ruling, ...] = ()
    """One an attempt, as far as the recorded attempts go."""
    notes: tuple[ShadowNote, ...] = ()
    error: ErrorInfo | None = None
    """Why it couldn't be evaluated; the decision isn't affected."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values: dict[str, Any] = json_values(self)
        return values

    def for_callers(self) -> dict[str, Any]:
        """As JSON values, without facts and details."""
        return {
            "policy": self.policy,
            "action": None if self.action is None else self.action.value,
            "rule": self.rule,
            "rulings": [ruling.for_callers() for ruling in self.rulings],
            "error": None if self.error is None else self.error.for_callers(),
        }


def json_values(value: Any) -> Any:
    """Frozen dataclasses, mappings and tuples as JSON values; a number that isn't finite is null."""
    if is_dataclass(value):
        return {each.name: json_values(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_values(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [json_values(each) for each in value]
    if isinstance(value, StrEnum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rulings(values: Any) -> tuple[Ruling, ...]:
    """Rulings from their JSON values.

    Raises:
        ValueError: they aren't rulings.
    """
    rulings: tuple[Ruling, ...] = _adapter(tuple[Ruling, ...]).validate_python(values)
    return rulings


def read_shadow_ruling(values: Any) -> ShadowRuling:
    """A shadow ruling from its JSON values.

    Raises:
        ValueError: it isn't one.
    """
    ruling: ShadowRuling = _adapter(ShadowRuling).validate_python(values)
    return ruling


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # nobody who only decides needs it

    return TypeAdapter(kind)
