"""`queue deliver`, `queue dead-letters`, `queue replay`, `queue enable`: what endpoints hear."""

import asyncio
import json
import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ilis_guard.cli.queue import AsJson, opened, review_in
from ilis_guard.cli.terminal import GUARD_YAML, Config, err, out
from ilis_guard.cli.views.dead_letters import dead_letters_table
from ilis_guard.cli.views.text import SHORT_ID, moment
from ilis_guard.errors import ReviewError
from ilis_guard.guard import open_queue, outbox_relay
from ilis_guard.review import dead_letters as letters

if TYPE_CHECKING:
    from ilis_guard.review.outbox import Outcome
    from ilis_guard.review.relay import OutboxRelay

_ORDER: Final[tuple["Outcome", ...]] = ("delivered", "failed", "taken over", "exhausted", "disabled")

commands = typer.Typer()


@commands.command("deliver")
def deliver(config: Config = GUARD_YAML) -> None:
    """Send endpoints what they are to hear, and sweep overdue tickets, until stopped (Ctrl-C or SIGTERM).

    Any number may run at once. What is under way when it is stopped is finished; the rest waits for the next worker.
    """
    review = review_in(config)
    with open_queue(review) as tickets:
        counts = asyncio.run(_deliver_until_stopped(outbox_relay(review, tickets)))
    out.print(_summary(counts), highlight=False)


@commands.command("dead-letters")
def dead_letters(
    config: Config = GUARD_YAML,
    endpoint: Annotated[str | None, typer.Option(help="Only what this endpoint didn't hear.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List what endpoints never heard, the latest first: all tries failed, or the endpoint answered 410 Gone."""
    with opened(config) as tickets:
        found = letters.dead_letters(tickets, endpoint=endpoint, limit=limit + 1)
        disabled = letters.disabled_endpoints(tickets)
    if as_json:
        print(json.dumps([letter.to_dict() for letter in found[:limit]]))  # noqa: T201 - rich would wrap the JSON
        return
    out.print(dead_letters_table(found[:limit], more=len(found) > limit))
    for name, since in disabled.items():
        out.print(f"{name} is disabled since {moment(since)}: it answered 410 Gone", highlight=False)


@commands.command("replay")
def replay(
    delivery: Annotated[str | None, typer.Argument(metavar="[ID]", help="Its id, or its first characters.")] = None,
    config: Config = GUARD_YAML,
    since: Annotated[
        str | None,
        typer.Option(help="Instead of one: all whose event happened at this time or later, such as 2027-01-15T08:00Z."),
    ] = None,
) -> None:
    """Send dead letters again, with the id they had: to be tried as often as a new delivery."""
    if (delivery is None) == (since is None):
        raise ReviewError("give the id of one dead letter, or --since for many; see `ilis-guard queue dead-letters`")
    with opened(config) as tickets:
        if delivery is not None:
            out.print(f"delivery {letters.replay(tickets, delivery)[:SHORT_ID]} is pending", highlight=False)
            return
        replayed = letters.replay_since(tickets, _time(str(since)))
    out.print(f"{replayed.pending} pending", highlight=False)
    if replayed.dead:
        out.print(
            f"{replayed.dead} stay dead: their endpoints are disabled, or guard.yaml doesn't name them", highlight=False
        )


@commands.command("enable")
def enable(
    endpoint: Annotated[str, typer.Argument(help="Its name in guard.yaml.")], config: Config = GUARD_YAML
) -> None:
    """Send to an endpoint again that answered 410 Gone. What it missed is a dead letter until it is replayed."""
    with opened(config) as tickets:
        letters.enable(tickets, endpoint)
    out.print(f"{endpoint} is enabled", highlight=False)


async def _deliver_until_stopped(deliverer: "OutboxRelay") -> Mapping["Outcome", int]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, stop.set)
    with err.status("delivering") as status:
        work = asyncio.create_task(deliverer.run(stop))
        while not (await asyncio.wait({work}, timeout=1.0))[0]:
            status.update(("finishing" if stop.is_set() else "delivering") + f": {_summary(deliverer.counts)}")
    await work
    return deliverer.counts


def _summary(counts: Mapping["Outcome", int]) -> str:
    """As "12 delivered, 1 failed"."""
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in _ORDER if outcome in counts) or "nothing to deliver"


def _time(text: str) -> float:
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ReviewError(f"--since takes a time in ISO 8601 (UTC unless it says), got {text!r}") from None
