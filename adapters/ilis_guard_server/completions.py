"""Legacy completions: a prompt in, a text out, or none and a refusal."""

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
from ilis_guard_server.openai_requests import CompletionRequest
from ilis_guard_server.openai_responses import Completion, CompletionChoice, EndReason, Summary, Withdrawal
from ilis_guard_server.problems import responses
from ilis_guard_server.service import TheService
from ilis_guard_server.telling import finish_reason, instead, refusal, summary, usage

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post(
    "/completions",
    summary="Ask the guard as a legacy completion model",
    responses={200: decision_response("Completion", "Completion"), **responses(*ASKED_STATUSES)},
    openapi_extra=body_of("CompletionRequest"),
)
async def completions(request: Request, service: TheService, client: Client) -> Response:
    """The prompt is the user's turn of a conversation. Without an answer, `text` is empty and `refusal` says why."""
    body = await read(request, CompletionRequest)
    asked = asked_of(body, service, client=client, request=request)
    telling = _Telling(id=f"cmpl-{asked.id}", model=service.settings.model, with_usage=body.includes_usage)
    return await completed(request, service, asked, telling, streams=body.stream is True)


class _Telling:
    """One completion.

    Args:
        id: its id.
        model: the name that the guard goes by.
        with_usage: whether a stream tells the tokens.
    """

    def __init__(self, *, id: str, model: str, with_usage: bool) -> None:  # noqa: A002 - OpenAI's name
        self._of: dict[str, Any] = {"id": id, "object": "text_completion", "model": model, "created": int(time.time())}
        self._with_usage = with_usage

    def whole(self, decision: Decision) -> Completion:
        """A decision in one piece."""
        refused = refusal(decision)
        return self._completion(
            "" if refused else decision.text,
            refused=refused,
            reason="content_filter" if refused else finish_reason(decision),
            usage=usage(decision),
            ilis_guard=summary(decision),
        )

    async def chunks(self, events: AsyncGenerator[StreamEvent, None]) -> AsyncGenerator[str, None]:
        """A decision on its way. What was said can't be taken back: after a retraction, `text` doesn't grow."""
        retracted = False
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta):
                    yield _json(self._completion(event.text))
                elif isinstance(event, Retraction):
                    retracted = True
                    yield _json(self._completion("", ilis_guard=Withdrawal(retracted=True, reason=event.reason)))
                else:
                    for text in self._end(event, retracted=retracted):
                        yield text

    def _end(self, decision: Decision, *, retracted: bool) -> list[str]:
        refused = instead(decision) if retracted else refusal(decision)
        reason: EndReason = "content_filter" if refused else finish_reason(decision)
        told: Summary = summary(decision, retracted=retracted)
        texts = [_json(self._completion("", refused=refused, reason=reason, ilis_guard=told))]
        if self._with_usage:
            texts.append(_json(Completion(**self._of, choices=[], usage=usage(decision))))
        return texts

    def _completion(
        self, text: str, *, refused: str | None = None, reason: EndReason | None = None, **more: Any
    ) -> Completion:
        choice = CompletionChoice(index=0, text=text, refusal=refused, logprobs=None, finish_reason=reason)
        return Completion(**self._of, choices=[choice], **more)


def _json(chunk: Completion) -> str:
    return chunk.model_dump_json(exclude_unset=True)
