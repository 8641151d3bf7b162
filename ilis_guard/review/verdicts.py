"""Verdicts: how a person ends a ticket, exactly once."""

from typing import Any

from sqlalchemy import Connection, Row, select

from ilis_guard.errors import (
    ReviewError,
    TicketChangedError,
    TicketClaimedError,
    TicketExpiredError,
    TicketResolvedError,
)
from ilis_guard.review.claims import is_claimed
from ilis_guard.review.ledger import TicketStore, row_of
from ilis_guard.review.record import proposed_in
from ilis_guard.review.schema import tickets
from ilis_guard.types import Verdict


def resolve(
    ledger: TicketStore,
    id: str,  # noqa: A002 - a ticket's word
    verdict: Verdict,
    *,
    text: str,
    reason: str,
    reviewer: str,
    version: int | None,
) -> tuple[Row[Any], bool]:
    """See `ReviewQueue.resolve`; also whether this verdict is the one that ended the ticket."""
    verdict = _checked(verdict, text)
    with ledger.writing() as connection:
        row = row_of(connection, id, for_update=True)
        if row.state == "resolved" and (row.verdict, row.text) == (verdict.value, text):
            return row, False
        now = ledger.clock()
        _check_stands(row, verdict, reviewer=reviewer, version=version, now=now)
        if verdict is Verdict.ACCEPT and _proposed(connection, row) is None:
            raise ReviewError(
                f"ticket {row.id} has no answer to accept: no attempt gave one; 'correct' it with the right answer, "
                "or 'reject' it"
            )
        values = {
            "state": "resolved",
            "verdict": verdict.value,
            "text": text,
            "reason": reason,
            "reviewer": reviewer,
            "ended_at": now,
            "claimed_by": "",
            "claimed_until": None,
        }
        return ledger.change(connection, row, "resolved", at=now, by=reviewer, values=values), True


def _proposed(connection: Connection, row: Row[Any]) -> str | None:
    return proposed_in(connection.scalars(select(tickets.c.attempts).where(tickets.c.id == row.id)).one())


def _check_stands(row: Row[Any], verdict: Verdict, *, reviewer: str, version: int | None, now: float) -> None:
    """See that the ticket stands as the reviewer saw it, and is the reviewer's to end."""
    if row.state == "resolved":
        what = "another text" if row.verdict == verdict.value else f"{verdict.value!r}"
        raise TicketResolvedError(
            f"ticket {row.id} already ended with the verdict {row.verdict!r}; {what} can't replace it"
        )
    if row.state == "expired":
        raise TicketExpiredError(f"ticket {row.id} was overdue and expired; it takes no verdict any more")
    if is_claimed(row, now) and row.claimed_by != reviewer:
        raise TicketClaimedError(
            f"ticket {row.id} is claimed by {row.claimed_by!r}; {reviewer!r} can't end it before it is released"
        )
    if version is not None and version != row.version:
        raise TicketChangedError(
            f"ticket {row.id} has version {row.version}, and the verdict is on version {version!r}; look at it again"
        )


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
