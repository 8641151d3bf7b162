"""The review queue: requests go in when a policy escalates them, and leave with a person's verdict."""

import builtins
import re
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

from sqlalchemy import Connection, Row, select, update

from ilis_guard import events
from ilis_guard.errors import ReviewError, TicketNotFoundError, TicketResolvedError
from ilis_guard.review.record import TICKET_COLUMNS, TicketRecord, record_of, ticket_of
from ilis_guard.review.schema import tickets
from ilis_guard.review.storage import Storage
from ilis_guard.types import Attempt, Request, Ticket, Verdict

_SHORTEST_PREFIX: Final = 4
_CANDIDATES_SHOWN: Final = 5


class ReviewQueue:
    """Tickets on disk, safe with several threads and processes at once.

    Every method that changes something returns after the commit: what it returned survives a crash. All methods
    block; call them from a thread where an event loop runs.

    Args:
        url: where the tickets are kept, as ``sqlite:///relative/path.db`` or ``sqlite:////absolute/path.db``. The
            folder and the file are created where they are missing.

    Raises:
        ReviewError: the URL can't be used, or the file is no review queue of this version. The message never shows
            a password.
    """

    def __init__(self, url: str) -> None:
        self._storage = Storage(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._storage.close()

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
        say: str = "",
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
            reasons: why, in the order it came about.
            say: what the caller is told meanwhile.

        Raises:
            ReviewError: there is no decision id or no queue name, or the ticket can't be stored.
        """
        if not decision or not queue:
            raise ReviewError(f"a ticket needs a decision id and a queue name, got {decision!r} and {queue!r}")
        values = {
            "id": uuid.uuid4().hex,
            "decision": decision,
            "queue": queue,
            "created_at": time.time(),
            "policy": policy,
            "rule": rule,
            "reasons": list(reasons),
            "say": say,
            "request": request.to_dict(),
            "attempts": [attempt.to_dict() for attempt in attempts],
            "state": "open",
            "text": "",
            "reason": "",
            "reviewer": "",
        }
        of_decision = select(*TICKET_COLUMNS).where(tickets.c.decision == decision)
        with self._storage.writing() as connection:
            known = connection.execute(of_decision).one_or_none()
            if known is None:
                connection.execute(tickets.insert().values(values))
            ticket = ticket_of(known or connection.execute(of_decision).one())
        if known is None:
            events.log().info(events.TICKET_CREATED, ticket=ticket.id, queue=ticket.queue)
        return ticket

    def list(
        self, *, state: Literal["open", "resolved"] | None = None, queue: str | None = None, limit: int = 50
    ) -> builtins.list[Ticket]:
        """The oldest tickets first.

        Args:
            state: only tickets in this state; None for all.
            queue: only tickets of this queue; None for all.
            limit: at most so many tickets, at least 1.

        Raises:
            ReviewError: the state or the limit makes no sense, or the tickets can't be read.
        """
        if state not in ("open", "resolved", None):
            raise ReviewError(f"a ticket is 'open' or 'resolved', got the state {state!r}")
        if limit < 1:
            raise ReviewError(f"the limit must be at least 1, got {limit!r}")
        query = select(*TICKET_COLUMNS).order_by(tickets.c.created_at, tickets.c.id).limit(limit)
        if state is not None:
            query = query.where(tickets.c.state == state)
        if queue is not None:
            query = query.where(tickets.c.queue == queue)
        with self._storage.reading() as connection:
            return [ticket_of(row) for row in connection.execute(query)]

    def get(self, id: str) -> TicketRecord:  # noqa: A002 - the ticket's word for it
        """Everything known about one ticket.

        Args:
            id: the ticket's id, or its first characters, at least 4, where no other id starts with them.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has an id that starts so.
            ReviewError: the ticket can't be read.
        """
        with self._storage.reading() as connection:
            return record_of(_row_of(connection, id))

    def resolve(
        self,
        id: str,  # noqa: A002 - the ticket's word for it
        verdict: Verdict,
        *,
        text: str = "",
        reason: str = "",
        reviewer: str = "",
    ) -> Ticket:
        """End a ticket with a person's verdict; returns when it is committed.

        Of several reviewers exactly one wins. The same verdict again, with the same text, returns the ticket as the
        first one left it.

        Args:
            id: the ticket's id, or its first characters, as in `get`.
            verdict: `accept` what was proposed, `correct` it, or `reject` it.
            text: the right answer, with `correct` and only with it.
            reason: why.
            reviewer: who.

        Raises:
            TicketNotFoundError: no ticket, or more than one, has an id that starts so.
            TicketResolvedError: the ticket already ended with another verdict or another text.
            ReviewError: the verdict and its text don't go together, no attempt gave an answer that could be
                accepted, or the verdict can't be stored.
        """
        verdict = _checked(verdict, text)
        with self._storage.writing() as connection:
            record = record_of(_row_of(connection, id))
            if verdict is Verdict.ACCEPT and record.proposed is None:
                raise ReviewError(
                    f"ticket {record.ticket.id} has no answer to accept: no attempt gave one; 'correct' it with the "
                    "right answer, or 'reject' it"
                )
            resolved = connection.execute(
                update(tickets)
                .where(tickets.c.id == record.ticket.id, tickets.c.state == "open")
                .values(
                    state="resolved",
                    verdict=verdict.value,
                    text=text,
                    reason=reason,
                    reviewer=reviewer,
                    resolved_at=time.time(),
                )
            )
            is_ours = resolved.rowcount == 1
            ticket = ticket_of(_row_of(connection, record.ticket.id))
        if is_ours:
            events.log().info(events.TICKET_RESOLVED, ticket=ticket.id, queue=ticket.queue, verdict=verdict.value)
        elif (ticket.verdict, ticket.text) != (verdict, text):
            raise TicketResolvedError(_conflict(ticket, verdict))
        return ticket


def _checked(verdict: Verdict, text: str) -> Verdict:
    """The verdict, which may have come as a plain string from a form or a terminal, if its text goes with it."""
    try:
        verdict = Verdict(verdict)
    except ValueError:
        raise ReviewError(f"a verdict is 'accept', 'correct' or 'reject', got {verdict!r}") from None
    if verdict is Verdict.CORRECT and not text.strip():
        raise ReviewError("the verdict 'correct' needs the right answer as its text, which is empty")
    if verdict is not Verdict.CORRECT and text:
        raise ReviewError(
            f"the verdict {verdict.value!r} takes no text: use 'correct' to give an answer, or the reason to say why"
        )
    return verdict


def _row_of(connection: Connection, prefix: str) -> Row[Any]:
    """The full row of the one ticket whose id starts with the prefix."""
    prefix = prefix.strip().lower()
    if len(prefix) < _SHORTEST_PREFIX:
        raise TicketNotFoundError(
            f"{prefix!r} is too short for a ticket's id; give at least {_SHORTEST_PREFIX} characters"
        )
    found = _ids_from(connection, prefix) if re.fullmatch("[0-9a-f]+", prefix) else []
    if not found:
        raise TicketNotFoundError(f"no ticket's id starts with {prefix!r}; list the tickets to see their ids")
    if len(found) > 1:
        more = ", ..." if len(found) > _CANDIDATES_SHOWN else ""
        raise TicketNotFoundError(
            f"several tickets' ids start with {prefix!r}: {', '.join(found[:_CANDIDATES_SHOWN])}{more}; give more "
            "characters"
        )
    return connection.execute(select(tickets).where(tickets.c.id == found[0])).one()


def _ids_from(connection: Connection, prefix: str) -> list[str]:
    """Ids that start with the prefix, one more than are shown at most."""
    # Ids are lower-case hexadecimal, so whatever follows the prefix sorts before "g".
    starts_so = select(tickets.c.id).where(tickets.c.id >= prefix, tickets.c.id < prefix + "g")
    return list(connection.scalars(starts_so.order_by(tickets.c.id).limit(_CANDIDATES_SHOWN + 1)))


def _conflict(ticket: Ticket, verdict: Verdict) -> str:
    """Two verdicts that don't agree, without their texts."""
    what = "another text" if verdict is ticket.verdict else f"{verdict.value!r}"
    return f"ticket {ticket.id} already ended with the verdict {str(ticket.verdict)!r}; {what} can't replace it"
