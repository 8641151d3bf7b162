"""OpenAI's endpoints: chat completions, legacy completions and models."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from ilis_guard import Retraction, StreamEvent, TextDelta
from ilis_guard.types import Decision
from ilis_guard_server.dependencies import Client, GuardDep, GuardState, IdempotencyKey
from ilis_guard_server.guard_call import GuardCall, json_body
from ilis_guard_server.openapi import decision_response, problem_responses, request_body
from ilis_guard_server.problem_details import ApiError
from ilis_guard_server.schemas import responses
from ilis_guard_server.schemas.requests import ChatRequest, CompletionRequest
from ilis_guard_server.schemas.responses import DecisionSummary, StreamFinishReason, Usage, Withdrawal
from ilis_guard_server.sse import EventStream

_STATUSES: Final = (400, 401, 403, 404, 413, 415, 422, 429, 500, 503)

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post(
    "/chat/completions",
    summary="Ask the guard as a chat model",
    responses={200: decision_response(responses.ChatCompletion, responses.ChatChunk), **problem_responses(*_STATUSES)},
    openapi_extra=request_body(ChatRequest),
)
async def create_chat_completion(
    request: Request,
    body: Annotated[ChatRequest, Depends(json_body(ChatRequest))],
    state: GuardDep,
    client: Client,
    key: IdempotencyKey,
) -> Response:
    """An answer is `content`; an abstention or an escalation is `content: null` and a `refusal`.

    The decision stands in `ilis_guard`: of a stream, in the chunk with the `finish_reason`.
    """
    return await _complete(request, body, state, client, key, _ChatRenderer)


@router.post(
    "/completions",
    summary="Ask the guard as a legacy completion model",
    responses={200: decision_response(responses.Completion, responses.Completion), **problem_responses(*_STATUSES)},
    openapi_extra=request_body(CompletionRequest),
)
async def create_completion(
    request: Request,
    body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))],
    state: GuardDep,
    client: Client,
    key: IdempotencyKey,
) -> Response:
    """The prompt is the user's turn of a conversation. Without an answer, `text` is empty and `refusal` says why."""
    return await _complete(request, body, state, client, key, _CompletionRenderer)


@router.get("/models", summary="List the models", responses=problem_responses(401, 403, 500))
async def list_models(state: GuardDep, client: Client) -> responses.ModelList:
    """There is one, the guard: its tiers are the operator's."""
    del client
    return responses.ModelList(data=[_model_card(state)])


@router.get("/models/{model:path}", summary="Get a model", responses=problem_responses(401, 403, 404, 500))
async def get_model(model: str, state: GuardDep, client: Client) -> responses.ModelCard:
    """The guard, by its name."""
    del client
    if model != state.settings.model:
        raise ApiError(404, "There is no such model.", param="model", code="model_not_found")
    return _model_card(state)


def _model_card(state: GuardState) -> responses.ModelCard:
    return responses.ModelCard(id=state.settings.model, created=state.started_at)


async def _complete(
    request: Request,
    body: ChatRequest | CompletionRequest,
    state: GuardState,
    client: str,
    key: str | None,
    renderer_type: "type[_ChatRenderer | _CompletionRenderer]",
) -> Response:
    call = GuardCall.of(body, state, client=client, key=key, http=request)
    renderer = renderer_type(call.id, state.settings.model)
    if not body.stream:
        decision = await call.decide(request.receive)
        return JSONResponse(renderer.whole(decision).model_dump(), headers=responses.decision_headers(decision))
    slot = await call.admit(request.receive)
    with ExitStack() as freed_unless_streamed:
        freed_unless_streamed.enter_context(slot)
        await call.guard_stream.check_id()
        slot = freed_unless_streamed.pop_all()
    return EventStream(_chunks(renderer, call.stream(), with_usage=body.includes_usage), call=call, slot=slot)


async def _chunks(
    renderer: "_ChatRenderer | _CompletionRenderer", events: AsyncGenerator[StreamEvent, None], *, with_usage: bool
) -> AsyncGenerator[str, None]:
    """Render a stream's events as JSON, without members that weren't set: clients add up those that were."""
    retracted = False
    chunks: Sequence[BaseModel] = renderer.opening()
    for chunk in chunks:
        yield chunk.model_dump_json(exclude_unset=True)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextDelta):
                chunks = [renderer.text(event.text)]
            elif isinstance(event, Retraction):
                retracted = True
                chunks = [renderer.withdrawal(Withdrawal(retracted=True, reason=event.reason))]
            else:
                usage = [renderer.usage(Usage.of(event))] if with_usage else []
                chunks = [*renderer.closing(event, retracted=retracted), *usage]
            for chunk in chunks:
                yield chunk.model_dump_json(exclude_unset=True)


class _ChatRenderer:
    """Renders a chat completion, in one piece or in chunks.

    Clients can't unread text: nothing is added to it after a retraction.
    """

    def __init__(self, call_id: str, model: str) -> None:
        self._head: dict[str, Any] = {"id": f"chatcmpl-{call_id}", "model": model, "created": int(time.time())}

    def whole(self, decision: Decision) -> responses.ChatCompletion:
        refusal = responses.refusal_of(decision)
        message = responses.ChatMessage(content=decision.text if refusal is None else None, refusal=refusal)
        return responses.ChatCompletion(
            **self._head,
            choices=[responses.ChatChoice(message=message, finish_reason=responses.finish_reason_of(decision))],
            usage=Usage.of(decision),
            ilis_guard=DecisionSummary.of(decision),
        )

    def opening(self) -> list[responses.ChatChunk]:
        return [self._chunk(responses.ChatDelta(role="assistant", content=""))]

    def text(self, text: str) -> responses.ChatChunk:
        return self._chunk(responses.ChatDelta(content=text))

    def withdrawal(self, withdrawal: Withdrawal) -> responses.ChatChunk:
        return self._chunk(responses.ChatDelta(), ilis_guard=withdrawal)

    def closing(self, decision: Decision, *, retracted: bool) -> list[responses.ChatChunk]:
        refusal = responses.refusal_of(decision, retracted=retracted)
        reason: StreamFinishReason = "content_filter" if retracted else responses.finish_reason_of(decision)
        summary = DecisionSummary.of(decision, retracted=retracted)
        chunks = [] if refusal is None else [self._chunk(responses.ChatDelta(refusal=refusal))]
        return [*chunks, self._chunk(responses.ChatDelta(), reason, ilis_guard=summary)]

    def usage(self, usage: Usage | None) -> responses.ChatChunk:
        return responses.ChatChunk(**self._head, object="chat.completion.chunk", choices=[], usage=usage)

    def _chunk(
        self, delta: responses.ChatDelta, reason: StreamFinishReason | None = None, **more: Any
    ) -> responses.ChatChunk:
        choices = [responses.ChatChunkChoice(index=0, delta=delta, finish_reason=reason)]
        return responses.ChatChunk(**self._head, object="chat.completion.chunk", choices=choices, **more)


class _CompletionRenderer:
    """Renders a legacy completion, which has no refusals of its own, as `_ChatRenderer` does."""

    def __init__(self, call_id: str, model: str) -> None:
        head = {"id": f"cmpl-{call_id}", "object": "text_completion", "model": model, "created": int(time.time())}
        self._head: dict[str, Any] = head

    def whole(self, decision: Decision) -> responses.Completion:
        refusal = responses.refusal_of(decision)
        return self._completion(
            "" if refusal else decision.text,
            refusal=refusal,
            reason="content_filter" if refusal else responses.finish_reason_of(decision),
            usage=Usage.of(decision),
            ilis_guard=DecisionSummary.of(decision),
        )

    def opening(self) -> list[responses.Completion]:
        return []

    def text(self, text: str) -> responses.Completion:
        return self._completion(text)

    def withdrawal(self, withdrawal: Withdrawal) -> responses.Completion:
        return self._completion("", ilis_guard=withdrawal)

    def closing(self, decision: Decision, *, retracted: bool) -> list[responses.Completion]:
        refusal = responses.refusal_of(decision, retracted=retracted)
        reason: StreamFinishReason = "content_filter" if refusal else responses.finish_reason_of(decision)
        summary = DecisionSummary.of(decision, retracted=retracted)
        return [self._completion("", refusal=refusal, reason=reason, ilis_guard=summary)]

    def usage(self, usage: Usage | None) -> responses.Completion:
        return responses.Completion(**self._head, choices=[], usage=usage)

    def _completion(
        self, text: str, *, refusal: str | None = None, reason: StreamFinishReason | None = None, **more: Any
    ) -> responses.Completion:
        choice = responses.CompletionChoice(index=0, text=text, refusal=refusal, logprobs=None, finish_reason=reason)
        return responses.Completion(**self._head, choices=[choice], **more)
