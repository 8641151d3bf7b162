"""Chat completions: a decision as OpenAI's clients know answers and refusals, whole or while it comes."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ilis_guard import Retraction, StreamEvent, TextDelta
from ilis_guard.types import Decision
from ilis_guard_server.asked import asked_of, read
from ilis_guard_server.clients import Client
from ilis_guard_server.completing import ASKED_STATUSES, completed
from ilis_guard_server.document import body_of, decision_response
from ilis_guard_server.openai_requests import ChatRequest
from ilis_guard_server.openai_responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    EndReason,
    Withdrawal,
)
from ilis_guard_server.problems import responses
from ilis_guard_server.service import TheService
from ilis_guard_server.telling import finish_reason, instead, refusal, summary, usage

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post(
    "/chat/completions",
    summary="Ask the guard as a chat model",
    responses={200: decision_response("ChatCompletion", "ChatChunk"), **responses(*ASKED_STATUSES)},
    openapi_extra=body_of("ChatRequest"),
)
async def chat_completions(request: Request, service: TheService, client: Client) -> Response:
    """An answer is `content`; an abstention or an escalation is `content: null` and a `refusal`.

    The decision stands in `ilis_guard`: streaming, in the chunk with the `finish_reason`.
    """
    body = await read(request, ChatRequest)
    asked = asked_of(body, service, client=client, request=request)
    telling = _Telling(id=f"chatcmpl-{asked.id}", model=service.settings.model, with_usage=body.includes_usage)
    return await completed(request, service, asked, telling, streams=body.stream is True)


class _Telling:
    """One completion.

    Args:
        id: its id.
        model: the name that the guard goes by.
        with_usage: whether a stream tells the tokens.
    """

    def __init__(self, *, id: str, model: str, with_usage: bool) -> None:  # noqa: A002 - OpenAI's name
        self._of: dict[str, Any] = {"id": id, "model": model, "created": int(time.time())}
        self._with_usage = with_usage

    def whole(self, decision: Decision) -> ChatCompletion:
        """A decision in one piece."""
        refused = refusal(decision)
        message = ChatMessage(content=decision.text if refused is None else None, refusal=refused)
        return ChatCompletion(
            **self._of,
            choices=[ChatChoice(message=message, finish_reason=finish_reason(decision))],
            usage=usage(decision),
            ilis_guard=summary(decision),
        )

    async def chunks(self, events: AsyncGenerator[StreamEvent, None]) -> AsyncGenerator[str, None]:
        """A decision on its way. What was said can't be taken back: after a retraction, `content` doesn't grow."""
        yield self._chunk(ChatDelta(role="assistant", content=""))
        retracted = False
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta):
                    yield self._chunk(ChatDelta(content=event.text))
                elif isinstance(event, Retraction):
                    retracted = True
                    yield self._chunk(ChatDelta(), ilis_guard=Withdrawal(retracted=True, reason=event.reason))
                else:
                    for text in self._end(event, retracted=retracted):
                        yield text

    def _end(self, decision: Decision, *, retracted: bool) -> list[str]:
        said = instead(decision) if retracted else refusal(decision)
        reason: EndReason = "content_filter" if retracted else finish_reason(decision)
        told = [] if said is None else [self._chunk(ChatDelta(refusal=said))]
        told.append(self._chunk(ChatDelta(), reason, ilis_guard=summary(decision, retracted=retracted)))
        if self._with_usage:
            told.append(self._said([], usage=usage(decision)))
        return told

    def _chunk(self, delta: ChatDelta, reason: EndReason | None = None, **more: Any) -> str:
        return self._said([ChatChunkChoice(index=0, delta=delta, finish_reason=reason)], **more)

    def _said(self, choices: list[ChatChunkChoice], **more: Any) -> str:
        chunk = ChatChunk(**self._of, object="chat.completion.chunk", choices=choices, **more)
        # Without what doesn't stand in this chunk: clients add up what does.
        return chunk.model_dump_json(exclude_unset=True)
