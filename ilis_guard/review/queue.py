"""The review queue: a policy puts requests in, and a person's verdict ends them."""

import asyncio
import builtins
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ilis_guard.config.review import LONGEST, EndpointSettings, QueueSettings
from ilis_guard.errors import ReviewError
from ilis_guard.review import decisions, export, record, retention, tickets
from ilis_guard.review.outbox import Outbox
from ilis_guard.review.record import QueueCounts, TicketRecord
from ilis_guard.review.store import TicketStore, open_database
from ilis_guard.types import Attempt, DecisionRecord, Request, Ruling, Ticket, TicketKind, TicketState, Verdict
from ilis_guard.types.requests import nfc

_MIN_POLL_SECONDS: Final = 0.1
_MAX_POLL_SECONDS: Final = 5.0
"""Pause between two reads of a waiting caller: grows from the minimum to the maximum."""


class ReviewQueue:
    """Tickets in a database, safe with several threads and processes at once.

    Every method that changes something returns after the commit: what it returned survives a crash, together with the
    ticket's history and its webhooks. All methods but `wait` block; call them from a thread where an event loop runs.
    Names of queues and reviewers are in NFC, as in policies and guard.yaml, however they are given.

    Args:
        url: where the tickets are kept: ``sqlite:///relative/path.db``, ``sqlite:////absolute/path.db``, or
            ``postgresql://user@host/database``. A SQLite file and its folder are created where they are missing;
            `ilis_guard.review.migrate` creates the tables in PostgreSQL.
        queues: how tickets of these queues wait; see `QueueSettings`.
        endpoints: where webhooks about tickets go.
        clock: seconds since the epoch.

    Raises:
        ReviewError: the URL can't be used, or the database is no review queue of this version. The message never
            shows a password.
        MissingDependencyError: PostgreSQL's driver isn't installed.
    """

    store: TicketStore
    """For this package's other modules."""

    def __init__(
        self,
        url: str,
        *,
        queues: Sequence[QueueSettings] = (),
        endpoints: Sequence[EndpointSettings] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        database = open_database(url)
        by_name = {endpoint.name: endpoint for endpoint in endpoints}
        self.store = TicketStore(
            database=database,
            outbox=Outbox(database=database, endpoints=by_name, clock=clock),
            queues={settings.name: settings for settings in queues},
            clock=clock,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self.store.database.close()

    def escalate(
        self,
        *,
        decision: str,
        request: Request,
        attempts: Sequence[Attempt],
        queue: str,
        policy: str,
        rule: str | None,
        rulings: Sequence[Ruling] = (),
        kind: TicketKind = "escalated",
        say: str = "",
        probability: float = 1.0,
        priority: int | None = None,
        due: float | None = None,
        overdue: str | None = None,
        decision_record: DecisionRecord | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> Ticket:
        """Create a ticket; returns when it is committed.

        Escalating a decision again returns the ticket that it already has, in its current state, and changes nothing.

        Args:
            decision: id of the decision.
            request: the caller's request.
            attempts: every tier's attempt, in order.
            queue: name of the queue that reviewers take it from.
            policy: fingerprint of the policy that decided.
            rule: id of the rule that decided; None where no rule held.
            rulings: what the policy decided after each attempt.
            kind: `escalated` where the request waits for a person, `audited` where its answer was given and an audit
                sampled it.
            say: the message that the caller gets meanwhile.
            probability: of such a request's getting a ticket, above 0 and at most 1: less than 1 where the policy
                samples.
            priority: higher is reviewed earlier; None for the queue's own.
            due: seconds until it is overdue; None for the queue's own.
            overdue: what happens then: ``expire``, or the name of the queue it moves to; None for the queue's own.
            decision_record: recorded in the same transaction, see `record_decision`.
            before_commit: called inside the transaction when all is written; what it raises undoes that.

        Raises:
            RequestConflictError: the decision has a ticket of another request.
            DecisionRecordedError: a decision is recorded under the record's id.
            ReviewError: there is no decision id or no queue name, the due time or the probability makes no sense, or
                the ticket can't be stored.
        """
        if not decision or not queue:
            raise ReviewError(f"a ticket needs a decision id and a queue name, got {decision!r} and {queue!r}")
        if due is not None and not 0 < due <= LONGEST:  # also true for NaN
            raise ReviewError(f"a ticket is due in more than 0 seconds, and within a century, got {due!r}")
        if not 0 < probability <= 1:  # also true for NaN
            raise ReviewError(f"a ticket's probability lies above 0 and is at most 1, got {probability!r}")
        queue, overdue = nfc(queue), _name(overdue)
        settings = self.store.settings(queue)
        due = settings.due if due is None else due
        now = self.store.clock()
        values = {
            "id": uuid.uuid4().hex,
            "decision": decision,
            "kind": kind,
            "created_at": now,
            "policy": policy,
            "rule": rule,
            "rulings": [ruling.to_dict() for ruling in rulings],
            "say": say,
            "probability": probability,
            "request": request.to_dict(),
            "attempts": [attempt.to_dict() for attempt in attempts],
            "queue": queue,
            "priority": settings.priority if priority is None else priority,
            "due_at": None if due is None else now + due,
            "overdue": overdue or settings.overdue,
            "state": "open",
            "version": 1,
            "claimed_by": "",
            "text": "",
            "reason": "",
            "reviewer": "",
        }
        return tickets.create(self.store, values, waiter=self.wait, record=decision_record, before_commit=before_commit)

    def record_decision(
        self, decision_record: DecisionRecord, *, before_commit: Callable[[], None] = lambda: None
    ) -> None:
        """Keep a decision under its id for a day; returns when it is committed.

        Args:
            decision_record: the decision.
            before_commit: as of `escalate`.

        Raises:
            DecisionRecordedError: one is recorded under this id.
            ReviewError: it can't be stored.
        """
        decisions.create(self.store, decision_record, before_commit=before_commit)

    def find_decision(self, id: str) -> DecisionRecord | None:  # noqa: A002 - the decision's word for it
        """Return the decision that is kept under an id, with its ticket as it is now; None where there is none.

        Raises:
            ReviewError: it can't be read.
        """
        return decisions.find(self.store, id, waiter=self.wait)

    def list(
        self,
        *,
        state: TicketState | None = None,
        queue: str | None = None,
        claimed_by: str | None = None,
        is_overdue: bool = False,
        limit: int = 50,
    ) -> builtins.list[Ticket]:
        """List tickets, the most urgent first: by priority, then by due time, then by age.

        Args:
            state: only tickets in this state; None for all.
            queue: only tickets of this queue; None for all.
            claimed_by: only tickets that this reviewer holds; None for all.
            is_overdue: only tickets past their due time that haven't ended, claimed or not.
            limit: at most so many tickets, at least 1.

        Raises:
            ReviewError: the state or the limit makes no sense, or the tickets can't be read.
        """
        return record.list_tickets(
            self.store,
            state=state,
            queue=_name(queue),
            claimed_by=_name(claimed_by),
            is_overdue=is_overdue,
            limit=limit,
        )

    def prompts(self, ids: Collection[str]) -> dict[str, str]:
        """Return the user's last turn, by ticket id, for these whole ids; unknown ones are left out.

        Raises:
            ReviewError: the tickets can't be read.
        """
        return record.prompts(self.store, ids)

    def counts(self) -> builtins.list[QueueCounts]:
        """Count each queue's tickets by state; queues in the order of their names.

        Raises:
            ReviewError: the tickets can't be read.
        """
        return record.counts(self.store)

    def probe(self) -> None:
        """Check that tickets could be stored, by writing and committing a row that stands for nothing.

        Raises:
            ReviewError: they can't.
        """
        record.probe(self.store)

    def get(self, id: str) -> TicketRecord:  # noqa: A002 - the ticket's word for it
        """Return everything that is known about one ticket.

        Args:
            id: the ticket's id, or its first characters, at least 4, where no other id starts with them.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has such an id.
            ReviewError: the ticket can't be read.
        """
        return record.get_record(self.store, id)

    def of_decision(self, decision: str) -> TicketRecord | None:
        """Return everything that is known about the ticket of a decision; None where it has none.

        Raises:
            ReviewError: the ticket can't be read.
        """
        return record.record_of_decision(self.store, decision)

    def claim(self, id: str, *, reviewer: str, lease: float | None = None) -> Ticket:  # noqa: A002 - the ticket's word for it
        """Claim a ticket: nobody else can claim or end it while the claim lasts.

        Claiming a ticket again renews the claim.

        Args:
            id: as in `get`.
            reviewer: who claims it.
            lease: seconds that the claim lasts; None for the queue's own.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has such an id.
            TicketConflictError: somebody else holds it, or it has ended.
            ReviewError: the name is empty, the lease makes no sense, or the claim can't be stored.
        """
        return tickets.claim(self.store, id, reviewer=nfc(reviewer), lease=lease)

    def claim_next(self, *, reviewer: str, queue: str | None = None, lease: float | None = None) -> Ticket | None:
        """Claim the most urgent unclaimed ticket; None where there is none.

        Args:
            reviewer: who claims it.
            queue: only of this queue; None for any.
            lease: as in `claim`.

        Raises:
            ReviewError: the name is empty, the lease makes no sense, or the claim can't be stored.
        """
        return tickets.claim_next(self.store, reviewer=nfc(reviewer), queue=_name(queue), lease=lease)

    def renew(self, id: str, *, reviewer: str, lease: float | None = None) -> Ticket:  # noqa: A002 - the ticket's word for it
        """Make a claim last longer, also one that ran out if nobody else has claimed the ticket since; never shorter.

        Args:
            id: as in `get`.
            reviewer: who claimed it.
            lease: seconds from now; None for the queue's own.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has such an id.
            TicketConflictError: the claim is gone, or the ticket has ended.
            ReviewError: the lease makes no sense, or the claim can't be stored.
        """
        return tickets.renew(self.store, id, reviewer=nfc(reviewer), lease=lease)

    def release(self, id: str, *, reviewer: str, force: bool = False) -> Ticket:  # noqa: A002 - the ticket's word for it
        """End a claim, so that others can claim the ticket; an unclaimed ticket stays as it is.

        Args:
            id: as in `get`.
            reviewer: who releases it.
            force: also where somebody else claimed it.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has such an id.
            TicketConflictError: somebody else holds it, or it has ended.
            ReviewError: the release can't be stored.
        """
        return tickets.release(self.store, id, reviewer=nfc(reviewer), force=force)

    def resolve(
        self,
        id: str,  # noqa: A002 - the ticket's word for it
        verdict: Verdict,
        *,
        text: str = "",
        reason: str = "",
        reviewer: str = "",
        version: int | None = None,
    ) -> Ticket:
        """End a ticket with a person's verdict; returns when it is committed.

        Of several reviewers exactly one wins. The same verdict again, with the same text, returns the ticket as the
        first one left it. A ticket needs no claim to be resolved, but nobody resolves what somebody else claimed.

        Args:
            id: as in `get`.
            verdict: `accept` the proposed answer, `correct` it, or `reject` it.
            text: the right answer, with `correct` and only with it.
            reason: why.
            reviewer: who.
            version: the version of the ticket that the reviewer saw; None for any.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has such an id.
            TicketResolvedError: the ticket already ended with another verdict or another text.
            TicketExpiredError: the ticket ended without a verdict.
            TicketClaimedError: somebody else holds it.
            TicketChangedError: it has another version.
            ReviewError: the verdict and its text don't go together, no attempt gave an answer that could be
                accepted, or the verdict can't be stored.
        """
        return tickets.resolve(
            self.store, id, verdict, text=text, reason=reason, reviewer=nfc(reviewer), version=version
        )

    def sweep(self) -> int:
        """Let overdue tickets expire or move to their next queue; return how many.

        A claimed ticket stays until the claim ends.

        Raises:
            ReviewError: the changes can't be stored; those that were committed stay.
        """
        return tickets.sweep(self.store)

    def export(self, to: Path, *, queue: str | None = None, signatures: bool = False) -> int:
        """Write all verdicts as labelled rows, JSONL in the vocabulary of questions and harvests; return how many.

        The rows are no random sample of all answers: each was reviewed because a rule of a policy escalated it or an
        audit sampled it; the row names the rule and the probability. See docs/review.md before fitting to them.

        Args:
            to: the file; it appears, or is replaced, when it is complete.
            queue: only tickets of this queue; None for all.
            signatures: whether the rows hold the signatures, which are large; without them they name the ticket.

        Raises:
            ReviewError: the tickets can't be read.
            OSError: the file can't be written.
        """
        return export.write(to, export.labelled_rows(self.store, queue=_name(queue), signatures=signatures))

    def redact(self, *, older_than: float) -> int:
        """Remove the texts of tickets that ended long ago; return how many tickets.

        Prompts, answers, corrections, reasons and the wording of errors go, and so do decisions that are as old and
        kept under an id. Scores, statistics, signatures, labels, verdicts and history stay.

        Args:
            older_than: seconds since they ended.

        Raises:
            ReviewError: the changes can't be stored; those that were committed stay.
        """
        return retention.redact(self.store, older_than=older_than)

    def purge(self, *, older_than: float, export_to: Path | None = None) -> int:
        """Delete tickets that ended long ago, with their history and their deliveries; return how many.

        A ticket with a pending delivery stays. Decisions that are as old and kept under an id go.

        Args:
            older_than: seconds since they ended.
            export_to: a new file for everything that is deleted, a JSON object a ticket, as in
                `TicketRecord.to_dict`. It is complete and on disk before the first ticket is deleted.

        Raises:
            ReviewError: the file is already there, or the tickets can't be deleted; the file holds those that are.
            OSError: the file can't be written; nothing was deleted.
        """
        return retention.purge(self.store, older_than=older_than, export_to=export_to)

    async def wait(self, id: str, timeout: float | None = None) -> Ticket:  # noqa: A002, ASYNC109 - as on a ticket
        """Wait until a ticket has ended, and return it with its verdict; an expired one has none.

        It polls, in the end every 5 seconds; a webhook is quicker.

        Args:
            id: as in `get`.
            timeout: seconds to wait at most; None waits for as long as it takes.

        Raises:
            TimeoutError: it hasn't ended in time.
            TicketNotFoundError: no ticket, or more than one, has such an id.
            ReviewError: the ticket can't be read.
        """
        async with asyncio.timeout(timeout):
            pause = _MIN_POLL_SECONDS
            while (ticket := await asyncio.to_thread(record.get_ticket, self.store, id)).ended_at is None:
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _MAX_POLL_SECONDS)
        return ticket


def _name(given: str | None) -> str | None:
    return None if given is None else nfc(given)
