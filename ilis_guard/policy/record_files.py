"""Decisions and tickets read back from the JSON that they were printed as."""

import math
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ilis_guard.errors import FactsError
from ilis_guard.policy.retracing import Retold
from ilis_guard.sentences import action_behind
from ilis_guard.types import (
    Action,
    Attempt,
    FinishReason,
    Label,
    Mode,
    Score,
    ShadowRuling,
    Stage,
    Statistics,
)

M = TypeVar("M", bound=BaseModel)


def retold_in(path: Path) -> Retold:
    """Read a decision (`Decision.to_dict`, ``ask --json``) or a ticket (`TicketRecord.to_dict`, ``queue show --json``).

    Raises:
        FactsError: the file can't be read, or is neither.
    """
    try:
        text = path.read_bytes()
    except OSError as problem:
        raise FactsError(f"{path}: can't be read ({problem.strerror or problem}); check the path") from problem
    kind = _validated(path, text, _Kind)
    if kind.request is None:
        return _validated(path, text, _DecisionFile).retold
    return _validated(path, text, _TicketFile).retold


def _validated(path: Path, text: bytes, model: type[M]) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as problems:
        # What was got isn't shown: it may be a prompt or an answer.
        first = problems.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the top level"
        what = first["msg"].removeprefix("Input ")
        raise FactsError(
            f"{path}: is neither a decision nor a ticket as `ask --json` and `queue show --json` print them: "
            f"{where}: {what}"
        ) from None


class _Written(BaseModel):
    """Written by ilis_guard, perhaps by a later release: what isn't needed, or isn't known yet, is passed by."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Kind(_Written):
    """A ticket has the request in it, a decision doesn't."""

    request: Any = None


class _Score(_Written):
    uncertainty: float
    shift: float | None

    @property
    def made(self) -> Score:
        """The score itself."""
        return Score(uncertainty=self.uncertainty, shift=math.nan if self.shift is None else self.shift)


class _Statistics(_Written):
    """Null where they were no numbers."""

    logprob_sum: float | None
    logprob_mean: float | None
    entropy_mean: float | None
    margin_min: float | None

    @property
    def made(self) -> Statistics:
        """The statistics themselves."""
        return Statistics(**{name: math.nan if value is None else value for name, value in self.model_dump().items()})


class _Attempt(_Written):
    """As `Attempt.to_dict` has it, without signatures."""

    tier: str
    stage: Stage = "answer"
    text: str
    uncertainty: float | None
    shift: float | None
    prompt_score: _Score | None = None
    prompt_seconds: float | None = None
    prompt_cost: float | None = None
    statistics: _Statistics | None
    seconds: float
    tokens: int
    cost: float = 0.0
    finish_reason: FinishReason | None
    error: str

    @property
    def made(self) -> Attempt:
        """The attempt itself."""
        score = self.prompt_score
        return Attempt(
            **self.model_dump(exclude={"prompt_score", "statistics"}),
            prompt_score=None if score is None else score.made,
            statistics=None if self.statistics is None else self.statistics.made,
        )


class _Turn(_Written):
    content: str


class _Request(_Written):
    messages: tuple[_Turn, ...] = Field(min_length=1)
    labels: dict[str, Label]


class _Ticket(_Written):
    queue: str


class _ShadowRuling(_Written):
    policy: str
    action: Action | None
    rule: str | None
    reasons: tuple[str, ...]
    error: str

    @property
    def made(self) -> ShadowRuling:
        """The ruling itself."""
        return ShadowRuling(**self.model_dump())


class _DecisionFile(_Written):
    """As `Decision.to_dict` has it."""

    id: str
    action: Action
    reasons: tuple[str, ...]
    policy: str
    ticket: _Ticket | None
    attempts: tuple[_Attempt, ...] = Field(min_length=1)
    labels: dict[str, Label] | None = None
    prompt_length: int = 0
    thresholds: dict[str, float | None] = {}
    mode: Mode = "enforce"
    shadow: _ShadowRuling | None = None

    @property
    def retold(self) -> Retold:
        """The decision."""
        return Retold(
            id=self.id,
            policy=self.policy,
            action=self.action.value,
            queue="" if self.ticket is None else self.ticket.queue,
            reasons=self.reasons,
            attempts=tuple(attempt.made for attempt in self.attempts),
            labels=self.labels,
            prompt_length=self.prompt_length,
            thresholds=self.thresholds,
            mode=self.mode,
            shadow=None if self.shadow is None else self.shadow.made,
        )


class _TicketFile(_Written):
    """As `TicketRecord.to_dict` has it."""

    decision: str
    request: _Request
    reasons: tuple[str, ...]
    policy: str
    ticket: _Ticket
    attempts: tuple[_Attempt, ...] = Field(min_length=1)

    @property
    def retold(self) -> Retold:
        """The decision that it came from."""
        return Retold(
            id=self.decision,
            policy=self.policy,
            action=action_behind(self.reasons),
            queue=self.ticket.queue,
            reasons=self.reasons,
            attempts=tuple(attempt.made for attempt in self.attempts),
            labels=self.request.labels,
            prompt_length=len(self.request.messages[-1].content),
            thresholds={},
        )
