"""An agent's messages as a guard's conversation: what tools said stands below the question that they were asked for."""

import json
from collections.abc import Sequence
from typing import Final

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage

from ilis_guard import Message
from ilis_guard.errors import RequestError
from ilis_guard.types import Role

_ROLES: Final[dict[str, Role]] = {"human": "user", "ai": "assistant", "system": "system"}
_TEXT_BLOCKS: Final = ("text", "text-plain")


def transcript(messages: Sequence[AnyMessage]) -> list[Message]:
    """What a reviewer, or a model without tools, must read to judge or to give the answer.

    Raises:
        RequestError: a tool was used before anybody asked, a turn isn't by a user, an assistant, a system or a tool,
            or the user's turn isn't text.
    """
    turns: list[Message] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            _append(turns, f"[{message.name or 'tool'} said] {message.text}")
        elif isinstance(message, AIMessage) and message.tool_calls:
            calls = [f"[{call['name']} was asked] {json.dumps(call['args'])}" for call in message.tool_calls]
            _append(turns, "\n".join([message.text, *calls] if message.text else calls))
        else:
            turns.append(Message(role=_role(message), content=_text(message)))
    return turns


def _append(turns: list[Message], text: str) -> None:
    """Put a text below the user's last turn, where it is seen with the question."""
    asked = next((index for index, turn in reversed(list(enumerate(turns))) if turn.role == "user"), None)
    if asked is None:
        raise RequestError(
            "a tool was used before the user's first turn; a guard takes conversations that a user began"
        )
    turns[asked] = Message(role="user", content=f"{turns[asked].content}\n\n{text}")


def _role(message: AnyMessage) -> Role:
    if message.type not in _ROLES:
        raise RequestError(f"a guard takes messages of the types {sorted([*_ROLES, 'tool'])!r}, got {message.type!r}")
    return _ROLES[message.type]


def _text(message: AnyMessage) -> str:
    """A turn's text; a picture in a user's turn would be missing for whoever reviews the answer to it."""
    if message.type == "human" and not isinstance(message.content, str):
        kinds = {str(block.get("type")) if isinstance(block, dict) else "text" for block in message.content}
        if others := sorted(kinds.difference(_TEXT_BLOCKS)):
            raise RequestError(f"a guard takes turns of text, got a user's turn with {others!r}")
    return str(message.text)
