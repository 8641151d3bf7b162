"""What the command line shows of the human queue."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from ilis_guard.cli.views.decisions import attempts_table
from ilis_guard.cli.views.text import SHORT_ID, escape, moment
from ilis_guard.config.queues import EXPIRE
from ilis_guard.policy.explain import attempt_reasons
from ilis_guard.review import QueueCounts, TicketEvent, TicketRecord
from ilis_guard.types import Ticket
from ilis_guard.types.decisions import read_attempt


def tickets_table(tickets: Sequence[Ticket], *, more: bool = False) -> RenderableType:
    """Tickets, one a row.

    Args:
        tickets: the oldest first.
        more: whether there are more than these.
    """
    if not tickets:
        return "no such tickets"
    count = "1 ticket" if len(tickets) == 1 else f"{len(tickets)} tickets"
    title = f"the oldest {count}; there are more, see --limit" if more else count
    table = Table(title=title, title_justify="left")
    for heading in ("ticket", "queue", "state", "priority", "since", "due", "claimed by", "verdict"):
        table.add_column(heading, justify="right" if heading == "priority" else "left")
    for ticket in tickets:
        table.add_row(
            ticket.id[:SHORT_ID],
            escape(ticket.queue),
            ticket.state,
            str(ticket.priority),
            moment(ticket.created_at),
            moment(ticket.due_at),
            escape(ticket.claimed_by),
            ticket.verdict or "",
        )
    return table


def counts_table(counts: Sequence[QueueCounts]) -> RenderableType:
    """How many tickets there are, one queue a row."""
    if not counts:
        return "no tickets"
    table = Table()
    for heading in ("queue", "open", "claimed", "overdue", "resolved", "expired"):
        table.add_column(heading, justify="left" if heading == "queue" else "right")
    for of in counts:
        table.add_row(escape(of.queue), *map(str, (of.open, of.claimed, of.overdue, of.resolved, of.expired)))
    return table


def claim_line(ticket: Ticket) -> str:
    """Who has a ticket in hand, and until when."""
    by, until = escape(repr(ticket.claimed_by)), moment(ticket.claimed_until)
    return f"ticket {ticket.id[:SHORT_ID]} is claimed by {by} until {until}"


def ticket_view(record: TicketRecord) -> RenderableType:
    """A ticket for a reviewer."""
    ticket = record.ticket
    parts: list[RenderableType] = [
        f"[bold]ticket {ticket.id}[/bold], queue {escape(ticket.queue)}, {ticket.state}, since "
        f"{moment(ticket.created_at)}{_due(record)}"
    ]
    if record.redacted_at is not None:
        parts.append(f"[yellow]redacted[/yellow] on {moment(record.redacted_at)}: its texts are gone")
    parts += [f"{turn['role']}: {escape(turn['content'])}" for turn in record.request["messages"]]
    if record.request["labels"]:
        parts.append(escape(f"labels: {record.request['labels']}"))
    parts.append(attempts_table(record.attempts))
    parts.append(escape(record.explain()))
    parts += [
        f"- {escape(reason)}" for reason in attempt_reasons(tuple(map(read_attempt, record.attempts)), record.rulings)
    ]
    if record.say:
        parts.append(f"the caller was told: {escape(record.say)}")
    if ticket.verdict is None:
        proposed = "no answer that could be accepted" if record.proposed is None else escape(record.proposed)
        parts.append(f"[bold]proposed:[/bold] {proposed}")
    else:
        by = f" by {escape(record.reviewer)}" if record.reviewer else ""
        parts.append(f"[bold]verdict:[/bold] {ticket.verdict.value}{by}")
        parts += [
            f"{what}: {escape(text)}" for what, text in (("text", ticket.text), ("reason", ticket.reason)) if text
        ]
    parts += [_happening(happening) for happening in record.history]
    return Group(*parts)


def _due(record: TicketRecord) -> str:
    if record.ticket.due_at is None or record.ticket.ended_at is not None:
        return ""
    then = "it expires" if record.overdue == EXPIRE else f"it moves to {escape(repr(record.overdue))}"
    return f", due {moment(record.ticket.due_at)}: then {then}"


def _happening(happening: TicketEvent) -> str:
    by = f" by {escape(happening.by)}" if happening.by else ""
    to = f" to {escape(repr(happening.details['moved_to']))}" if happening.type == "moved" else ""
    return f"[dim]{moment(happening.at)}[/dim] {happening.type}{to}{by}"
