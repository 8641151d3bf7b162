"""LangChain's messages as a guard's conversation, and a guard's decisions as LangChain's messages."""

from collections.abc import Sequence
from typing import Any, Final

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage, convert_to_messages
from langchain_core.messages.ai import UsageMetadata, add_ai_message_chunks
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompt_values import PromptValue

from ilis_guard import Action, Decision, Message, Retraction, StreamEvent, TextDelta
from ilis_guard.errors import RequestError
from ilis_guard.models.reasoning import is_thinking, text_of
from ilis_guard.text import is_blank, whole_characters
from ilis_guard.types import Role, total
from ilis_guard.types.thinking import without_thinking
from ilis_guard.types.tools import append_calls, append_result

KEY: Final = "ilis_guard"
"""The key in a message's `response_metadata` of its decision's summary; in a stream, before it, of the `retraction`."""
_ROLES: Final[dict[str, Role]] = {"human": "user", "ai": "assistant", "system": "system"}


def to_messages(given: LanguageModelInput) -> list[Message]:
    """Convert a conversation to a guard's messages.

    Args:
        given: whatever a chat model takes: text, a prompt value, or messages in any of LangChain's forms.

    Raises:
        RequestError: a message isn't text by a user, an assistant or a system.
    """
    if isinstance(given, str):
        return [Message(role="user", content=whole_characters(given))]
    turns = given.to_messages() if isinstance(given, PromptValue) else convert_to_messages(given)
    return [Message(role=_role(turn, list(_ROLES)), content=whole_characters(_plain_text(turn))) for turn in turns]


def find_conversation(given: Any) -> LanguageModelInput:
    """The conversation that an input is by itself: text, messages, or an agent's state."""
    if isinstance(given, dict) and isinstance(given.get("messages"), list):
        given = given["messages"]
    if isinstance(given, str | PromptValue | list | tuple):
        return given
    if isinstance(given, BaseMessage):
        return [given]
    raise RequestError(
        f"what a chain asks can't be told from its input, a {type(given).__name__}, and it shows no model inside: "
        "pass prompt=, which makes text or messages of the input"
    )


def transcribe(messages: Sequence[BaseMessage]) -> list[Message]:
    """Convert an agent's messages: calls and results of tools stand as text below the question that they belong to.

    A reviewer, or a model without tools, must read them to judge or to give the answer.

    Raises:
        RequestError: a tool was used before the user's first turn, a message isn't by a user, an assistant, a system
            or a tool, or the user's turn isn't text.
    """
    turns: list[Message] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            append_result(turns, message.name or "tool", message.text)
        elif isinstance(message, AIMessage) and message.tool_calls:
            calls = [(call["name"], call["args"]) for call in message.tool_calls]
            append_calls(turns, without_thinking(text_of(message)), calls)
        else:
            turns.append(Message(role=_role(message, [*_ROLES, "tool"]), content=_text_of_blocks(message)))
    # A provider's earlier answers, and tools' results, may hold what no prompt can.
    return [Message(role=turn.role, content=whole_characters(turn.content)) for turn in turns]


def summarize_decision(decision: Decision) -> dict[str, Any]:
    """Summarize a decision for callers, as JSON values without texts and signatures.

    Errors stand in it by kind, rules by id and outcome. A stranger's exception text, and so a path, a host or a key,
    never does.
    """
    return {
        "id": decision.id,
        "action": decision.action.value,
        "rule": decision.rule,
        "uncertainty": decision.uncertainty,
        "calibrated": decision.calibrated,
        "rank": decision.rank,
        "rulings": [ruling.for_callers() for ruling in decision.rulings],
        "errors": [attempt.error.for_callers() for attempt in decision.attempts if attempt.error is not None],
        "tier": decision.attempts[-1].tier,
        "ticket": None if decision.ticket is None else decision.ticket.id,
        "ticket_error": None if decision.ticket_error is None else decision.ticket_error.for_callers(),
        "cost": decision.cost,
        "policy": decision.policy,
    }


def attach_summary(output: Any, summary: dict[str, Any]) -> Any:
    """Copy a model's message with a decision's summary in its metadata; any other value stays as it is."""
    if not isinstance(output, AIMessage):
        return output
    return output.model_copy(update={"response_metadata": {**output.response_metadata, KEY: summary}})


def refusal_kwargs(decision: Decision) -> dict[str, str]:
    """The `additional_kwargs` of a message that is no answer, as LangChain's OpenAI models set them.

    Never an empty text, also where the policy says nothing: whoever tests for a refusal must find one.
    """
    return {"refusal": decision.action.value if is_blank(decision.text) else decision.text}


def build_message(decision: Decision, *, model_name: str) -> AIMessage:
    """Build the message that a chat model returns for a decision: the answer, or the policy's text as a refusal."""
    is_answer = decision.action is Action.ANSWER
    # Of all attempts: a tier whose answer was discarded read and wrote for this decision too.
    read = total((attempt.prompt_tokens for attempt in decision.attempts), start=0)
    written = total((attempt.tokens for attempt in decision.attempts), start=0)
    return AIMessage(
        content=decision.text,
        additional_kwargs={} if is_answer else refusal_kwargs(decision),
        response_metadata={
            KEY: summarize_decision(decision),
            "model_name": model_name,
            "finish_reason": decision.attempts[-1].finish_reason if is_answer else "stop",
        },
        usage_metadata=usage_metadata(read, written),
    )


def usage_metadata(prompt_tokens: int | None, tokens: int | None) -> UsageMetadata | None:
    """The tokens as LangChain's messages hold them; None where they aren't known."""
    if prompt_tokens is None or tokens is None:
        return None
    return UsageMetadata(input_tokens=prompt_tokens, output_tokens=tokens, total_tokens=prompt_tokens + tokens)


def build_chunk(event: StreamEvent, *, model_name: str, has_text: bool) -> ChatGenerationChunk:
    """Build the chunk that LangChain streams for an event.

    Args:
        event: of `Guard.stream`.
        model_name: of the guard.
        has_text: whether the stream has text that wasn't withdrawn.
    """
    if isinstance(event, TextDelta):
        message: AIMessageChunk = WithdrawableChunk(content=event.text)
    elif isinstance(event, Retraction):
        message = WithdrawableChunk(content="", response_metadata={KEY: {"retraction": event.reason}})
    else:
        # The metadata come once, in the last chunk: sums of chunks add numbers and join strings.
        whole = build_message(event, model_name=model_name)
        message = AIMessageChunk(
            content="" if has_text else whole.content,
            additional_kwargs=whole.additional_kwargs,
            response_metadata=whole.response_metadata,
            usage_metadata=whole.usage_metadata,
            chunk_position="last",
        )
    return ChatGenerationChunk(message=message)


def as_chunk(output: Any) -> Any:
    """A stream's chunk: messages become chunks, which can be summed."""
    if isinstance(output, AIMessage) and not isinstance(output, AIMessageChunk):
        return AIMessageChunk(**output.model_dump(exclude={"type"}))
    return output


class WithdrawableChunk(AIMessageChunk):
    """A chunk of an answer that may yet be withdrawn, or the chunk that withdraws all before it.

    LangChain sums chunks wherever a stream becomes a message: in an agent's history, in a trace, for a parser. Plain
    chunks would leave the withdrawn answer there, joined to the message that replaces it. A sum of these drops what was
    withdrawn, and keeps the retraction's reason in `response_metadata`.
    """

    @classmethod
    def lc_id(cls) -> list[str]:
        """LangChain's own class: whoever loads a serialized chunk gets a plain one."""
        return AIMessageChunk.lc_id()

    def __add__(self, other: Any) -> Any:
        """Sum the chunks from the last retraction on."""
        return _sum([self, *other] if isinstance(other, list | tuple) else [self, other])

    def __radd__(self, other: Any) -> Any:
        """As `__add__`; Python calls the subclass's operator first."""
        return _sum([other, self])


def _sum(chunks: Sequence[AIMessageChunk]) -> AIMessageChunk:
    # A sum that holds a retraction counts as one: its text came after it.
    start = max((i for i, each in enumerate(chunks) if "retraction" in each.response_metadata.get(KEY, {})), default=0)
    kept = [
        each.model_copy(update={"content": "" if isinstance(each.content, str) else []}) if index < start else each
        for index, each in enumerate(chunks)
    ]
    # With the last chunk nothing can be withdrawn any more, and LangChain makes messages only of its own class.
    is_whole = any(each.chunk_position == "last" for each in chunks)
    kind = AIMessageChunk if is_whole else WithdrawableChunk
    first = kind(**{name: value for name, value in kept[0].__dict__.items() if name != "type"})
    return add_ai_message_chunks(first, *kept[1:])


def _role(turn: BaseMessage, types: Sequence[str]) -> Role:
    if turn.type not in _ROLES:
        raise RequestError(f"a guard takes messages of the types {sorted(types)!r}, got {turn.type!r}")
    return _ROLES[turn.type]


def _plain_text(turn: BaseMessage) -> str:
    # Models with ``output_version="v1"`` write their own answers in blocks, and receive them again.
    is_own_text = isinstance(turn, AIMessage) and all(
        block["type"] == "text" or is_thinking(block) for block in turn.content_blocks
    )
    if not isinstance(turn.content, str) and not is_own_text:
        raise RequestError(f"a guard takes messages of text, got a message with content of {len(turn.content)} parts")
    return text_of(turn)


def _text_of_blocks(turn: BaseMessage) -> str:
    """A turn's text. An image in a user's turn is refused: it would be missing for whoever reviews the answer."""
    if turn.type == "human" and not isinstance(turn.content, str):
        kinds = {str(block.get("type")) if isinstance(block, dict) else "text" for block in turn.content}
        if others := sorted(kinds - {"text", "text-plain"}):
            raise RequestError(f"a guard takes turns of text, got a user's turn with {others!r}")
    return text_of(turn)
