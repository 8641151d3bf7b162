r"""The words and colours that all views share.

Texts of callers, models and files are escaped: markup in them is shown as it is written, and what would steer the
terminal (colours, cursor, clipboard, reading direction) is shown as ``\x1b`` or the like.
"""

import re
from datetime import UTC, datetime
from typing import Final

from rich import markup

from ilis_guard.types import Action

SHORT_ID: Final = 8

_COLOURS: Final = {
    Action.ANSWER: "green",
    Action.ABSTAIN: "red",
    Action.RETRY: "yellow",
    Action.ESCALATE: "magenta",
}

# Control characters but tab and line feed, direction overrides, and half characters, which no terminal takes.
_STEERING: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    """A text that isn't ours, ready to be shown."""
    return markup.escape(_STEERING.sub(lambda found: found.group().encode("unicode_escape").decode(), text))


def coloured(action: Action) -> str:
    """An action in its colour."""
    return f"[{_COLOURS[action]}]{action.value}[/]"


def moment(seconds: float | None) -> str:
    """A time for people, to the minute; empty where there is none."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
