"""`queue ...`: the human queue."""

import json
import re
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from ilis_guard.cli.terminal import GUARD_YAML, Config, out
from ilis_guard.cli.views.text import SHORT_ID
from ilis_guard.cli.views.tickets import claim_line, counts_table, ticket_view, tickets_table
from ilis_guard.config.review import ReviewConfig
from ilis_guard.errors import ConfigError, ReviewError
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Verdict

commands = typer.Typer(
    name="queue", help="The human queue: list, show, claim and resolve tickets, and keep them.", no_args_is_help=True
)

TicketId = Annotated[str, typer.Argument(metavar="TICKET", help="The ticket's id, or its first characters.")]
Reviewer = Annotated[str, typer.Option(help="Who you are.")]
Lease = Annotated[float | None, typer.Option(min=1, help="Seconds that the claim lasts; by default the queue's own.")]
OlderThan = Annotated[str, typer.Option(help="How long ago they ended: a number and s, m, h or d, such as 30d.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def review_in(config: Path) -> ReviewConfig:
    """What a guard.yaml says of the human queue.

    Raises:
        ConfigError: it is wrong, or says nothing of it.
    """
    from ilis_guard.config.guard_yaml import read_config

    review = read_config(config).review
    if review is None:
        raise ConfigError(f"{config}: there is no `review`, so no tickets are kept")
    return review


def opened(config: Path) -> ReviewQueue:
    """The human queue that a guard.yaml names."""
    from ilis_guard.guard import open_queue

    return open_queue(review_in(config))


@commands.command("list")
def list_(
    config: Config = GUARD_YAML,
    state: Annotated[
        Literal["open", "claimed", "resolved", "expired", "all"], typer.Option(help="Which tickets.")
    ] = "open",
    queue: Annotated[str | None, typer.Option(help="Only tickets of this queue.")] = None,
    reviewer: Annotated[str | None, typer.Option(help="Only tickets that this reviewer has claimed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List tickets, the most urgent first: by priority, then by due time, then by age."""
    # What somebody has claimed isn't open.
    wanted = None if state == "all" or (state == "open" and reviewer is not None) else state
    with opened(config) as tickets:
        found = tickets.list(state=wanted, queue=queue, claimed_by=reviewer, limit=limit + 1)
    if as_json:
        print(json.dumps([ticket.to_dict() for ticket in found[:limit]]))  # noqa: T201 - rich would wrap the JSON
    else:
        out.print(tickets_table(found[:limit], more=len(found) > limit))


@commands.command("counts")
def counts(config: Config = GUARD_YAML) -> None:
    """Show how many tickets each queue has."""
    with opened(config) as tickets:
        counted = tickets.counts()
    out.print(counts_table(counted))


@commands.command("show")
def show(ticket: TicketId, config: Config = GUARD_YAML, as_json: AsJson = False) -> None:
    """Show a ticket: what was asked, what each tier said, how sure it was, why it waits here, what happened since."""
    with opened(config) as tickets:
        record = tickets.get(ticket)
    if as_json:
        print(json.dumps(record.to_dict()))  # noqa: T201 - rich would wrap the JSON
    else:
        out.print(ticket_view(record), soft_wrap=True)


@commands.command("claim")
def claim(
    reviewer: Reviewer,
    ticket: Annotated[
        str | None,
        typer.Argument(metavar="[TICKET]", help="Its id, or its first characters; by default the most urgent one."),
    ] = None,
    config: Config = GUARD_YAML,
    queue: Annotated[str | None, typer.Option(help="Without a ticket: the most urgent one of this queue.")] = None,
    lease: Lease = None,
) -> None:
    """Take a ticket in hand, so that nobody else does; claiming it again makes the claim last longer."""
    if ticket is not None and queue is not None:
        raise ReviewError("--queue is for the most urgent ticket of a queue; leave out the one or the other")
    with opened(config) as tickets:
        if ticket is None:
            claimed = tickets.claim_next(reviewer=reviewer, queue=queue, lease=lease)
        else:
            claimed = tickets.claim(ticket, reviewer=reviewer, lease=lease)
    out.print("no open tickets" if claimed is None else claim_line(claimed), highlight=False, soft_wrap=True)


@commands.command("release")
def release(
    ticket: TicketId,
    reviewer: Reviewer,
    config: Config = GUARD_YAML,
    force: Annotated[bool, typer.Option("--force", help="Also where somebody else claimed it.")] = False,
) -> None:
    """Give a claim back, so that others get the ticket."""
    with opened(config) as tickets:
        released = tickets.release(ticket, reviewer=reviewer, force=force)
    out.print(f"ticket {released.id[:SHORT_ID]} is {released.state}", highlight=False)


@commands.command("resolve")
def resolve(
    ticket: TicketId,
    verdict: Annotated[Verdict, typer.Argument(help="What you say of the proposed answer.")],
    config: Config = GUARD_YAML,
    text: Annotated[str, typer.Option(help="The right answer, with the verdict correct.")] = "",
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    reviewer: Reviewer = "",
    version: Annotated[int | None, typer.Option(help="The version of the ticket that you looked at.")] = None,
) -> None:
    """End a ticket with a verdict."""
    with opened(config) as tickets:
        resolved = tickets.resolve(ticket, verdict, text=text, reason=reason, reviewer=reviewer, version=version)
    out.print(f"ticket {resolved.id[:SHORT_ID]} resolved: {resolved.verdict}", highlight=False)


@commands.command("sweep")
def sweep(config: Config = GUARD_YAML) -> None:
    """Let overdue tickets expire or move to their next queue."""
    with opened(config) as tickets:
        swept = tickets.sweep()
    out.print(f"{_tickets(swept)} overdue", highlight=False)


@commands.command("export")
def export(
    to: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    config: Config = GUARD_YAML,
    queue: Annotated[str | None, typer.Option(help="Only tickets of this queue.")] = None,
    signatures: Annotated[bool, typer.Option("--signatures", help="With signatures, which are large.")] = False,
) -> None:
    """Write verdicts as labelled rows: what was asked and answered, whether it was right, why it was reviewed."""
    with opened(config) as tickets:
        rows = tickets.export(to, queue=queue, signatures=signatures)
    out.print(f"{'1 row' if rows == 1 else f'{rows} rows'} in {to}", highlight=False, soft_wrap=True)


@commands.command("redact")
def redact(older_than: OlderThan, config: Config = GUARD_YAML) -> None:
    """Take prompts and answers out of tickets that ended long ago; scores, signatures, verdicts and history stay."""
    seconds = _seconds(older_than)
    with opened(config) as tickets:
        redacted = tickets.redact(older_than=seconds)
    out.print(f"{_tickets(redacted)} redacted", highlight=False)


@commands.command("purge")
def purge(
    older_than: OlderThan,
    config: Config = GUARD_YAML,
    export_to: Annotated[
        Path | None, typer.Option("--export", help="Write everything that is deleted to this new JSONL file first.")
    ] = None,
) -> None:
    """Delete tickets that ended long ago, unless an endpoint is still to hear of them."""
    seconds = _seconds(older_than)
    with opened(config) as tickets:
        purged = tickets.purge(older_than=seconds, export_to=export_to)
    out.print(f"{_tickets(purged)} deleted", highlight=False)


@commands.command("migrate")
def migrate(config: Config = GUARD_YAML) -> None:
    """Bring the queue's tables to this version of ilis_guard, or make them; back the database up first."""
    from ilis_guard.review import migrate as run

    before, after = run(review_in(config).storage_url)
    changed = f"revision {after}" if before == after else f"revision {before or 'none'} -> {after}"
    out.print(changed, highlight=False)


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d{1,9})([smhd])", age)
    if match is None:
        raise ReviewError(f"--older-than takes a number and s, m, h or d, such as 30d, got {age!r}")
    return float(int(match[1]) * _SECONDS[match[2]])


def _tickets(count: int) -> str:
    return "1 ticket" if count == 1 else f"{count} tickets"
