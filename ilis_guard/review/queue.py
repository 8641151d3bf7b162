"""The review queue: requests go in when a policy escalates them, and leave with a person's verdict."""

import asyncio
import builtins
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sqlalchemy import select

from ilis_guard import events
from ilis_guard.config.review import LONGEST, EndpointSettings, QueueSettings
from ilis_guard.errors import ReviewError
from ilis_guard.review import claims, export, listing, overdue, retention, verdicts
from ilis_guard.review.ledger import TicketStore, row_of
from ilis_guard.review.listing import QueueCounts
from ilis_guard.review.record import TicketRecord, ticket_of
from ilis_guard.review.schema import SMALL_COLUMNS, tickets
from ilis_guard.review.storage import Storage
from ilis_guard.types import Attempt, Request, Ruling, Ticket, TicketKind, TicketState, Verdict

_FIRST_LOOK: Final = 0.1
_LAST_LOOK: Final = 5.0
"""Seconds between two looks of a waiting caller: from the first to the last, growing."""


class ReviewQueue:
    """Tickets in a database, safe with several threads and processes at once.

    Every method that changes something returns after the commit: what it returned survives a crash, together with
    the ticket's history and what endpoints are to hear of it. All methods but `wait` block; call them from a thread
    where an event loop runs.

    Args:
        url: where the tickets are kept: ``sqlite:///relative/path.db``, ``sqlite:////absolute/path.db``, or
            ``postgresql://user@host/database``. A SQLite file and its folder are made where they are missing; the
            tables in PostgreSQL are made by `ilis_guard.review.migrate`.
        queues: how tickets of these queues wait; see `QueueSettings`.
        endpoints: who hears of what happens to tickets.
        clock: seconds since the epoch.

    Raises:
        ReviewError: the URL can't be used, or the database is no review queue of this version. The message never
            shows a password.
        MissingDependencyError: PostgreSQL's driver isn't installed.
    """

    def __init__(
        self,
        url: str,
        *,
        queues: Sequence[QueueSettings] = (),
        endpoints: Sequence[EndpointSettings] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = TicketStore(
            storage=Storage(url),
            clock=clock,
            queues={settings.name: settings for settings in queues},
            endpoints=tuple(endpoints),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._ledger.storage.close()

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
    ) -> Ticket:
        """Put a request before people; returns when its ticket is committed.

        Escalating a decision again returns the ticket it already has, as it stands now, and changes nothing.

        Args:
            decision: id of the decision.
            request: what the caller asked.
            attempts: every tier's try, in order.
            queue: name of the queue whose reviewers shall see it.
            policy: fingerprint of the policy that decided.
            rule: id of the rule that decided; None where no rule held.
            rulings: what the policy said to each attempt.
            kind: whether a person decides, or checks an answer that was given.
            say: what the caller is told meanwhile.
            probability: of such a request's getting a ticket, above 0 and at most 1: less than 1 where the policy draws
                a sample.
            priority: higher is reviewed earlier; None for the queue's own.
            due: seconds until it is overdue; None for the queue's own.
            overdue: what then becomes of it: ``expire``, or the name of the queue it moves to; None for the queue's
                own.

        Raises:
            ReviewError: there is no decision id or no queue name, the due time or the probability makes no sense, or
                the ticket can't be stored.
        """
        if not decision or not queue:
            raise ReviewError(f"a ticket needs a decision id and a queue name, got {decision!r} and {queue!r}")
        if due is not None and not 0 < due <= LONGEST:  # also true for NaN
            raise ReviewError(f"a ticket is due in more than 0 seconds, and within a century, got {due!r}")
        if not 0 < probability <= 1:  # also true for NaN
            raise ReviewError(f"a ticket's probability lies above 0 and is at most 1, got {probability!r}")
        settings = self._ledger.settings(queue)
        due = settings.due if due is None else due
        now = self._ledger.clock()
        values = {
            "id": uuid.uuid4().hex,
            "decision": decision,
            "created_at": now,
            "policy": policy,
            "rule": rule,
            "rulings": [ruling.to_dict() for ruling in rulings],
            "kind": kind,
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
        with self._ledger.writing() as connection:
            is_new = self._ledger.add(connection, values)
            row = connection.execute(select(*SMALL_COLUMNS).where(tickets.c.decision == decision)).one()
        if is_new:
            events.log().info(events.TICKET_CREATED, ticket=row.id, queue=row.queue)
        return ticket_of(row, now=now, waiter=self.wait)

    def list(
        self,
        *,
        state: TicketState | None = None,
        queue: str | None = None,
        claimed_by: str | None = None,
        is_overdue: bool = False,
        limit: int = 50,
    ) -> builtins.list[Ticket]:
        """The most urgent tickets first: by priority, then by due time, then by age.

        Args:
            state: only tickets in this state; None for all.
            queue: only tickets of this queue; None for all.
            claimed_by: only tickets that this reviewer has in hand; None for all.
            is_overdue: only tickets that wait although their time is up, claimed or not.
            limit: at most so many tickets, at least 1.

        Raises:
            ReviewError: the state or the limit makes no sense, or the tickets can't be read.
        """
        now = self._ledger.clock()
        rows = listing.listed(
            self._ledger,
            state=state,
            queue=queue,
            claimed_by=claimed_by,
            is_overdue=is_overdue,
            limit=limit,
            now=now,
        )
        return [ticket_of(row, now=now) for row in rows]

    def prompts(self, ids: Collection[str]) -> dict[str, str]:
        """What was asked: the user's last turn, by the whole ids of these tickets; unknown ones are left out.

        Raises:
            ReviewError: the tickets can't be read.
        """
        return listing.prompts(self._ledger, ids)

    def counts(self) -> builtins.list[QueueCounts]:
        """How many tickets each queue has, by state; queues in the order of their names.

        Raises:
            ReviewError: the tickets can't be read.
        """
        return listing.counts(self._ledger, now=self._ledger.clock())

    def probe(self) -> None:
        """See whether tickets can be read, at the cost of one, however many there are.

        Raises:
            ReviewError: they can't.
        """
        listing.probe(self._ledger)

    def get(self, id: str) -> TicketRecord:  # noqa: A002 - the ticket's word for it
        """Everything known about one ticket.

        Args:
            id: the ticket's id, or its first characters, at least 4, where no other id starts with them.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has an id that starts so.
            ReviewError: the ticket can't be read.
        """
        return listing.record(self._ledger, id, now=self._ledger.clock())

    def of_decision(self, decision: str) -> TicketRecord | None:
        """Everything known about the ticket of a decision; None where it has none.

        Raises:
            ReviewError: the ticket can't be read.
        """
        return listing.record_of_decision(self._ledger, decision, now=self._ledger.clock())

    def claim(self, id: str, *, reviewer: str, lease: float | None = None) -> Ticket:  # noqa: A002 - the ticket's word for it
        """Take a ticket in hand: nobody else gets it or ends it while the claim lasts.

        Claiming a ticket that one has in hand renews the claim.

        Args:
            id: as in `get`.
            reviewer: who.
            lease: seconds that the claim lasts; None for the queue's own.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has an id that starts so.
            TicketConflictError: somebody else has it in hand, or it has ended.
            ReviewError: the name is empty, the lease makes no sense, or the claim can't be stored.
        """
        row, is_new = claims.claim(self._ledger, id, reviewer=reviewer, lease=lease)
        if is_new:
            events.log().info(events.TICKET_CLAIMED, ticket=row.id, queue=row.queue, by=reviewer)
        return ticket_of(row, now=self._ledger.clock())

    def claim_next(self, *, reviewer: str, queue: str | None = None, lease: float | None = None) -> Ticket | None:
        """Take the most urgent ticket in hand that nobody has; None where there is none.

        Args:
            reviewer: who.
            queue: only of this queue; None for any.
            lease: as in `claim`.

        Raises:
            ReviewError: the name is empty, the lease makes no sense, or the claim can't be stored.
        """
        row = claims.claim_next(self._ledger, reviewer=reviewer, queue=queue, lease=lease)
        if row is None:
            return None
        events.log().info(events.TICKET_CLAIMED, ticket=row.id, queue=row.queue, by=reviewer)
        return ticket_of(row, now=self._ledger.clock())

    def renew(self, id: str, *, reviewer: str, lease: float | None = None) -> Ticket:  # noqa: A002 - the ticket's word for it
        """Make a claim last longer, also one that ran out and that nobody took over; never shorter.

        Args:
            id: as in `get`.
            reviewer: who claimed it.
            lease: seconds from now; None for the queue's own.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has an id that starts so.
            TicketConflictError: the claim is gone, or the ticket has ended.
            ReviewError: the lease makes no sense, or the claim can't be stored.
        """
        return ticket_of(claims.renew(self._ledger, id, reviewer=reviewer, lease=lease), now=self._ledger.clock())

    def release(self, id: str, *, reviewer: str, force: bool = False) -> Ticket:  # noqa: A002 - the ticket's word for it
        """Give a claim back, so that others get the ticket; a ticket that nobody claimed stays as it is.

        Args:
            id: as in `get`.
            reviewer: who releases it.
            force: also where somebody else claimed it.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has an id that starts so.
            TicketConflictError: somebody else has it in hand, or it has ended.
            ReviewError: the release can't be stored.
        """
        row, is_new = claims.release(self._ledger, id, reviewer=reviewer, force=force)
        if is_new:
            events.log().info(events.TICKET_RELEASED, ticket=row.id, queue=row.queue, by=reviewer)
        return ticket_of(row, now=self._ledger.clock())

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
            id: the ticket's id, or its first characters, as in `get`.
            verdict: `accept` what was proposed, `correct` it, or `reject` it.
            text: the right answer, with `correct` and only with it.
            reason: why.
            reviewer: who.
            version: the version of the ticket that the verdict is on; None for whatever it is now.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has an id that starts so.
            TicketResolvedError: the ticket already ended with another verdict or another text.
            TicketExpiredError: the ticket ended without a verdict.
            TicketClaimedError: somebody else has it in hand.
            TicketChangedError: it has another version by now.
            ReviewError: the verdict and its text don't go together, no attempt gave an answer that could be
                accepted, or the verdict can't be stored.
        """
        row, is_new = verdicts.resolve(
            self._ledger, id, verdict, text=text, reason=reason, reviewer=reviewer, version=version
        )
        if is_new:
            events.log().info(events.TICKET_RESOLVED, ticket=row.id, queue=row.queue, verdict=row.verdict)
        return ticket_of(row, now=self._ledger.clock())

    def sweep(self) -> int:
        """Let overdue tickets expire or move to their next queue; how many there were.

        A ticket that somebody has in hand is left to them until their claim ends.

        Raises:
            ReviewError: the changes can't be stored; those that were committed stay.
        """
        return overdue.sweep(self._ledger)

    def export(self, to: Path, *, queue: str | None = None, signatures: bool = False) -> int:
        """Write all verdicts as labelled rows, JSONL in the vocabulary of questions and harvests; how many.

        The rows are no sample of all answers: each was reviewed because a rule of a policy escalated it or an audit
        drew it, and says which rule it was and how likely it was to be drawn. See docs/review.md before fitting
        anything to them.

        Args:
            to: the file; it appears, or is replaced, when it is complete.
            queue: only tickets of this queue; None for all.
            signatures: whether the rows hold the signatures, which are large; without them they name the ticket.

        Raises:
            ReviewError: the tickets can't be read.
            OSError: the file can't be written.
        """
        return export.write(to, export.labelled(self._ledger, queue=queue, signatures=signatures))

    def redact(self, *, older_than: float) -> int:
        """Take the texts out of tickets that ended long ago; how many tickets.

        Prompts, answers, corrections, reasons and the wording of errors go. Scores, statistics, signatures, labels,
        verdicts and history stay.

        Args:
            older_than: seconds since they ended.

        Raises:
            ReviewError: the changes can't be stored; those that were committed stay.
        """
        redacted = retention.redact(self._ledger, older_than=older_than)
        events.log().info(events.TICKETS_REDACTED, tickets=redacted)
        return redacted

    def purge(self, *, older_than: float, export_to: Path | None = None) -> int:
        """Delete tickets that ended long ago, with their history and their deliveries; how many.

        A ticket that an endpoint is still to hear of stays.

        Args:
            older_than: seconds since they ended.
            export_to: a new file for everything that is deleted, a JSON object a ticket, as `TicketRecord.to_dict`
                has it. It is complete and on disk before the first ticket goes.

        Raises:
            ReviewError: the file is already there, or the tickets can't be deleted; those that are gone stand in the
                file.
            OSError: the file can't be written; nothing was deleted.
        """
        purged = retention.purge(self._ledger, older_than=older_than, export_to=export_to)
        events.log().info(events.TICKETS_PURGED, tickets=purged)
        return purged

    async def wait(self, id: str, timeout: float | None = None) -> Ticket:  # noqa: A002, ASYNC109 - as on a ticket
        """Wait until a ticket has ended, and return it with its verdict; one that expired has none.

        It looks again and again, every 5 seconds in the end: whoever wants to know at once takes a webhook.

        Args:
            id: as in `get`.
            timeout: seconds to wait at most; None waits for as long as it takes.

        Raises:
            TimeoutError: it hasn't ended in time.
            TicketNotFoundError: no ticket, or more than one, has an id that starts so.
            ReviewError: the ticket can't be read.
        """
        async with asyncio.timeout(timeout):
            pause = _FIRST_LOOK
            while (ticket := await asyncio.to_thread(self._look, id)).ended_at is None:
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _LAST_LOOK)
        return ticket

    def _look(self, id: str) -> Ticket:  # noqa: A002 - the ticket's word for it
        with self._ledger.reading() as connection:
            return ticket_of(row_of(connection, id), now=self._ledger.clock())
