"""Read decisions, tickets and verdicts back from the JSON that they were printed as."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ilis_guard.errors import AttemptsError, FactsError
from ilis_guard.policy.replay import DecisionRecord
from ilis_guard.types import (
    STATISTICS,
    Action,
    Attempt,
    Departure,
    ErrorInfo,
    FinishReason,
    Generation,
    Label,
    Mode,
    Position,
    Role,
    Ruling,
    ShadowRuling,
    Signature,
    Stage,
    Statistics,
    Ticket,
    TicketKind,
    TicketState,
    Verdict,
)
from ilis_guard.types.decisions import read_attempt

M = TypeVar("M", bound=BaseModel)
Share = Annotated[float, Field(ge=0, le=1)]


def _of_a_square(values: tuple[float, ...]) -> tuple[float, ...]:
    if math.isqrt(len(values)) ** 2 != len(values):
        raise ValueError(f"a map has as many rows as columns, and {len(values)} numbers make no square")
    return values


FlatMap = Annotated[tuple[float, ...], Field(strict=False), AfterValidator(_of_a_square)]
"""A map, row by row."""


class _Record(BaseModel):
    """What ilis_guard wrote, perhaps a later release: keys that aren't needed, or aren't known yet, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class ScoreJson(_Record):
    """`Score.to_dict`."""

    uncertainty: float
    typicality: float | None
    rank: float | None
    departures: Annotated[tuple[Departure, ...], Field(strict=False)]

    @property
    def calibrated(self) -> bool:
        """As `Score.calibrated`."""
        return not self.departures


class StatisticsJson(_Record):
    """`Statistics.to_dict`; null where a statistic was not finite."""

    logprob_sum: float | None = None
    logprob_mean: float | None = None
    entropy_mean: float | None = None
    margin_min: float | None = None


class AttemptJson(_Record):
    """`Attempt.to_dict`, without signatures."""

    tier: str
    stage: Stage
    text: str
    uncertainty: float | None
    typicality: float | None
    rank: float | None
    departures: Annotated[tuple[Departure, ...], Field(strict=False)]
    prompt_score: ScoreJson | None
    prompt_seconds: float | None
    prompt_cost: float | None
    statistics: StatisticsJson | None
    seconds: float
    prompt_tokens: int | None
    tokens: int | None
    cost: float | None
    finish_reason: FinishReason | None
    stopped_at: int | None
    error: ErrorInfo | None

    @property
    def attempt(self) -> Attempt:
        """The attempt itself."""
        return read_attempt(self.model_dump())


class TicketJson(_Record):
    """`Ticket.to_dict`, as far as explanations need it."""

    id: str
    queue: str
    state: TicketState
    kind: TicketKind
    created_at: float
    verdict: Annotated[Verdict | None, Field(strict=False)] = None

    @property
    def ticket(self) -> Ticket:
        """The ticket itself."""
        return Ticket(**self.model_dump())


class MessageJson(_Record):
    """A message of a conversation."""

    role: Role
    content: str


class RequestJson(_Record):
    """`Request.to_dict`."""

    messages: tuple[MessageJson, ...] = Field(min_length=1)
    labels: dict[str, Label]


class DecisionJson(_Record):
    """`Decision.to_dict`, a line of `ilis-guard ask --json`."""

    id: str
    action: Annotated[Action, Field(strict=False)]
    rulings: Annotated[tuple[Ruling, ...], Field(strict=False)]
    policy: str
    ticket: TicketJson | None
    ticket_error: ErrorInfo | None
    attempts: tuple[AttemptJson, ...] = Field(min_length=1)
    labels: dict[str, Label]
    prompt_length: int
    thresholds: dict[str, float | None]
    bundles: Mapping[str, str | None]
    mode: Mode
    shadow: ShadowRuling | None

    @property
    def record(self) -> DecisionRecord:
        """The decision."""
        return DecisionRecord(
            id=self.id,
            policy=self.policy,
            action=self.action,
            ticket=None if self.ticket is None else self.ticket.ticket,
            ticket_error=self.ticket_error,
            rulings=self.rulings,
            attempts=tuple(attempt.attempt for attempt in self.attempts),
            labels=self.labels,
            prompt_length=self.prompt_length,
            thresholds=self.thresholds,
            mode=self.mode,
            shadow=self.shadow,
        )


class TicketRecordJson(_Record):
    """`TicketRecord.to_dict`, which `ilis-guard queue show --json` prints."""

    decision: str
    request: RequestJson
    rulings: Annotated[tuple[Ruling, ...], Field(strict=False)]
    policy: str
    ticket: TicketJson
    attempts: tuple[AttemptJson, ...] = Field(min_length=1)

    @property
    def record(self) -> DecisionRecord:
        """The decision that the ticket came from."""
        return DecisionRecord(
            id=self.decision,
            policy=self.policy,
            action=Action.ANSWER if self.ticket.kind == "audited" else Action.ESCALATE,
            ticket=self.ticket.ticket,
            rulings=self.rulings,
            attempts=tuple(attempt.attempt for attempt in self.attempts),
            labels=self.request.labels,
            prompt_length=len(self.request.messages[-1].content),
            thresholds={},
        )


def _square(rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    if any(len(row) != len(rows) for row in rows):
        raise ValueError("a signature has as many rows as columns")
    return rows


class TappedAttemptJson(AttemptJson):
    """`Attempt.to_dict`, with its signatures."""

    signatures: Mapping[Position, Annotated[tuple[tuple[float, ...], ...], AfterValidator(_square)]]

    @property
    def generation(self) -> Generation:
        """What the model returned, as far as it was kept."""
        made = self.attempt
        with np.errstate(over="ignore"):  # it becomes infinite, which is never scored
            signatures = {position: np.array(rows, dtype=np.float32) for position, rows in self.signatures.items()}
        return Generation(
            text=made.text,
            tokens=made.tokens,
            prompt_tokens=made.prompt_tokens,
            finish_reason=made.finish_reason,
            seconds=made.seconds,
            signatures=signatures,
            statistics=made.statistics,
        )


class TappedDecisionJson(DecisionJson):
    """As `DecisionJson`, with the signatures of its attempts."""

    attempts: tuple[TappedAttemptJson, ...] = Field(min_length=1)


class VerdictJson(RequestJson, StatisticsJson):
    """A line of `ilis-guard queue export`: a judged attempt, with its request and the verdict."""

    model_config = ConfigDict(allow_inf_nan=False)

    id: str
    """The ticket's."""
    dataset: str
    tier: str | None
    """None where no attempt answered."""
    correct: bool
    text: str
    uncertainty: Share | None
    typicality: Share | None
    rank: Share | None
    departures: Annotated[tuple[Departure, ...], Field(strict=False)]
    """Why the uncertainty isn't calibrated."""
    tokens: int | None
    finish_reason: FinishReason | None
    probability: Annotated[float, Field(gt=0, le=1)]
    """That the request was drawn for review."""
    redacted: bool
    prompt: FlatMap | None = None
    """The signature at this position, as are the next two; None unless signatures were exported."""
    last: FlatMap | None = None
    mean: FlatMap | None = None

    @property
    def generation(self) -> Generation:
        """What the model returned, as far as it was exported."""
        maps: dict[Position, FlatMap | None] = {"prompt": self.prompt, "last": self.last, "mean": self.mean}
        known = [getattr(self, name) for name in STATISTICS]
        numbers = (math.nan if value is None else value for value in known)
        return Generation(
            text=self.text,
            tokens=self.tokens,
            prompt_tokens=None,
            finish_reason=self.finish_reason,
            seconds=0.0,
            signatures={name: _unflattened(values) for name, values in maps.items() if values is not None},
            statistics=(
                None
                if all(value is None for value in known)
                else Statistics(**dict(zip(STATISTICS, numbers, strict=True)))
            ),
        )


def _unflattened(values: FlatMap) -> Signature:
    side = math.isqrt(len(values))
    return np.array(values, dtype=np.float32).reshape(side, side)


class _Kind(_Record):
    """A ticket holds its request, a decision doesn't."""

    request: Any = None


def read_decision(path: Path) -> DecisionRecord:
    """Read a decision (``ask --json``) or a ticket (``queue show --json``).

    Raises:
        FactsError: the file can't be read, or is neither.
    """
    try:
        text = path.read_bytes()
        is_decision = _Kind.model_validate_json(text).request is None
        return (DecisionJson if is_decision else TicketRecordJson).model_validate_json(text).record
    except OSError as error:
        raise FactsError(f"{path}: can't be read ({error.strerror or error}); check the path") from error
    except ValidationError as error:
        raise FactsError(
            f"{path}: is neither a decision nor a ticket as `ask --json` and `queue show --json` print them: "
            f"{first_problem(error)}"
        ) from None


def read_decisions(path: Path) -> list[DecisionJson]:
    """Read JSON lines, each a decision as ``ask --json`` prints it.

    Raises:
        AttemptsError: the file can't be read, or a line isn't a decision.
    """
    return list(_read_lines(path, DecisionJson, "ask --json"))


def read_tapped_decisions(path: Path) -> list[TappedDecisionJson]:
    """As `read_decisions`, with the signatures of their attempts.

    Raises:
        AttemptsError: the file can't be read, or a line isn't a decision.
    """
    return list(_read_lines(path, TappedDecisionJson, "ask --json"))


def read_verdicts(path: Path) -> list[VerdictJson]:
    """Read JSON lines that ``queue export`` wrote.

    Raises:
        AttemptsError: the file can't be read, or a line isn't a verdict.
    """
    return list(_read_lines(path, VerdictJson, "queue export"))


def read_column(path: Path, column: str) -> list[str]:
    """Read one value of each of the lines that ``queue export`` wrote.

    Args:
        path: the file.
        column: a key of the lines, or ``labels.NAME``.

    Raises:
        AttemptsError: the file can't be read, or a line has no such value, or one that is neither a text nor a number.
    """
    keys = ["labels", column.removeprefix("labels.")] if column.startswith("labels.") else [column]
    values = []
    for number, line in numbered_lines(path):
        value: Any = json.loads(line)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
            raise AttemptsError(
                f"{path}:{number}: there is no {column!r:.60} to group by, a text or a number; give a key that "
                "every line has, such as labels.user, or leave --group-by out"
            )
        values.append(str(value))
    return values


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines of a file that aren't blank, with their numbers from 1.

    Raises:
        AttemptsError: the file can't be read.
    """
    return ((number, line) for number, line in enumerate(_lines(path), start=1) if line.strip())


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise AttemptsError(f"{path}: {error.strerror or error}") from error


def _read_lines(path: Path, kind: type[M], command: str) -> Iterator[M]:
    for number, line in numbered_lines(path):
        try:
            yield kind.model_validate_json(line)
        except ValidationError as error:
            raise AttemptsError(
                f"{path}:{number}: not a line of `ilis-guard {command}`: {first_problem(error)}"
            ) from None


def first_problem(error: ValidationError) -> str:
    """The first problem's place and message, without what was got: it may be a prompt or an answer."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the top level'}: {first['msg'].removeprefix('Input ')}"
