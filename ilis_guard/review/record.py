"""What a reviewer sees of a ticket, and how rows of the table become it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Row

from ilis_guard.review.schema import tickets
from ilis_guard.types import Ticket, Verdict

TICKET_COLUMNS: Final[tuple[Column[Any], ...]] = (
    tickets.c.id,
    tickets.c.queue,
    tickets.c.state,
    tickets.c.created_at,
    tickets.c.verdict,
    tickets.c.text,
    tickets.c.reason,
    tickets.c.resolved_at,
)
"""What a `Ticket` is made of: a list of tickets is read without their attempts, whose signatures are large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketRecord:
    """A ticket with everything that was known when the request was escalated."""

    ticket: Ticket
    decision: str
    """Id of the decision that was escalated."""
    request: Mapping[str, Any]
    """The request as JSON values: messages and labels."""
    attempts: tuple[Mapping[str, Any], ...]
    """All attempts as JSON values, in order: texts, scores, statistics, signatures, costs, errors."""
    policy: str
    """Fingerprint of the policy that decided."""
    rule: str | None
    """Id of the rule that decided; None where no rule held."""
    reasons: tuple[str, ...]
    """Why the policy escalated, in the order it came about."""
    say: str
    """What the caller was told meanwhile; may be empty."""
    reviewer: str = ""
    """Who gave the verdict, as the caller of `resolve` named them; may be empty."""

    @property
    def proposed(self) -> str | None:
        """The answer that `accept` accepts: the last attempt's that has one; None where no attempt answered."""
        return next((str(tried["text"]) for tried in reversed(self.attempts) if tried["text"].strip()), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "ticket": self.ticket.to_dict(),
            "decision": self.decision,
            "request": dict(self.request),
            "attempts": [dict(attempt) for attempt in self.attempts],
            "policy": self.policy,
            "rule": self.rule,
            "reasons": list(self.reasons),
            "say": self.say,
            "reviewer": self.reviewer,
        }


def ticket_of(row: Row[Any]) -> Ticket:
    """The ticket in a row that has at least `TICKET_COLUMNS`."""
    return Ticket(
        id=row.id,
        queue=row.queue,
        state=row.state,
        created_at=row.created_at,
        verdict=None if row.verdict is None else Verdict(row.verdict),
        text=row.text,
        reason=row.reason,
        resolved_at=row.resolved_at,
    )


def record_of(row: Row[Any]) -> TicketRecord:
    """The record in a full row."""
    attempts: Sequence[Mapping[str, Any]] = row.attempts
    return TicketRecord(
        ticket=ticket_of(row),
        decision=row.decision,
        request=row.request,
        attempts=tuple(attempts),
        policy=row.policy,
        rule=row.rule,
        reasons=tuple(row.reasons),
        say=row.say,
        reviewer=row.reviewer,
    )
