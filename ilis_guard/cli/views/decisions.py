"""What the command line shows of decisions and of their attempts."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from ilis_guard.cli.views.text import SHORT_ID, coloured, escape
from ilis_guard.policy.explain import error_text, explain_decision, reasons
from ilis_guard.types import Action, Decision, ErrorInfo, ShadowRuling, Stage


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
                _said(attempt.stage, attempt.text, attempt.stopped_at),
                _number(attempt.uncertainty),
                coloured(made.action if is_last else Action.RETRY),
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


def decision_view(made: Decision) -> RenderableType:
    """A decision for people: what, on what grounds, and what each tier said."""
    parts: list[RenderableType] = [
        f"{coloured(made.action)}  {escape(made.text)}",
        attempts_table([attempt.to_dict() for attempt in made.attempts]),
    ]
    parts.append(escape(explain_decision(made)))
    parts += [f"- {escape(reason)}" for reason in reasons(made)]
    if made.shadow is not None:
        parts.append(f"- the policy that looks on, {made.shadow.policy}, would {_would(made.shadow)}")
    if made.ticket is not None:
        parts.append(f"ticket {made.ticket.id[:SHORT_ID]} waits in the queue {escape(repr(made.ticket.queue))}")
    return Group(*parts)


def attempts_table(attempts: Sequence[Mapping[str, Any]]) -> Table:
    """What each tier said, one attempt a row, from their dictionaries: as such they stand in tickets."""
    table = Table()
    for heading in ("tier", "answer", "uncertainty", "typicality", "tokens", "ms", "error"):
        table.add_column(heading, overflow="fold")
    for attempt in attempts:
        table.add_row(
            escape(attempt["tier"]),
            # Tickets of older releases have no stage, and nothing that a stream cut.
            _said(attempt.get("stage", "answer"), attempt["text"], attempt.get("stopped_at")),
            _number(attempt["uncertainty"]),
            _number(attempt["typicality"]),
            str(attempt["tokens"]),
            f"{attempt['seconds'] * 1000:.0f}",
            escape(_error(attempt["error"])),
        )
    return table


def _would(said: ShadowRuling) -> str:
    if said.error:
        return f"say nothing: {escape(error_text(said.error))}"
    if said.action is None:
        return "have wanted an answer that was never made"
    return f"{coloured(said.action)} by {escape(said.rule or 'no rule')}"


def _said(stage: Stage, text: str, stopped_at: int | None) -> str:
    if stage == "prompt":
        return "[dim]stopped at the prompt[/]"
    return escape(text) if stopped_at is None else f"{escape(text)} [dim](stopped after {stopped_at} tokens)[/]"


def _error(values: Mapping[str, Any] | None) -> str:
    return "" if values is None else error_text(ErrorInfo(**values))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
