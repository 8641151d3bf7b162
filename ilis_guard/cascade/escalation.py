"""Escalation: store tickets of requests that a policy escalates, and of answers that it audits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ilis_guard import events
from ilis_guard.concurrency.interrupts import is_interrupt
from ilis_guard.policy import DEFAULT_QUEUE, Policy
from ilis_guard.types import Attempt, ErrorInfo, Request, Ruling, Ticket, TicketKind


class Review(Protocol):
    """Where tickets are stored."""

    def escalate(
        self,
        *,
        decision: str,
        request: Request,
        attempts: Sequence[Attempt],
        queue: str,
        policy: str,
        rule: str | None,
        rulings: Sequence[Ruling],
        say: str = "",
        due: float | None = None,
        kind: TicketKind = "escalated",
        probability: float = 1.0,
    ) -> Ticket:
        """Store a ticket; returns when it is safe."""

    def close(self) -> None:
        """Release the storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """The result of storing a ticket; at most one of the two fields is set."""

    ticket: Ticket | None = None
    error: ErrorInfo | None = None
    """Why the ticket couldn't be stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalator:
    """Stores the ticket of one decision."""

    review: Review
    policy: Policy
    decision: str
    """Its id."""
    request: Request
    attempts: tuple[Attempt, ...]
    rulings: tuple[Ruling, ...]
    """One an attempt; the last one escalates, or answers."""

    def escalate(self) -> Escalation:
        """Store the request's ticket. Errors are returned, not raised: without a ticket the decision abstains."""
        ruling = self.rulings[-1]
        sample = next((rule.sample for rule in self.policy.rules if rule.id == ruling.rule), None)
        queue = ruling.to or DEFAULT_QUEUE
        return self._store("escalated", queue, probability=1.0 if sample is None else sample)

    def audit(self) -> Escalation:
        """Store a ticket of an answer that is sampled for an audit. Errors are returned; the answer is given anyway."""
        audit = self.policy.audit
        if audit is None or not self.policy.audits(self.decision):
            return Escalation()
        return self._store("audited", audit.queue, probability=audit.fraction)

    def _store(self, kind: TicketKind, queue: str, *, probability: float) -> Escalation:
        ruling = self.rulings[-1]
        try:
            ticket = self.review.escalate(
                decision=self.decision,
                request=self.request,
                attempts=self.attempts,
                queue=queue,
                policy=self.policy.fingerprint,
                rule=ruling.rule,
                rulings=self.rulings,
                say=ruling.say,
                due=ruling.due,
                kind=kind,
                probability=probability,
            )
        except BaseException as error:  # fail closed, whatever the storage raises
            if is_interrupt(error):
                raise
            event = events.ESCALATION_FAILED if kind == "escalated" else events.AUDIT_FAILED
            # Only its class: the storage's message may quote the ticket's texts, a path or a host.
            events.log().error(event, decision=self.decision, queue=queue, error=type(error).__name__)
            return Escalation(error=ErrorInfo.of(error))
        return Escalation(ticket=ticket)
