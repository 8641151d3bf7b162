"""Tables and texts of decisions, attempts, tickets and undelivered webhooks."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from ilis_guard.cli.console import SHORT_ID, color_action, count, escape, format_time, make_table
from ilis_guard.config.review import EXPIRE
from ilis_guard.policy.explain import attempt_reasons, error_text, explain_decision, reasons, shadow_note
from ilis_guard.review import QueueCounts, TicketEvent, TicketRecord
from ilis_guard.review.dead_letters import DeadLetter
from ilis_guard.types import Action, Attempt, Decision, ShadowRuling, Ticket
from ilis_guard.types.decisions import read_attempt


def decisions_table(questions: Sequence[str], decisions: Sequence[Decision]) -> Table:
    """One row an attempt. Each attempt but a question's last one was retried on a larger tier."""
    columns = ("question", "answer", "uncertainty", "action", "rule", "tier", "ms")
    table = make_table(*columns, title="What the guard decided", right=("uncertainty", "ms"))
    for question, made in zip(questions, decisions, strict=True):
        for number, (attempt, rule) in enumerate(zip(made.attempts, made.rules, strict=True), start=1):
            is_last = number == len(made.attempts)
            table.add_row(
                escape(question) if number == 1 else "",
                _answer(attempt),
                _uncertainty(attempt),
                color_action(made.action if is_last else Action.RETRY),
                escape(rule or "none held"),
                escape(attempt.tier),
                f"{attempt.seconds * 1000:.0f}",
                end_section=is_last,
            )
    return table


def demo_next_steps(config: Path, decisions: Sequence[Decision]) -> str:
    """Where the tickets are, and commands to try."""
    tickets = [made.ticket for made in decisions if made.ticket is not None]
    ticket = tickets[0].id[:SHORT_ID] if tickets else "TICKET"
    policy = config.parent / "policy.yaml"
    program = sys.argv[0]
    return (
        f"{len(tickets)} of {len(decisions)} questions wait for a person in {config.parent / 'tickets.db'}. Try next:\n"
        f"  {program} queue list -c {config}\n"
        f"  {program} queue show {ticket} -c {config}\n"
        f"  {program} queue resolve {ticket} reject -c {config}\n"
        f'  {program} ask "What is the capital of Japan?" -c {config}\n'
        f"  change a threshold in {policy}, check it, and run the demo again:\n"
        f"  {program} policy check {policy} -c {config}"
    )


def decision_view(made: Decision) -> RenderableType:
    """A decision: the action, each tier's attempt, and the reasons."""
    parts: list[RenderableType] = [
        f"{color_action(made.action)}  {escape(made.text)}",
        attempts_table(made.attempts),
        escape(explain_decision(made)),
        *(f"- {escape(reason)}" for reason in reasons(made)),
    ]
    if made.shadow is not None:
        parts.append(f"- the shadow policy, {made.shadow.policy}, would {_shadow_action(made.shadow)}")
        parts += [f"- {escape(shadow_note(note))}" for note in made.shadow.notes]
    if made.ticket is not None:
        parts.append(f"ticket {made.ticket.id[:SHORT_ID]} waits in the queue {escape(repr(made.ticket.queue))}")
    return Group(*parts)


def attempts_table(attempts: Sequence[Attempt]) -> Table:
    """One row an attempt."""
    table = make_table("tier", "answer", "uncertainty", "rank", "typicality", "tokens", "ms", "error")
    for attempt in attempts:
        table.add_row(
            escape(attempt.tier),
            _answer(attempt),
            _uncertainty(attempt),
            _number(attempt.rank),
            _number(attempt.typicality),
            "" if attempt.tokens is None else str(attempt.tokens),
            f"{attempt.seconds * 1000:.0f}",
            "" if attempt.error is None else escape(error_text(attempt.error)),
        )
    return table


def tickets_table(tickets: Sequence[Ticket], *, more: bool = False) -> RenderableType:
    """One row a ticket.

    Args:
        tickets: the oldest first.
        more: whether there are more than these.
    """
    if not tickets:
        return "no such tickets"
    number = count(len(tickets), "ticket")
    title = f"the oldest {number}; there are more, see --limit" if more else number
    columns = ("ticket", "queue", "kind", "state", "priority", "since", "due", "claimed by", "verdict")
    table = make_table(*columns, title=title, right=("priority",))
    for ticket in tickets:
        table.add_row(
            ticket.id[:SHORT_ID],
            escape(ticket.queue),
            ticket.kind,
            ticket.state,
            str(ticket.priority),
            format_time(ticket.created_at),
            format_time(ticket.due_at),
            escape(ticket.claimed_by),
            ticket.verdict or "",
        )
    return table


def counts_table(counts: Sequence[QueueCounts]) -> RenderableType:
    """One row a queue: the number of its tickets by state."""
    if not counts:
        return "no tickets"
    states = ("open", "claimed", "overdue", "resolved", "expired")
    table = make_table("queue", *states, right=states)
    for of in counts:
        table.add_row(escape(of.queue), *(str(getattr(of, state)) for state in states))
    return table


def claim_line(ticket: Ticket) -> str:
    """Who has claimed a ticket, and until when."""
    by, until = escape(repr(ticket.claimed_by)), format_time(ticket.claimed_until)
    return f"ticket {ticket.id[:SHORT_ID]} is claimed by {by} until {until}"


def ticket_view(record: TicketRecord) -> RenderableType:
    """A ticket for a reviewer."""
    ticket, attempts = record.ticket, tuple(map(read_attempt, record.attempts))
    parts: list[RenderableType] = [
        f"[bold]ticket {ticket.id}[/bold], queue {escape(ticket.queue)}, {ticket.kind}, {ticket.state}, since "
        f"{format_time(ticket.created_at)}{_due(record)}"
    ]
    if record.redacted_at is not None:
        parts.append(f"[yellow]redacted[/yellow] on {format_time(record.redacted_at)}: its texts are gone")
    parts += [f"{turn['role']}: {escape(turn['content'])}" for turn in record.request["messages"]]
    if record.request["labels"]:
        parts.append(escape(f"labels: {record.request['labels']}"))
    parts += [attempts_table(attempts), escape(record.explain())]
    parts += [f"- {escape(reason)}" for reason in attempt_reasons(attempts, record.rulings)]
    if record.say:
        parts.append(f"message to the caller: {escape(record.say)}")
    if ticket.verdict is None:
        proposed = "no answer that could be accepted" if record.proposed is None else escape(record.proposed)
        parts.append(f"[bold]proposed:[/bold] {proposed}")
    else:
        by = f" by {escape(record.reviewer)}" if record.reviewer else ""
        parts.append(f"[bold]verdict:[/bold] {ticket.verdict.value}{by}")
        texts = {"text": ticket.text, "reason": ticket.reason}
        parts += [f"{name}: {escape(text)}" for name, text in texts.items() if text]
    return Group(*parts, *map(_event_line, record.history))


def dead_letters_table(letters: Sequence[DeadLetter], *, more: bool = False) -> RenderableType:
    """One row an undelivered webhook.

    Args:
        letters: the latest event first.
        more: whether there are more than these.
    """
    if not letters:
        return "no dead letters"
    number = count(len(letters), "dead letter")
    title = f"the latest {number}; there are more, see --limit" if more else number
    columns = ("delivery", "ticket", "endpoint", "event", "happened", "state", "tries", "last", "error")
    table = make_table(*columns, title=title, right=("tries",))
    for letter in letters:
        table.add_row(
            letter.id[:SHORT_ID],
            letter.ticket[:SHORT_ID],
            escape(letter.endpoint),
            letter.event,
            format_time(letter.created_at),
            letter.state,
            str(letter.tries),
            format_time(letter.last_try_at),
            escape(letter.last_error),
        )
    return table


def _shadow_action(shadow: ShadowRuling) -> str:
    if shadow.error is not None:
        return f"have failed: {escape(error_text(shadow.error))}"
    if shadow.action is None:
        return "have needed an answer that was never made"
    return f"{color_action(shadow.action)} by {escape(shadow.rule or 'no rule')}"


def _answer(attempt: Attempt) -> str:
    if attempt.stage == "prompt":
        return "[dim]stopped at the prompt[/]"
    stopped = "" if attempt.stopped_at is None else f" [dim](stopped after {count(attempt.stopped_at, 'token')})[/]"
    return f"{escape(attempt.text)}{stopped}"


def _uncertainty(attempt: Attempt) -> str:
    uncalibrated = " [yellow](not calibrated)[/]" if attempt.departures else ""
    return f"{_number(attempt.uncertainty)}{uncalibrated}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _due(record: TicketRecord) -> str:
    if record.ticket.due_at is None or record.ticket.ended_at is not None:
        return ""
    then = "it expires" if record.overdue == EXPIRE else f"it moves to {escape(repr(record.overdue))}"
    return f", due {format_time(record.ticket.due_at)}: then {then}"


def _event_line(event: TicketEvent) -> str:
    by = f" by {escape(event.by)}" if event.by else ""
    to = f" to {escape(repr(event.details['moved_to']))}" if event.type == "moved" else ""
    return f"[dim]{format_time(event.at)}[/dim] {event.type}{to}{by}"
