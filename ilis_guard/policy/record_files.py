"""Decisions and tickets read back from the JSON that they were printed as."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ilis_guard.errors import FactsError
from ilis_guard.policy.replay import Retold
from ilis_guard.policy.written import Written, WrittenAttempt
from ilis_guard.types import (
    Action,
    ErrorInfo,
    Label,
    Mode,
    Ruling,
    ShadowRuling,
    Ticket,
    TicketKind,
    TicketState,
    Verdict,
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


class _Kind(Written):
    """A ticket has the request in it, a decision doesn't."""

    request: Any = None


class _Turn(Written):
    content: str


class _Request(Written):
    messages: tuple[_Turn, ...] = Field(min_length=1)
    labels: dict[str, Label]


class _Ticket(Written):
    id: str
    queue: str
    state: TicketState
    kind: TicketKind
    created_at: float
    verdict: Annotated[Verdict | None, Field(strict=False)] = None

    @property
    def made(self) -> Ticket:
        """The ticket itself, as far as it is explained."""
        return Ticket(**self.model_dump())


class _DecisionFile(Written):
    """As `Decision.to_dict` has it."""

    id: str
    action: Annotated[Action, Field(strict=False)]
    rulings: Annotated[tuple[Ruling, ...], Field(strict=False)]
    policy: str
    ticket: _Ticket | None
    ticket_error: ErrorInfo | None = None
    attempts: tuple[WrittenAttempt, ...] = Field(min_length=1)
    labels: dict[str, Label] | None = None
    prompt_length: int = 0
    thresholds: dict[str, float | None] = Field(default_factory=dict)
    mode: Mode = "enforce"
    shadow: ShadowRuling | None = None

    @property
    def retold(self) -> Retold:
        """The decision."""
        return Retold(
            id=self.id,
            policy=self.policy,
            action=self.action,
            ticket=None if self.ticket is None else self.ticket.made,
            ticket_error=self.ticket_error,
            rulings=self.rulings,
            attempts=tuple(attempt.made for attempt in self.attempts),
            labels=self.labels,
            prompt_length=self.prompt_length,
            thresholds=self.thresholds,
            mode=self.mode,
            shadow=self.shadow,
        )


class _TicketFile(Written):
    """As `TicketRecord.to_dict` has it."""

    decision: str
    request: _Request
    rulings: Annotated[tuple[Ruling, ...], Field(strict=False)]
    policy: str
    ticket: _Ticket
    attempts: tuple[WrittenAttempt, ...] = Field(min_length=1)

    @property
    def retold(self) -> Retold:
        """The decision that it came from."""
        return Retold(
            id=self.decision,
            policy=self.policy,
            action=Action.ANSWER if self.ticket.kind == "audited" else Action.ESCALATE,
            ticket=self.ticket.made,
            rulings=self.rulings,
            attempts=tuple(attempt.made for attempt in self.attempts),
            labels=self.request.labels,
            prompt_length=len(self.request.messages[-1].content),
            thresholds={},
        )
