"""What a reviewer sees of a ticket, and how rows of the tables become it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from ilis_guard.policy.explain import explain_ticket
from ilis_guard.types import Ruling, Ticket, TicketState, TicketWaiter, Verdict
from ilis_guard.types.decisions import read_attempt
from ilis_guard.types.rulings import read_rulings


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketEvent:
    """One entry of a ticket's history."""

    at: float
    """Seconds since the epoch, UTC, by the clock of whoever wrote it; the order of entries is certain without it."""
    what: str
    """`created`, `claimed`, `released`, `moved`, `expired`, `resolved` or `redacted`."""
    by: str
    """Who did it; empty where nobody did."""
    version: int
    """The ticket's version since then."""
    details: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "at": self.at,
            "what": self.what,
            "by": self.by,
            "version": self.version,
            "details": dict(self.details),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketRecord:
    """A ticket with everything that was known when the request was escalated, and what happened since."""

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
    rulings: tuple[Ruling, ...]
    """What the policy said to each attempt. Of a redacted ticket, without the values of facts."""
    say: str
    """What the caller was told meanwhile; may be empty."""
    overdue: str
    """What becomes of it when it is overdue: `expire`, or the queue that it moves to."""
    probability: float = 1.0
    """How likely a request like this was to get a ticket: below 1 where the policy drew a sample."""
    reviewer: str = ""
    """Who gave the verdict, as the caller of `resolve` named them; may be empty."""
    redacted_at: float | None = None
    """Since when its texts are gone; None while they are there."""
    history: tuple[TicketEvent, ...] = ()
    """What happened to it, the earliest first."""

    @property
    def proposed(self) -> str | None:
        """The answer that `accept` accepts: the last attempt's that has one; None where no attempt answered."""
        return proposed_in(self.attempts)

    def explain(self) -> str:
        """As `Decision.explain`: what was done and why, in a few sentences, without prompts and answers."""
        return explain_ticket(self.ticket, tuple(map(read_attempt, self.attempts)), self.rulings)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "ticket": self.ticket.to_dict(),
            "decision": self.decision,
            "request": dict(self.request),
            "attempts": [dict(attempt) for attempt in self.attempts],
            "policy": self.policy,
            "rule": self.rule,
            "rulings": [ruling.to_dict() for ruling in self.rulings],
            "say": self.say,
            "overdue": self.overdue,
            "probability": self.probability,
            "reviewer": self.reviewer,
            "redacted_at": self.redacted_at,
            "history": [happening.to_dict() for happening in self.history],
        }


def proposed_in(attempts: Sequence[Mapping[str, Any]]) -> str | None:
    """The answer that is proposed: the last attempt's that has one; None where there is none."""
    found = judged_in(attempts)
    return None if found is None else str(found["text"])


def judged_in(attempts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The attempt whose answer is proposed, and which a verdict is about; half an answer is none."""
    return next((tried for tried in reversed(attempts) if _is_answer(tried)), None)


def _is_answer(attempt: Mapping[str, Any]) -> bool:
    # Tickets of older releases don't say whether a stream cut it: there were none.
    return bool(attempt["text"].strip()) and attempt.get("stopped_at") is None


def ticket_of(row: Row[Any], *, now: float, waiter: TicketWaiter | None = None) -> Ticket:
    """The ticket in a row that has at least the small columns, as it stands at a time."""
    is_claimed = row.claimed_until is not None and row.claimed_until > now
    state: TicketState = "claimed" if is_claimed else row.state
    return Ticket(
        id=row.id,
        queue=row.queue,
        state=state,
        kind=row.kind,
        created_at=row.created_at,
        priority=row.priority,
        due_at=row.due_at,
        version=row.version,
        claimed_by=row.claimed_by if is_claimed else "",
        claimed_until=row.claimed_until if is_claimed else None,
        verdict=None if row.verdict is None else Verdict(row.verdict),
        text=row.text,
        reason=row.reason,
        ended_at=row.ended_at,
        waiter=waiter,
    )


def record_of(row: Row[Any], happenings: Iterable[Row[Any]], *, now: float) -> TicketRecord:
    """The record in a full row and the rows of its history."""
    attempts: Sequence[Mapping[str, Any]] = row.attempts
    return TicketRecord(
        ticket=ticket_of(row, now=now),
        decision=row.decision,
        request=row.request,
        attempts=tuple(attempts),
        policy=row.policy,
        rule=row.rule,
        rulings=read_rulings(row.rulings),
        say=row.say,
        overdue=row.overdue,
        probability=row.probability,
        reviewer=row.reviewer,
        redacted_at=row.redacted_at,
        history=tuple(
            TicketEvent(at=entry.at, what=entry.what, by=entry.by, version=entry.version, details=entry.details)
            for entry in happenings
        ),
    )
