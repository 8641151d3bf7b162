"""Thinking in LangChain's messages: in their text, in blocks of their content, and beside it."""

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage

from ilis_guard.types.thinking import Problem, find_answer

BLOCK_TYPES: Final = frozenset({"reasoning", "reasoning_content", "redacted_thinking", "thinking"})
"""Of content: LangChain's own, Bedrock's, and Anthropic's and Mistral's."""
KEYS: Final = frozenset({"reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks"})
"""Of `additional_kwargs`: OpenAI's, DeepSeek's and vLLM's, OpenRouter's, Ollama's and LiteLLM's."""


def is_thinking(block: object) -> bool:
    """Whether a block of a message's content is thinking; Google marks text blocks as such."""
    if not isinstance(block, Mapping):
        return False
    if block.get("type") == "non_standard":
        return is_thinking(block.get("value"))
    return block.get("type") in BLOCK_TYPES or block.get("thought") is True


def answer_of(reply: AIMessage) -> tuple[str, Problem]:
    """The answer in a reply, and why there is none."""
    text = text_of(reply)
    part = find_answer(text)
    answer = part.of(text)
    is_unfinished = not answer and _has_thinking(reply)
    return answer, part.problem or ("unfinished" if is_unfinished else "")


def text_of(message: BaseMessage) -> str:
    """A message's text, without thinking that stands in blocks of its own."""
    if isinstance(message.content, str):
        return message.content
    kept = [block for block in message.content if not is_thinking(block)]
    return str(message.model_copy(update={"content": kept}).text)


def without_thinking(reply: AIMessage) -> AIMessage:
    """A reply without its thinking; the same one where it has none."""
    text = text_of(reply)
    part = find_answer(text)
    kept = {name: value for name, value in reply.additional_kwargs.items() if name not in KEYS}
    content: Any = reply.content
    if part.has_thinking:
        answer = part.of(text)
        content = answer if isinstance(content, str) else [{"type": "text", "text": answer}]
    elif _has_blocks(reply):
        content = [_without_id(block) for block in content if not is_thinking(block)]
    elif len(kept) == len(reply.additional_kwargs):
        return reply
    return reply.model_copy(update={"content": content, "additional_kwargs": kept})


def _has_thinking(reply: AIMessage) -> bool:
    return _has_blocks(reply) or any(reply.additional_kwargs.get(key) for key in KEYS)


def _has_blocks(reply: AIMessage) -> bool:
    return not isinstance(reply.content, str) and any(map(is_thinking, reply.content))


def _without_id(block: str | dict[str, Any]) -> str | dict[str, Any]:
    """OpenAI takes no block back by its id without the thinking that came before it."""
    return block if isinstance(block, str) else {name: value for name, value in block.items() if name != "id"}
