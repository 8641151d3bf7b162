"""Tools in a conversation: their calls and results, as text below the question that they belong to.

Chat templates take tools in many ways or none.
"""

import json
from collections.abc import Iterable
from typing import Any

from ilis_guard.errors import RequestError
from ilis_guard.types.requests import Message


def append_calls(turns: list[Message], said: str, calls: Iterable[tuple[str, Any]]) -> None:
    """Append calls of tools to the user's last turn.

    Args:
        turns: so far.
        said: what the assistant said beside the calls; may be empty.
        calls: names and arguments, JSON values.

    Raises:
        RequestError: there is no turn by the user yet.
    """
    described = [f"[{name} was asked] {json.dumps(arguments)}" for name, arguments in calls]
    _append(turns, "\n".join([said, *described] if said else described))


def append_result(turns: list[Message], name: str, text: str) -> None:
    """Append a tool's result to the user's last turn.

    Raises:
        RequestError: there is no turn by the user yet.
    """
    _append(turns, f"[{name} said] {text}")


def _append(turns: list[Message], text: str) -> None:
    index = next((index for index in reversed(range(len(turns))) if turns[index].role == "user"), None)
    if index is None:
        raise RequestError(
            "a tool was used before the user's first turn; a guard takes conversations that a user began"
        )
    turns[index] = Message(role="user", content=f"{turns[index].content}\n\n{text}")
