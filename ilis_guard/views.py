r"""What the command line shows: tables and short texts made of the vocabulary.

Texts of callers, models and files are escaped: markup in them is shown as it is written, and what would steer the
terminal (colours, cursor, clipboard, reading direction) is shown as ``\x1b`` or the like.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich import markup
from rich.console import Group, RenderableType
from rich.table import Table

from ilis_guard.review import Happening, QueueCounts, TicketRecord
from ilis_guard.review.dead_letters import DeadLetter
from ilis_guard.review.settings import EXPIRE
from ilis_guard.scoring.bundle import BundleMetadata, Figure, HeldOut
from ilis_guard.types import Action, Decision, Stage, Ticket

if TYPE_CHECKING:  # importing it imports torch
    from ilis_guard.signature.proof import Proof

COLOURS: Final = {
    Action.ANSWER: "green",
    Action.ABSTAIN: "red",
    Action.RETRY: "yellow",
    Action.ESCALATE: "magenta",
}
SHORT_ID: Final = 8
PROOF: Final = "logits moved"
"""By so many standard deviations, when the tap was disturbed."""

# Control characters but tab and line feed, direction overrides, and half characters, which no terminal takes.
_STEERING: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    """A text that isn't ours, ready to be shown."""
    return markup.escape(_STEERING.sub(lambda found: found.group().encode("unicode_escape").decode(), text))


def decisions_table(questions: Sequence[str], decisions: Sequence[Decision]) -> Table:
    """One row an attempt; all attempts but a question's last one were retried on a larger tier."""
    table = Table(title="What the guard decided", title_justify="left")
    for heading in ("question", "answer", "uncertainty", "action", "rule", "tier"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "uncertainty" else "left")
    table.add_column("ms", justify="right")
    for question, made in zip(questions, decisions, strict=True):
        for number, (attempt, rule) in enumerate(zip(made.attempts, made.rules, strict=True), start=1):
            is_last = number == len(made.attempts)
            table.add_row(
                escape(question) if number == 1 else "",
                _said(attempt.stage, attempt.text),
                _number(attempt.uncertainty),
                _action(made.action if is_last else Action.RETRY),
                escape(rule or "none held"),
                escape(attempt.tier),
                f"{attempt.seconds * 1000:.0f}",
                end_section=is_last,
            )
    return table


def demo_next_steps(config: Path, decisions: Sequence[Decision]) -> str:
    """Where the tickets are, and what to try."""
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


def decision(made: Decision) -> RenderableType:
    """A decision for people: what, on what grounds, and what each tier said."""
    parts: list[RenderableType] = [f"{_action(made.action)}  {escape(made.text)}", _attempts_table(_attempts_of(made))]
    parts += [f"- {escape(reason)}" for reason in made.reasons]
    if made.ticket is not None:
        parts.append(f"ticket {made.ticket.id[:SHORT_ID]} waits in the queue {escape(repr(made.ticket.queue))}")
    return Group(*parts)


def taps_table(title: str, proofs: "Sequence[Proof]") -> Table:
    """One row a layer: what is tapped, and how far the logits moved when it was disturbed."""
    table = Table(title=escape(title), title_justify="left")
    for heading in ("layer", "module", "shape", "dtype", "device", PROOF):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("layer", PROOF) else "left")
    for proof in proofs:
        shape = f"[*, *, {', '.join(map(str, proof.shape))}]"  # batch and sequence
        moved = f"{proof.moved:.2g} sd"
        cells = (str(proof.point.layer), proof.point.path, shape, proof.dtype, proof.device, moved)
        table.add_row(*map(escape, cells))
    return table


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


def claim(ticket: Ticket) -> str:
    """Who has a ticket in hand, and until when."""
    by, until = escape(repr(ticket.claimed_by)), moment(ticket.claimed_until)
    return f"ticket {ticket.id[:SHORT_ID]} is claimed by {by} until {until}"


def ticket_record(record: TicketRecord) -> RenderableType:
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
    parts.append(_attempts_table(record.attempts))
    parts += [f"- {escape(reason)}" for reason in record.reasons]
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


def _happening(happening: Happening) -> str:
    by = f" by {escape(happening.by)}" if happening.by else ""
    to = f" to {escape(repr(happening.details['moved_to']))}" if happening.what == "moved" else ""
    return f"[dim]{moment(happening.at)}[/dim] {happening.what}{to}{by}"


def dead_letters_table(letters: Sequence[DeadLetter], *, more: bool = False) -> RenderableType:
    """Dead letters, one a row.

    Args:
        letters: the latest event first.
        more: whether there are more than these.
    """
    if not letters:
        return "no dead letters"
    count = "1 dead letter" if len(letters) == 1 else f"{len(letters)} dead letters"
    title = f"the latest {count}; there are more, see --limit" if more else count
    table = Table(title=title, title_justify="left")
    for heading in ("delivery", "ticket", "receiver", "event", "happened", "state", "tries", "last", "error"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "tries" else "left")
    for letter in letters:
        table.add_row(
            letter.id[:SHORT_ID],
            letter.ticket[:SHORT_ID],
            escape(letter.receiver),
            letter.event,
            moment(letter.created_at),
            letter.state,
            str(letter.tries),
            moment(letter.last_try_at),
            escape(letter.last_error),
        )
    return table


def held_out_table(metadata: BundleMetadata) -> Table:
    """A bundle's figures beside those of the output statistics alone, on the same rows."""
    rows = metadata.held_out.rows
    table = Table(
        title=f"{rows} held-out rows, {metadata.held_out.wrong / rows:.0%} of the answers wrong", title_justify="left"
    )
    alone = "output statistics alone" if metadata.stage == "answer" else "output statistics, once it answered"
    for heading in ("figure", "this bundle", alone):
        table.add_column(heading)
    for name in HeldOut.model_fields:
        value = getattr(metadata.held_out, name)
        if isinstance(value, Figure):
            table.add_row(name, _figure(value), _figure(getattr(metadata.baseline, name)))
    return table


def _attempts_of(made: Decision) -> list[Mapping[str, Any]]:
    return [attempt.to_dict() for attempt in made.attempts]


def _attempts_table(attempts: Sequence[Mapping[str, Any]]) -> Table:
    table = Table()
    for heading in ("tier", "answer", "uncertainty", "shift", "tokens", "ms", "error"):
        table.add_column(heading, overflow="fold")
    for attempt in attempts:
        table.add_row(
            escape(attempt["tier"]),
            # Tickets of older releases have no stage.
            _said(attempt.get("stage", "answer"), attempt["text"]),
            _number(attempt["uncertainty"]),
            _number(attempt["shift"]),
            str(attempt["tokens"]),
            f"{attempt['seconds'] * 1000:.0f}",
            escape(attempt["error"]),
        )
    return table


def _said(stage: Stage, text: str) -> str:
    return escape(text) if stage == "answer" else "[dim]stopped at the prompt[/]"


def _action(action: Action) -> str:
    return f"[{COLOURS[action]}]{action.value}[/]"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _figure(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def moment(seconds: float | None) -> str:
    """A time for people, to the minute; empty where there is none."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
