"""`queue ...`: the human queue."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ilis_guard import views
from ilis_guard.cli.terminal import GUARD_YAML, Config, out
from ilis_guard.errors import ConfigError
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Verdict

commands = typer.Typer(name="queue", help="The human queue: list, show and resolve tickets.", no_args_is_help=True)


def _queue(config: Path) -> ReviewQueue:
    from ilis_guard.config import read_config

    review = read_config(config).review
    if review is None:
        raise ConfigError(f"{config}: there is no `review`, so no tickets are kept")
    return review.open()


@commands.command("list")
def list_(
    config: Config = GUARD_YAML,
    state: Annotated[Literal["open", "resolved", "all"], typer.Option(help="Which tickets.")] = "open",
    queue: Annotated[str | None, typer.Option(help="Only tickets of this queue.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
) -> None:
    """List tickets, the oldest first."""
    with _queue(config) as tickets:
        found = tickets.list(state=None if state == "all" else state, queue=queue, limit=limit + 1)
    out.print(views.tickets_table(found[:limit], more=len(found) > limit))


@commands.command("show")
def show(
    ticket: Annotated[str, typer.Argument(help="The ticket's id, or its first characters.")],
    config: Config = GUARD_YAML,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, signatures too.")] = False,
) -> None:
    """Show a ticket: what was asked, what each tier said, how sure it was, and why it waits here."""
    with _queue(config) as tickets:
        record = tickets.get(ticket)
    if as_json:
        print(json.dumps(record.to_dict()))  # noqa: T201 - rich would wrap the JSON
    else:
        out.print(views.ticket_record(record), soft_wrap=True)


@commands.command("resolve")
def resolve(
    ticket: Annotated[str, typer.Argument(help="The ticket's id, or its first characters.")],
    verdict: Annotated[Verdict, typer.Argument(help="What you say of the proposed answer.")],
    config: Config = GUARD_YAML,
    text: Annotated[str, typer.Option(help="The right answer, with the verdict correct.")] = "",
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    reviewer: Annotated[str, typer.Option(help="Who you are.")] = "",
) -> None:
    """End a ticket with a verdict."""
    with _queue(config) as tickets:
        resolved = tickets.resolve(ticket, verdict, text=text, reason=reason, reviewer=reviewer)
    out.print(f"ticket {resolved.id[:8]} resolved: {resolved.verdict}", highlight=False)
