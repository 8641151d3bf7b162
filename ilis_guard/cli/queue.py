"""`queue ...`: the human queue, its tickets and its webhooks."""

import asyncio
import re
import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from ilis_guard.cli.console import (
    GUARD_YAML,
    SHORT_ID,
    AsJson,
    Config,
    count,
    err,
    format_time,
    out,
    print_json,
    print_line,
)
from ilis_guard.errors import ConfigError, ReviewError
from ilis_guard.types import Verdict

if TYPE_CHECKING:  # the database's libraries, which `--help` doesn't need
    from ilis_guard.config.review import ReviewConfig
    from ilis_guard.review import ReviewQueue
    from ilis_guard.review.outbox import Outcome
    from ilis_guard.review.relay import OutboxRelay

commands = typer.Typer(
    name="queue", help="The human queue: list, show, claim and resolve tickets, deliver webhooks.", no_args_is_help=True
)

TicketId = Annotated[str, typer.Argument(metavar="TICKET", help="The ticket's id, or its first characters.")]
Reviewer = Annotated[str, typer.Option(help="Your name.")]
OlderThan = Annotated[str, typer.Option(help="How long ago they ended: a number and s, m, h or d, such as 30d.")]

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_OUTCOMES: "Final[tuple[Outcome, ...]]" = ("delivered", "failed", "taken over", "exhausted", "disabled")
"""Of deliveries, in the order in which they are counted."""


def review_settings(config: Path) -> "ReviewConfig":
    """Read a guard.yaml's `review`.

    Raises:
        ConfigError: the file is wrong, or has no `review`.
    """
    from ilis_guard.config.guard_yaml import read_config

    review = read_config(config).review
    if review is None:
        raise ConfigError(f"{config}: there is no `review`, so no tickets are kept")
    return review


def open_tickets(config: Path) -> "ReviewQueue":
    """Open the human queue of a guard.yaml."""
    from ilis_guard.guard import open_queue

    return open_queue(review_settings(config))


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
    from ilis_guard.cli.decision_tables import tickets_table

    # A claimed ticket isn't open.
    wanted = None if state == "all" or (state == "open" and reviewer is not None) else state
    with open_tickets(config) as tickets:
        found = tickets.list(state=wanted, queue=queue, claimed_by=reviewer, limit=limit + 1)
    if as_json:
        print_json([ticket.to_dict() for ticket in found[:limit]])
    else:
        out.print(tickets_table(found[:limit], more=len(found) > limit))


@commands.command()
def counts(config: Config = GUARD_YAML) -> None:
    """Show how many tickets each queue has."""
    from ilis_guard.cli.decision_tables import counts_table

    with open_tickets(config) as tickets:
        out.print(counts_table(tickets.counts()))


@commands.command()
def show(ticket: TicketId, config: Config = GUARD_YAML, as_json: AsJson = False) -> None:
    """Show a ticket: the request, each tier's answer and its uncertainty, why it was escalated, and its history."""
    from ilis_guard.cli.decision_tables import ticket_view

    with open_tickets(config) as tickets:
        record = tickets.get(ticket)
    if as_json:
        print_json(record.to_dict())
    else:
        out.print(ticket_view(record), soft_wrap=True)


@commands.command()
def claim(
    reviewer: Reviewer,
    ticket: Annotated[
        str | None,
        typer.Argument(metavar="[TICKET]", help="Its id, or its first characters; by default the most urgent one."),
    ] = None,
    config: Config = GUARD_YAML,
    queue: Annotated[str | None, typer.Option(help="Without a ticket: the most urgent one of this queue.")] = None,
    lease: Annotated[
        float | None, typer.Option(min=1, help="Seconds that the claim lasts; by default the queue's own.")
    ] = None,
) -> None:
    """Claim a ticket, so that nobody else works on it; claiming it again extends the claim."""
    from ilis_guard.cli.decision_tables import claim_line

    if ticket is not None and queue is not None:
        raise ReviewError("--queue is for the most urgent ticket of a queue; leave out the one or the other")
    with open_tickets(config) as tickets:
        if ticket is None:
            claimed = tickets.claim_next(reviewer=reviewer, queue=queue, lease=lease)
        else:
            claimed = tickets.claim(ticket, reviewer=reviewer, lease=lease)
    print_line("no open tickets" if claimed is None else claim_line(claimed))


@commands.command()
def release(
    ticket: TicketId,
    reviewer: Reviewer,
    config: Config = GUARD_YAML,
    force: Annotated[bool, typer.Option("--force", help="Also where somebody else claimed it.")] = False,
) -> None:
    """Give a claim back, so that others get the ticket."""
    with open_tickets(config) as tickets:
        released = tickets.release(ticket, reviewer=reviewer, force=force)
    print_line(f"ticket {released.id[:SHORT_ID]} is {released.state}")


@commands.command()
def resolve(
    ticket: TicketId,
    verdict: Annotated[Verdict, typer.Argument(help="Your verdict on the proposed answer.")],
    config: Config = GUARD_YAML,
    text: Annotated[str, typer.Option(help="The right answer, with the verdict correct.")] = "",
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    reviewer: Reviewer = "",
    version: Annotated[int | None, typer.Option(help="The version of the ticket that you looked at.")] = None,
) -> None:
    """End a ticket with a verdict."""
    with open_tickets(config) as tickets:
        resolved = tickets.resolve(ticket, verdict, text=text, reason=reason, reviewer=reviewer, version=version)
    print_line(f"ticket {resolved.id[:SHORT_ID]} resolved: {resolved.verdict}")


@commands.command()
def sweep(config: Config = GUARD_YAML) -> None:
    """Let overdue tickets expire or move to their next queue."""
    with open_tickets(config) as tickets:
        print_line(f"{count(tickets.sweep(), 'ticket')} overdue")


@commands.command()
def export(
    to: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    config: Config = GUARD_YAML,
    queue: Annotated[str | None, typer.Option(help="Only tickets of this queue.")] = None,
    signatures: Annotated[bool, typer.Option("--signatures", help="With signatures, which are large.")] = False,
) -> None:
    """Write verdicts as labelled rows: the request, the answers, the verdict, and the rule that escalated."""
    with open_tickets(config) as tickets:
        rows = tickets.export(to, queue=queue, signatures=signatures)
    print_line(f"{count(rows, 'row')} in {to}")


@commands.command()
def redact(older_than: OlderThan, config: Config = GUARD_YAML) -> None:
    """Take prompts and answers out of tickets that ended long ago; scores, signatures, verdicts and history stay."""
    seconds = _parse_age(older_than)
    with open_tickets(config) as tickets:
        print_line(f"{count(tickets.redact(older_than=seconds), 'ticket')} redacted")


@commands.command()
def purge(
    older_than: OlderThan,
    config: Config = GUARD_YAML,
    export_to: Annotated[
        Path | None, typer.Option("--export", help="Write everything that is deleted to this new JSONL file first.")
    ] = None,
) -> None:
    """Delete tickets that ended long ago, unless webhooks about them are pending."""
    seconds = _parse_age(older_than)
    with open_tickets(config) as tickets:
        print_line(f"{count(tickets.purge(older_than=seconds, export_to=export_to), 'ticket')} deleted")


@commands.command()
def migrate(config: Config = GUARD_YAML) -> None:
    """Create the queue's tables, or migrate them to this version of ilis_guard; back the database up first."""
    from ilis_guard.review import migrate as run

    before, after = run(review_settings(config).storage_url)
    print_line(f"revision {after}" if before == after else f"revision {before or 'none'} -> {after}")


@commands.command()
def deliver(config: Config = GUARD_YAML) -> None:
    """Deliver webhooks and sweep overdue tickets until stopped (Ctrl-C or SIGTERM).

    Several may run at once. Running deliveries are finished on the way out; the rest waits for the next worker.
    """
    from ilis_guard.guard import open_queue, outbox_relay

    review = review_settings(config)
    with open_queue(review) as tickets:
        relay = outbox_relay(review, tickets)
        asyncio.run(_deliver_until_stopped(relay))
    print_line(_summarize(relay.counts))


@commands.command()
def dead_letters(
    config: Config = GUARD_YAML,
    endpoint: Annotated[str | None, typer.Option(help="Only webhooks to this endpoint.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List undelivered webhooks, the latest first: all tries failed, or the endpoint answered 410 Gone."""
    from ilis_guard.cli.decision_tables import dead_letters_table
    from ilis_guard.review import dead_letters as letters

    with open_tickets(config) as tickets:
        found = letters.dead_letters(tickets, endpoint=endpoint, limit=limit + 1)
        disabled = letters.disabled_endpoints(tickets)
    if as_json:
        print_json([letter.to_dict() for letter in found[:limit]])
        return
    out.print(dead_letters_table(found[:limit], more=len(found) > limit))
    for name, since in disabled.items():
        print_line(f"{name} is disabled since {format_time(since)}: it answered 410 Gone")


@commands.command()
def replay(
    delivery: Annotated[str | None, typer.Argument(metavar="[ID]", help="Its id, or its first characters.")] = None,
    config: Config = GUARD_YAML,
    since: Annotated[
        str | None,
        typer.Option(help="Instead of one: all whose event happened at this time or later, such as 2027-01-15T08:00Z."),
    ] = None,
) -> None:
    """Send dead letters again under their old ids, with as many tries as a new delivery has."""
    from ilis_guard.review import dead_letters as letters

    if (delivery is None) == (since is None):
        raise ReviewError("give the id of one dead letter, or --since for many; see `ilis-guard queue dead-letters`")
    with open_tickets(config) as tickets:
        if delivery is not None:
            print_line(f"delivery {letters.replay(tickets, delivery)[:SHORT_ID]} is pending")
            return
        replayed = letters.replay_since(tickets, _parse_time(str(since)))
    print_line(f"{replayed.pending} pending")
    if replayed.dead:
        print_line(f"{replayed.dead} stay dead: their endpoints are disabled, or guard.yaml doesn't name them")


@commands.command()
def enable(
    endpoint: Annotated[str, typer.Argument(help="Its name in guard.yaml.")], config: Config = GUARD_YAML
) -> None:
    """Enable an endpoint again that answered 410 Gone. The webhooks it missed stay dead letters until replayed."""
    from ilis_guard.review import dead_letters as letters

    with open_tickets(config) as tickets:
        letters.enable(tickets, endpoint)
    print_line(f"{endpoint} is enabled")


async def _deliver_until_stopped(relay: "OutboxRelay") -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with err.status("delivering") as status:
        work = asyncio.create_task(relay.run(stop))
        while not (await asyncio.wait({work}, timeout=1.0))[0]:
            status.update(("finishing" if stop.is_set() else "delivering") + f": {_summarize(relay.counts)}")
    await work


def _summarize(counts: "Mapping[Outcome, int]") -> str:
    """``12 delivered, 1 failed``."""
    return ", ".join(f"{counts[one]} {one}" for one in _OUTCOMES if one in counts) or "nothing to deliver"


def _parse_time(text: str) -> float:
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ReviewError(f"--since takes a time in ISO 8601 (UTC unless it says), got {text!r}") from None


def _parse_age(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None:
        raise ReviewError(f"--older-than takes a number and s, m, h or d, such as 30d, got {text!r}")
    return float(int(match[1]) * _SECONDS[match[2]])
