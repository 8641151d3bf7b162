"""Conversations in the format of OpenAI's chat completions, as files for training and evaluation hold them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ilis_guard.errors import RequestError
from ilis_guard.types import Message, Request, Role
from ilis_guard.types.thinking import without_thinking
from ilis_guard.types.tools import append_calls, append_result

_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "system": frozenset({"role", "content"}),
    "developer": frozenset({"role", "content"}),
    "user": frozenset({"role", "content"}),
    "assistant": frozenset({"role", "content", "tool_calls"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
"""The keys that a message of each role may have."""
_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


def read_conversation(messages: object) -> tuple[Message, ...]:
    """Convert messages to a request's, as the guard's own entrances do.

    `developer` is `system`. Calls of tools and their results become text below the question that they belong to, as
    `ilis_guard_langchain`'s middleware writes them: chat templates take tools in many ways or none.

    Args:
        messages: mappings with `role` and `content`, the last turn the user's.

    Raises:
        RequestError: they aren't such a conversation; the message names the turn, not its words.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise RequestError(f"must be a list of messages, got a {type(messages).__name__}")
    turns: list[Message] = []
    names: dict[str, str] = {}
    for number, message in enumerate(messages, start=1):
        where = f"message number {number}"
        role, content = _checked(message, where)
        calls = message.get("tool_calls") or []
        if (role == "tool" or calls) and not any(turn.role == "user" for turn in turns):
            raise RequestError(f"{where} uses a tool before the user's first turn")
        if role == "tool":
            name = message.get("name") or names.get(str(message.get("tool_call_id")), "tool")
            append_result(turns, name, content)
        elif calls:
            append_calls(turns, without_thinking(content), [_call(call, names, where) for call in calls])
        else:
            turns.append(Message(role=_ROLES[role], content=content))
    if turns and turns[-1].role == "assistant":
        raise RequestError("the last turn is the assistant's; it must be the user's: right answers stand in 'answers'")
    return Request.of(turns).messages


def _checked(message: object, where: str) -> tuple[str, str]:
    """A message's role and text."""
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} must be an object with 'role' and 'content', got a {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or role not in _KEYS:
        raise RequestError(f"{where} has the role {role!r:.40}; it must be one of {', '.join(map(repr, _KEYS))}")
    if unknown := sorted(set(message) - _KEYS[role]):
        raise RequestError(f"{where} has the key {unknown[0]!r:.40}, which a message by {role!r} may not have")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return role, ""
    if isinstance(content, list) and all(_is_text(part) for part in content):
        return role, "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RequestError(f"{where} has content of type {type(content).__name__}; it must be text")
    return role, content


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _call(call: Any, names: dict[str, str], where: str) -> tuple[str, Any]:
    """A call's tool and its arguments; remembers whose result it will be."""
    try:
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        names[str(call.get("id"))] = name
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise RequestError(
            f"{where} calls a tool otherwise than OpenAI's format says ({type(error).__name__}); it must have "
            "'function' with 'name' and 'arguments', a JSON text"
        ) from None
    return name, arguments
