"""OpenAI's endpoints: chat completions, legacy completions and models."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Final, Protocol

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from ilis_guard import Retraction, StreamEvent, TextDelta
from ilis_guard.types import Decision
from ilis_guard_server.dependencies import Client, GuardDep, GuardState
from ilis_guard_server.guard_call import GuardCall, json_body
from ilis_guard_server.openapi import decision_response, problem_responses, request_body
from ilis_guard_server.problem_details import ApiError
from ilis_guard_server.schemas.requests import ChatRequest, CompletionRequest
from ilis_guard_server.schemas.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    Completion,
    CompletionChoice,
    DecisionSummary,
    ModelCard,
    ModelList,
    StreamFinishReason,
    Usage,
    Withdrawal,
    decision_headers,
    finish_reason_of,
    refusal_of,
)
from ilis_guard_server.sse import EventStream

_STATUSES: Final = (400, 401, 403, 404, 413, 415, 429, 500, 503)

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post(
    "/chat/completions",
    summary="Ask the guard as a chat model",
    responses={200: decision_response(ChatCompletion, ChatChunk), **problem_responses(*_STATUSES)},
    openapi_extra=request_body(ChatRequest),
)
async def create_chat_completion(
    request: Request, body: Annotated[ChatRequest, Depends(json_body(ChatRequest))], state: GuardDep, client: Client
) -> Response:
    """An answer is `content`; an abstention or an escalation is `content: null` and a `refusal`.

    The decision stands in `ilis_guard`: of a stream, in the chunk with the `finish_reason`.
    """
    return await _complete(request, body, state, client, _ChatRenderer)


@router.post(
    "/completions",
    summary="Ask the guard as a legacy completion model",
    responses={200: decision_response(Completion, Completion), **problem_responses(*_STATUSES)},
    openapi_extra=request_body(CompletionRequest),
)
async def create_completion(
    request: Request,
    body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))],
    state: GuardDep,
    client: Client,
) -> Response:
    """The prompt is the user's turn of a conversation. Without an answer, `text` is empty and `refusal` says why."""
    return await _complete(request, body, state, client, _CompletionRenderer)


@router.get("/models", summary="List the models", responses=problem_responses(401, 403, 500))
async def list_models(state: GuardDep, client: Client) -> ModelList:
    """There is one, the guard: its tiers are the operator's."""
    del client
    return ModelList(data=[_model_card(state)])


@router.get("/models/{model:path}", summary="Get a model", responses=problem_responses(401, 403, 404, 500))
async def get_model(model: str, state: GuardDep, client: Client) -> ModelCard:
    """The guard, by its name."""
    del client
    if model != state.settings.model:
        raise ApiError(404, "There is no such model.", param="model", code="model_not_found")
    return _model_card(state)


def _model_card(state: GuardState) -> ModelCard:
    return ModelCard(id=state.settings.model, created=state.started_at)


class _Renderer(Protocol):
    """Renders one completion.

    Args:
        call_id: of the call, from which the completion's id is made.
        model: the guard's name.
    """

    def __init__(self, call_id: str, model: str) -> None: ...

    def whole(self, decision: Decision) -> BaseModel:
        """Render a decision in one piece."""

    def opening(self) -> Sequence[BaseModel]:
        """Render the beginning of a stream."""

    def text(self, text: str) -> BaseModel:
        """Render text that the answer grows by."""

    def withdrawal(self, withdrawal: Withdrawal) -> BaseModel:
        """Render a retraction. Clients can't unread text: nothing is added to it afterwards."""

    def closing(self, decision: Decision, *, retracted: bool) -> Sequence[BaseModel]:
        """Render the decision at the end of a stream."""

    def usage(self, usage: Usage) -> BaseModel:
        """Render a stream's usage."""


async def _complete(
    request: Request,
    body: ChatRequest | CompletionRequest,
    state: GuardState,
    client: str,
    renderer_type: type[_Renderer],
) -> Response:
    call = GuardCall.of(body, state, client=client, http=request)
    renderer = renderer_type(call.id, state.settings.model)
    if not body.stream:
        decision = await call.decide(request.receive)
        return JSONResponse(renderer.whole(decision).model_dump(), headers=decision_headers(decision))
    chunks = _chunks(renderer, call.stream(), with_usage=body.includes_usage)
    return EventStream(chunks, call=call, slot=await call.admit(request.receive))


async def _chunks(
    renderer: _Renderer, events: AsyncGenerator[StreamEvent, None], *, with_usage: bool
) -> AsyncGenerator[str, None]:
    """Render a stream's events as JSON, without members that weren't set: clients add up those that were."""
    retracted = False
    for chunk in renderer.opening():
        yield chunk.model_dump_json(exclude_unset=True)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                chunks: Sequence[BaseModel] = [renderer.text(event.text)]
            elif isinstance(event, Retraction):
                retracted = True
                chunks = [renderer.withdrawal(Withdrawal(retracted=True, reason=event.reason))]
            else:
                usage = [renderer.usage(Usage.of(event))] if with_usage else []
                chunks = [*renderer.closing(event, retracted=retracted), *usage]
            for chunk in chunks:
                yield chunk.model_dump_json(exclude_unset=True)


class _ChatRenderer:
    """Renders a chat completion; see `_Renderer`."""

    def __init__(self, call_id: str, model: str) -> None:
        self._head: dict[str, Any] = {"id": f"chatcmpl-{call_id}", "model": model, "created": int(time.time())}

    def whole(self, decision: Decision) -> ChatCompletion:
        refusal = refusal_of(decision)
        message = ChatMessage(content=decision.text if refusal is None else None, refusal=refusal)
        return ChatCompletion(
            **self._head,
            choices=[ChatChoice(message=message, finish_reason=finish_reason_of(decision))],
            usage=Usage.of(decision),
            ilis_guard=DecisionSummary.of(decision),
        )

    def opening(self) -> list[ChatChunk]:
        return [self._chunk(ChatDelta(role="assistant", content=""))]

    def text(self, text: str) -> ChatChunk:
        return self._chunk(ChatDelta(content=text))

    def withdrawal(self, withdrawal: Withdrawal) -> ChatChunk:
        return self._chunk(ChatDelta(), ilis_guard=withdrawal)

    def closing(self, decision: Decision, *, retracted: bool) -> list[ChatChunk]:
        refusal = refusal_of(decision, retracted=retracted)
        reason: StreamFinishReason = "content_filter" if retracted else finish_reason_of(decision)
        summary = DecisionSummary.of(decision, retracted=retracted)
        chunks = [] if refusal is None else [self._chunk(ChatDelta(refusal=refusal))]
        return [*chunks, self._chunk(ChatDelta(), reason, ilis_guard=summary)]

    def usage(self, usage: Usage) -> ChatChunk:
        return ChatChunk(**self._head, object="chat.completion.chunk", choices=[], usage=usage)

    def _chunk(self, delta: ChatDelta, reason: StreamFinishReason | None = None, **more: Any) -> ChatChunk:
        choices = [ChatChunkChoice(index=0, delta=delta, finish_reason=reason)]
        return ChatChunk(**self._head, object="chat.completion.chunk", choices=choices, **more)


class _CompletionRenderer:
    """Renders a legacy completion, which has no refusals of its own; see `_Renderer`."""

    def __init__(self, call_id: str, model: str) -> None:
        head = {"id": f"cmpl-{call_id}", "object": "text_completion", "model": model, "created": int(time.time())}
        self._head: dict[str, Any] = head

    def whole(self, decision: Decision) -> Completion:
        refusal = refusal_of(decision)
        return self._completion(
            "" if refusal else decision.text,
            refusal=refusal,
            reason="content_filter" if refusal else finish_reason_of(decision),
            usage=Usage.of(decision),
            ilis_guard=DecisionSummary.of(decision),
        )

    def opening(self) -> list[Completion]:
        return []

    def text(self, text: str) -> Completion:
        return self._completion(text)

    def withdrawal(self, withdrawal: Withdrawal) -> Completion:
        return self._completion("", ilis_guard=withdrawal)

    def closing(self, decision: Decision, *, retracted: bool) -> list[Completion]:
        refusal = refusal_of(decision, retracted=retracted)
        reason: StreamFinishReason = "content_filter" if refusal else finish_reason_of(decision)
        summary = DecisionSummary.of(decision, retracted=retracted)
        return [self._completion("", refusal=refusal, reason=reason, ilis_guard=summary)]

    def usage(self, usage: Usage) -> Completion:
        return Completion(**self._head, choices=[], usage=usage)

    def _completion(
        self, text: str, *, refusal: str | None = None, reason: StreamFinishReason | None = None, **more: Any
    ) -> Completion:
        choice = CompletionChoice(index=0, text=text, refusal=refusal, logprobs=None, finish_reason=reason)
        return Completion(**self._head, choices=[choice], **more)
