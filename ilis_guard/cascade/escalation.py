"""What a decision puts before people: the requests that a policy escalates, and the answers that it has audited."""

from collections.abc import Sequence
from typing import Protocol

from ilis_guard import events
from ilis_guard.policy import DEFAULT_QUEUE, Policy, Ruling
from ilis_guard.types import Attempt, Request, Ticket, TicketKind


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
        reasons: Sequence[str],
        kind: TicketKind = "escalated",
        say: str = "",
        probability: float = 1.0,
        due: float | None = None,
    ) -> Ticket:
        """Store a ticket; returns when it is safe."""

    def close(self) -> None:
        """Let go of the storage."""


class Tickets:
    """Those of one decision.

    Args:
        review: where they are stored.
        policy: what decided.
        decision: the decision's id.
        request: what was asked.
        attempts: every tier's try, in order.
        reasons: why, so far; grows by what becomes of the ticket.
    """

    def __init__(
        self,
        review: Review,
        policy: Policy,
        *,
        decision: str,
        request: Request,
        attempts: Sequence[Attempt],
        reasons: list[str],
    ) -> None:
        self._review = review
        self._policy = policy
        self._decision = decision
        self._request = request
        self._attempts = attempts
        self._reasons = reasons

    def escalate(self, ruling: Ruling) -> Ticket | None:
        """Put the request before people; None where the ticket can't be stored."""
        queue = ruling.to or DEFAULT_QUEUE
        sample = next((rule.sample for rule in self._policy.rules if rule.id == ruling.rule), None)
        try:
            return self._put(ruling, "escalated", queue, probability=1.0 if sample is None else sample)
        except Exception as error:  # noqa: BLE001 - fail closed: a request that can't wait safely is no answer either
            self._reasons.append(f"abstained: the ticket couldn't be stored: {type(error).__name__}: {error}")
            self._log(events.ESCALATION_FAILED, queue, error)
            return None

    def audit(self, ruling: Ruling) -> Ticket | None:
        """Have a person look at an answer that goes out, if it is drawn; the answer goes out whatever happens here."""
        audit = self._policy.audit
        if audit is None or not self._policy.audits(self._decision):
            return None
        self._reasons.append(f"drawn for an audit, as {audit.fraction:g} of what is answered")
        try:
            return self._put(ruling, "audited", audit.queue, probability=audit.fraction)
        except Exception as error:  # noqa: BLE001 - the caller's answer doesn't hang on the audit
            self._reasons.append(f"the audit's ticket couldn't be stored: {type(error).__name__}: {error}")
            self._log(events.AUDIT_FAILED, audit.queue, error)
            return None

    def _put(self, ruling: Ruling, kind: TicketKind, queue: str, *, probability: float) -> Ticket:
        return self._review.escalate(
            decision=self._decision,
            request=self._request,
            attempts=self._attempts,
            queue=queue,
            policy=self._policy.fingerprint,
            rule=ruling.rule,
            reasons=tuple(self._reasons),
            kind=kind,
            say=ruling.say,
            probability=probability,
            due=ruling.due,
        )

    def _log(self, event: str, queue: str, error: Exception) -> None:
        # Without its words, which may quote the prompt.
        events.log().error(event, decision=self._decision, queue=queue, error=type(error).__name__)
