"""Escalation: store tickets of requests that a policy escalates, and of answers that it audits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ilis_guard import events
from ilis_guard.concurrency.interrupts import is_interrupt
from ilis_guard.errors import DecisionRecordedError, RequestConflictError, control_flow
from ilis_guard.policy import DEFAULT_QUEUE, Policy
from ilis_guard.types import Attempt, DecisionRecord, ErrorInfo, Request, Ruling, Ticket, TicketKind


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


@runtime_checkable
class TransactionalReview(Review, Protocol):
    """Stores tickets in transactions, together with decisions under their callers' ids, such as `ReviewQueue`.

    Its `escalate` also takes a `decision_record`, and `before_commit` as `record_decision` does.
    """

    def record_decision(self, decision_record: DecisionRecord, *, before_commit: Callable[[], None]) -> None:
        """Keep a decision under its id; returns when it is safe.

        Args:
            decision_record: the decision.
            before_commit: called when all is written; what it raises undoes that.

        Raises:
            DecisionRecordedError: one is recorded under this id.
        """

    def find_decision(self, id: str) -> DecisionRecord | None:  # noqa: A002 - the decision's word for it
        """The decision that is kept under an id, with its ticket as it is now; None where there is none."""


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

    @property
    def audits(self) -> bool:
        """Whether the answer is sampled for an audit."""
        return self.policy.audit is not None and self.policy.audits(self.decision)

    def escalate(self, decision_record: DecisionRecord | None, before_commit: Callable[[], None]) -> Escalation:
        """Store the request's ticket. Errors are returned, not raised: without a ticket the decision abstains.

        Args:
            decision_record: the decision, to be kept under its id with the ticket; None where its caller gave none.
            before_commit: called right before the commit.

        Raises:
            ClientDisconnected: `before_commit` raised it: nothing was stored.
            DecisionRecordedError: another process was faster.
            RequestConflictError: the decision's id belongs to another request.
        """
        ruling = self.rulings[-1]
        sample = next((rule.sample for rule in self.policy.rules if rule.id == ruling.rule), None)
        queue, probability = ruling.to or DEFAULT_QUEUE, 1.0 if sample is None else sample
        return self._store("escalated", queue, probability, decision_record, before_commit)

    def audit(self, decision_record: DecisionRecord | None, before_commit: Callable[[], None]) -> Escalation:
        """Store a ticket of an answer that is sampled for an audit. Errors are returned; the answer is given anyway.

        Arguments and errors: as of `escalate`.
        """
        audit = self.policy.audit
        assert audit is not None, "only a policy with an audit samples answers"
        return self._store("audited", audit.queue, audit.fraction, decision_record, before_commit)

    def _store(
        self,
        kind: TicketKind,
        queue: str,
        probability: float,
        decision_record: DecisionRecord | None,
        before_commit: Callable[[], None],
    ) -> Escalation:
        ruling = self.rulings[-1]
        in_transaction: dict[str, Any] = {"decision_record": decision_record, "before_commit": before_commit}
        if not isinstance(self.review, TransactionalReview):
            # What it stores can't be undone.
            before_commit()
            in_transaction = {}
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
                **in_transaction,
            )
        except control_flow():
            raise
        except (DecisionRecordedError, RequestConflictError):
            raise
        except BaseException as error:  # fail closed, whatever the storage raises
            if is_interrupt(error):
                raise
            event = events.ESCALATION_FAILED if kind == "escalated" else events.AUDIT_FAILED
            # Only its class: the storage's message may quote the ticket's texts, a path or a host.
            events.log().error(event, decision=self.decision, queue=queue, error=type(error).__name__)
            return Escalation(error=ErrorInfo.of(error))
        return Escalation(ticket=ticket)
