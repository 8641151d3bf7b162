"""What the command line shows of webhooks that weren't delivered."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from ilis_guard.cli.views.text import SHORT_ID, escape, moment
from ilis_guard.review.dead_letters import DeadLetter


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
    for heading in ("delivery", "ticket", "endpoint", "event", "happened", "state", "tries", "last", "error"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "tries" else "left")
    for letter in letters:
        table.add_row(
            letter.id[:SHORT_ID],
            letter.ticket[:SHORT_ID],
            escape(letter.endpoint),
            letter.event,
            moment(letter.created_at),
            letter.state,
            str(letter.tries),
            moment(letter.last_try_at),
            escape(letter.last_error),
        )
    return table
