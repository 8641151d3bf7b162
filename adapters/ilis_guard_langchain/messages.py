"""What LangChain's models are sent, as the guard's messages."""

from typing import Final

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue

from ilis_guard import Message
from ilis_guard.errors import RequestError
from ilis_guard.types import Role

ROLES: Final[dict[str, Role]] = {"human": "user", "ai": "assistant", "system": "system"}


def to_messages(given: LanguageModelInput) -> list[Message]:
    """A conversation as a guard takes it.

    Args:
        given: whatever a chat model takes: text, a prompt's value, or messages in any of LangChain's ways.

    Raises:
        RequestError: a message isn't text by a user, an assistant or a system.
    """
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    turns = given.to_messages() if isinstance(given, PromptValue) else convert_to_messages(given)
    return [_message(turn) for turn in turns]


def _message(turn: BaseMessage) -> Message:
    if turn.type not in ROLES:
        raise RequestError(f"a guard takes messages of the types {sorted(ROLES)!r}, got {turn.type!r}")
    # LangChain's models of ``output_version="v1"`` write their own answers in parts, and are sent them again.
    is_own_text = isinstance(turn, AIMessage) and all(part["type"] == "text" for part in turn.content_blocks)
    if not isinstance(turn.content, str) and not is_own_text:
        raise RequestError(f"a guard takes messages of text, got a message with content of {len(turn.content)} parts")
    return Message(role=ROLES[turn.type], content=turn.text)
