"""A stream's events as message chunks, which sum up to the message that a reader should be left with."""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata, add_ai_message_chunks
from langchain_core.outputs import ChatGenerationChunk

from ilis_guard import Action, Decision, Retraction, StreamEvent, TextDelta
from ilis_guard_langchain.telling import KEY, refusal, told


class WithdrawableChunk(AIMessageChunk):
    """A piece of an answer that may yet be withdrawn, or what withdraws all pieces before it.

    LangChain sums up chunks wherever a stream becomes a message: in an agent's history, in a trace, for a parser.
    Plain chunks would leave the withdrawn answer there, glued to the message that came in its place. In a sum with
    these, what was withdrawn is gone; that it was there stays to be seen in `response_metadata`.
    """

    @classmethod
    def lc_id(cls) -> list[str]:
        """To whoever loads one, it is a chunk like any other."""
        return AIMessageChunk.lc_id()

    def __add__(self, other: Any) -> Any:
        """Sum up, from the last retraction on."""
        return _sum([self, *other] if isinstance(other, list | tuple) else [self, other])

    def __radd__(self, other: Any) -> Any:
        """As `__add__`; Python asks the more special of two kinds first."""
        return _sum([other, self])


def chunk(event: StreamEvent, *, model_name: str, shown: bool) -> ChatGenerationChunk:
    """An event as LangChain streams it.

    Args:
        event: of `Guard.stream`.
        model_name: of the guard.
        shown: whether pieces came before it that stand.
    """
    if isinstance(event, TextDelta):
        message: AIMessageChunk = WithdrawableChunk(content=event.text)
    elif isinstance(event, Retraction):
        message = WithdrawableChunk(content="", response_metadata={KEY: {"retraction": event.reason}})
    else:
        # The decision comes once, in the last chunk: sums of chunks add numbers and join strings.
        whole = message_of(event, model_name=model_name)
        message = AIMessageChunk(
            content="" if shown else whole.content,
            additional_kwargs=whole.additional_kwargs,
            response_metadata=whole.response_metadata,
            usage_metadata=whole.usage_metadata,
            chunk_position="last",
        )
    return ChatGenerationChunk(message=message)


def message_of(decision: Decision, *, model_name: str) -> AIMessage:
    """A decision as the message that a chat model gives.

    An abstention or an escalation is one as well: the message that the policy chose, with a `refusal` beside it, where
    LangChain's OpenAI models put theirs.
    """
    is_answer = decision.action is Action.ANSWER
    return AIMessage(
        content=decision.text,
        additional_kwargs={} if is_answer else refusal(decision),
        response_metadata={
            KEY: told(decision),
            "model_name": model_name,
            "finish_reason": (is_answer and decision.attempts[-1].finish_reason) or "stop",
        },
        usage_metadata=_usage(decision),
    )


def _usage(decision: Decision) -> UsageMetadata:
    """All that was read and written for this decision, also by tiers whose answers were passed over."""
    read = sum(attempt.prompt_tokens for attempt in decision.attempts)
    written = sum(attempt.tokens for attempt in decision.attempts)
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def _sum(chunks: Sequence[AIMessageChunk]) -> AIMessageChunk:
    since = max((place for place, each in enumerate(chunks) if _withdraws(each)), default=0)
    kept = [_emptied(each) if place < since else each for place, each in enumerate(chunks)]
    # With the last chunk the message is there: nothing of it is withdrawn any more, and LangChain makes a message of
    # its own kind of chunk only.
    is_whole = any(each.chunk_position == "last" for each in chunks)
    kind = AIMessageChunk if is_whole else WithdrawableChunk
    first = kind(**{name: value for name, value in kept[0].__dict__.items() if name != "type"})
    return add_ai_message_chunks(first, *kept[1:])


def _withdraws(each: AIMessageChunk) -> bool:
    """Also a sum that began later, and has what withdraws in it: what it holds besides came after that."""
    return "retraction" in each.response_metadata.get(KEY, {})


def _emptied(each: AIMessageChunk) -> AIMessageChunk:
    return each.model_copy(update={"content": "" if isinstance(each.content, str) else []})
