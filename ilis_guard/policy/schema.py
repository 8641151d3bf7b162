"""The policy language, version 1: the shape of a policy file, also as a JSON Schema for editors.

What a shape can't say (conditions that compile, rules that can be reached) is checked by `policy.loader`.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ilis_guard.config.base import StrictModel
from ilis_guard.text import is_blank
from ilis_guard.types import Action, Mode, Stage
from ilis_guard.types.requests import nfc

VERSION: Final = 1
"""Of the language, apart from the package's."""
JSON_SCHEMA_FILE: Final = Path(__file__).with_name("policy.schema.json")
"""The JSON Schema, which a policy's first line can name: ``# yaml-language-server: $schema=PATH``."""
LONGEST_DUE: Final = 36_525 * 86_400.0
"""Seconds: a century, as long as the review queue lets a ticket wait."""
SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
"""By unit of a duration."""

MAX_RULES: Final = 200
"""More than anybody reads, and all are looked at in every decision."""


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
    if isinstance(value, int | float):
        raise ValueError("must be a condition in CEL, `uncertainty < 0.2` say")  # noqa: TRY004  # as above
    if isinstance(value, list | dict):
        remedy = "`uncertainty < 0.2 && last_tier` say; one that starts with [ or { stands in quotes"
        raise ValueError(f"must be one condition in CEL, {remedy}")  # noqa: TRY004  # as above
    return value


def _share(value: Any) -> Any:
    """Say how a percentage is written here."""
    is_percentage = isinstance(value, str) and "%" in value
    if is_percentage or (isinstance(value, int | float) and value > 1):
        raise ValueError("must be a share, from 0 to 1: write 0.05 for 5 %")
    return value


def _not_blank(value: str) -> str:
    if is_blank(value):
        raise ValueError("is empty; leave the key out instead")
    return value


def _without_spaces(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value):
        raise ValueError("must be a letter, and then only letters, digits, - and _, as in `sure-enough`")
    return value


def _duration_text(value: Any) -> Any:
    if not isinstance(value, str) or math.isnan(seconds(value)):
        raise ValueError("must be a number and its unit, s, m, h or d, without a space: 90s, 15m, 4h or 2d")
    return value


def _duration(value: str) -> str:
    if not 0 < seconds(value) <= LONGEST_DUE:
        raise ValueError("must be longer than nothing and at most a century (36525d)")
    return value


def seconds(duration: str) -> float:
    """The seconds of a duration such as ``90s``, ``15m``, ``4h`` or ``2d``; NaN for any other text."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", duration)
    return float(match[1]) * SECONDS[match[2]] if match else float("nan")


Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^\S(.*\S)?$"), AfterValidator(nfc)]
"""Of a tier, a queue or a policy: any text on one line without spaces around it."""
Id = Annotated[
    str, StringConstraints(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$"), BeforeValidator(_without_spaces)
]
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
    BeforeValidator(_duration_text),
    BeforeValidator(_given("leave it out for the queue's own time")),
]
Sample = Annotated[float, Field(gt=0, le=1), BeforeValidator(_share)]
OptionalSample = Annotated[Sample | None, BeforeValidator(_given("leave it out for all requests"))]


class _Strict(StrictModel):
    # What stands under a field is its description in the JSON Schema: what an editor shows.
    model_config = ConfigDict(use_attribute_docstrings=True)


def _only_with(key: str, *actions: Action) -> dict[str, Any]:
    """In JSON Schema: a key goes with these actions only."""
    others = [action.value for action in Action if action not in actions]
    return {"if": {"properties": {"do": {"enum": others}}, "required": ["do"]}, "then": {"properties": {key: False}}}


_ANSWERS: Final[dict[str, Any]] = {"properties": {"do": {"const": "answer"}}, "required": ["do"]}
_EARLY: Final[dict[str, Any]] = {"properties": {"stage": {"const": "prompt"}}, "required": ["stage"]}


class Rule(_Strict):
    """A rule: where its condition holds, its action is taken. The first rule that holds decides."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                _only_with("to", Action.RETRY, Action.ESCALATE),
                _only_with("say", Action.ABSTAIN, Action.ESCALATE),
                _only_with("due", Action.ESCALATE),
                {"if": _EARLY, "then": {"properties": {"do": {"enum": ["abstain", "retry", "escalate"]}}}},
                {
                    "if": _ANSWERS,
                    "then": {
                        "required": ["when"],
                        "properties": {"when": {"pattern": "uncertainty|typicality|rank|certified"}},
                    },
                },
            ]
        }
    )

    id: Annotated[Id, Field(examples=["sure-enough"])]
    """The rule's name in every decision. Each rule has its own."""
    stage: Stage = "answer"
    """When the rule is asked: `answer` (as where it is left out), once there is an answer; `prompt`, once the model has
    read the prompt and before it writes: nothing can be answered there, but an answer can be spared."""
    when: Annotated[
        OptionalWhen,
        Field(
            examples=[
                "calibrated && uncertainty < 0.2 && typicality >= 0.01",
                "!calibrated && rank < 0.6",
                "certified",
                "has(labels.topic) && labels.topic == 'legal'",
            ],
            json_schema_extra={"pattern": r"\S", "maxLength": 2000},
        ),
    ] = None
    """A condition in CEL; without it the rule always holds. May look at: uncertainty, typicality, calibrated, rank,
    threshold, certified, tier, last_tier, attempt, tokens, seconds, cost, prompt_length, text_length, finish_reason,
    error, statistics.logprob_sum, statistics.logprob_mean, statistics.entropy_mean, statistics.margin_min, and
    labels.NAME (ask `has(labels.NAME)` first). Fractions are compared with fractions: 1.0, not 1."""
    do: Action
    """What is done: `answer`, `abstain`, `retry` (on a larger tier) or `escalate` (to a queue of people)."""
    to: Annotated[OptionalTo, Field(examples=["support"])] = None
    """With retry, a tier's name (left out: the next larger one). With escalate, a queue's (left out: `default`)."""
    say: Annotated[
        OptionalSay,
        Field(examples=["A colleague will look at your question."], json_schema_extra={"pattern": r"\S"}),
    ] = None
    """With abstain and escalate: the message for the caller."""
    due: Annotated[OptionalDue, Field(examples=["90s", "15m", "4h", "2d"])] = None
    """With escalate: how long until the ticket is overdue. Left out: the queue's own time."""
    sample: Annotated[OptionalSample, Field(examples=[0.1])] = None
    """The rule holds only for this share of requests, above 0 to 1; the same requests every time. Left out: all."""

    @property
    def due_seconds(self) -> float | None:
        """Seconds until the ticket is overdue; None for the queue's own time."""
        return None if self.due is None else seconds(self.due)


_KINDS: Final = ("max_error", "min_coverage", "max_reviews_per_hour")


class Guarantee(_Strict):
    """What holds of the answers, with a stated confidence: one of three kinds.

    It becomes a threshold per tier. An answer up to it is `certified`, and nothing else is answered.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [kind]} for kind in _KINDS],
            "dependentRequired": {
                "max_reviews_per_hour": ["requests_per_hour"],
                "requests_per_hour": ["max_reviews_per_hour"],
            },
        }
    )

    max_error: Annotated[float, Field(gt=0, lt=1, examples=[0.05]), BeforeValidator(_share)] | None = None
    """Of the answered requests, at most this share is wrong."""
    min_coverage: Annotated[float, Field(gt=0, le=1, examples=[0.8]), BeforeValidator(_share)] | None = None
    """At least this share of requests is certified."""
    max_reviews_per_hour: Annotated[float, Field(gt=0, examples=[20])] | None = None
    """At most so many requests an hour aren't certified, at the traffic of `requests_per_hour`."""
    requests_per_hour: Annotated[float, Field(gt=0, examples=[400])] | None = None
    """The traffic that is expected; only with `max_reviews_per_hour`."""
    confidence: Annotated[float, Field(gt=0, lt=1, examples=[0.95]), BeforeValidator(_share)] = 0.95
    """How sure that is: in at least this share of calibrations it holds."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in _KINDS) != 1:
            raise ValueError("must be of one kind: `max_error`, `min_coverage` or `max_reviews_per_hour`")
        if (self.max_reviews_per_hour is None) is not (self.requests_per_hour is None):
            raise ValueError("`max_reviews_per_hour` and `requests_per_hour` (the traffic) need one another")
        return self


class Budget(_Strict):
    """What a request may take, all its attempts together. At least one limit."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    max_seconds: Annotated[float, Field(gt=0, examples=[10])] | None = None
    """When they are over nothing is answered: that's an error, which rules see as `error`."""
    max_attempts: Annotated[int, Field(ge=1, examples=[2])] | None = None
    """When they are made, no larger tier is left."""
    max_cost: Annotated[float, Field(gt=0, examples=[0.02])] | None = None
    """When it is spent, no larger tier is left. In the unit of guard.yaml's prices."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.max_seconds is None and self.max_attempts is None and self.max_cost is None:
            raise ValueError("must limit something: `max_seconds`, `max_attempts` or `max_cost`")
        return self


class Audit(_Strict):
    """A share of the answered requests that a person looks at all the same. The caller gets the answer at once."""

    fraction: Annotated[Sample, Field(examples=[0.02])]
    """The share, above 0 to 1."""
    queue: Annotated[Name, Field(examples=["audits"])]
    """Where their tickets wait."""


class ColdStart(_Strict):
    """What is done with answers that can't be ranked yet, since too little of their tier's own traffic is known.

    Only with a tier that has no bundle, and a rolling profile: it can rank answers once it has twenty of them.
    """

    enforced: Annotated[Sample, Field(examples=[0.2])]
    """Of the requests whose answer the rules would give if it were among the surest, this share, above 0 to 1: for
    these the rules decide, without a rank. The others' answers are given UNGUARDED, and what the rules say is only
    recorded, as in the mode `shadow`."""


class PolicyFile(_Strict):
    """What to do with a model's answers: rules, from top to bottom; the first that holds decides."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["guarantee", "cold_start"]}})

    version: Literal[1]
    """Of the policy language."""
    name: Annotated[Name, Field(examples=["customer-support"])]
    """What people call the policy."""
    description: Annotated[str | None, Field(examples=["Answer when sure, otherwise ask a person."])] = None
    """What the policy is for."""
    mode: Mode = "enforce"
    """`enforce` (as where it is left out): what the policy says is done. `shadow`: it is only recorded, and callers get
    what they would get without the policy."""
    guarantee: Annotated[Guarantee | None, Field(examples=[{"max_error": 0.05, "confidence": 0.95}])] = None
    """What holds of the answers; `certified` and `threshold` come from it. Left out: nothing is promised."""
    budget: Annotated[Budget | None, Field(examples=[{"max_seconds": 10, "max_attempts": 2}])] = None
    """What a request may take. Left out: whatever it takes."""
    audit: Annotated[Audit | None, Field(examples=[{"fraction": 0.02, "queue": "audits"}])] = None
    """Which answered requests a person looks at all the same. Left out: none."""
    cold_start: Annotated[ColdStart | None, Field(examples=[{"enforced": 0.2}])] = None
    """What is done until answers can be ranked. Left out: the rules decide, and without a score they answer nothing."""
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=MAX_RULES)]
    """From top to bottom; where none holds, the guard abstains."""


def json_schema() -> dict[str, Any]:
    """The shape as a JSON Schema, draft 2020-12: an editor completes keys by it, and underlines what is wrong."""
    schema = PolicyFile.model_json_schema(schema_generator=_SchemaGenerator)
    return {"$schema": _SchemaGenerator.schema_dialect, **schema, "title": f"ilis_guard policy, version {VERSION}"}


def json_schema_text() -> str:
    """The JSON Schema as the shipped file has it."""
    return json.dumps(json_schema(), indent=2) + "\n"


def with_local_schema(text: str) -> str:
    """A shipped policy's text for a folder that also holds the JSON Schema."""
    name = JSON_SCHEMA_FILE.name
    return text.replace(f"$schema=../ilis_guard/policy/{name}", f"$schema={name}", 1)


class _SchemaGenerator(GenerateJsonSchema):
    """A key without a value is refused, so none takes null; and no title but the keys themselves."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default") is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002  # none has one
        return False
