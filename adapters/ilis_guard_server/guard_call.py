"""Convert authenticated HTTP bodies into guard requests, and run them through the guard.

A call waits for a slot, and ends with a decision, at its deadline, or when its client disconnects.
"""

import hashlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import Request as HttpRequest
from pydantic import ValidationError
from starlette.types import Receive

from ilis_guard import Retraction, StreamEvent, events
from ilis_guard.cascade.tier import Tier
from ilis_guard.concurrency.race import race
from ilis_guard.errors import ClientDisconnected, RequestError
from ilis_guard.types import Decision, Fingerprint, Request, StreamMode
from ilis_guard_server.dependencies import Client, GuardState
from ilis_guard_server.limits import Slot
from ilis_guard_server.problem_details import ApiError
from ilis_guard_server.schemas.requests import (
    UNSUPPORTED,
    AnyRequest,
    Body,
    CompletionRequest,
    DecisionRequest,
    GuardOptions,
    body_error,
    value_error,
)
from ilis_guard_server.timed_stream import TimedStream

B = TypeVar("B", bound=Body)
T = TypeVar("T")

JSON: Final = "application/json"


def json_body(model: type[B]) -> Callable[[HttpRequest, Client], Coroutine[Any, Any, B]]:
    """Make the dependency that reads a body of this model.

    FastAPI reads and parses a body parameter of its own before it calls any dependency: strangers' bodies would be
    parsed before they are asked for their key. Its parser also isn't pydantic's strict JSON mode.
    """

    async def read(request: HttpRequest, client: Client) -> B:
        """Read the body of a client that is authenticated.

        Raises:
            ApiError: the body isn't JSON, or doesn't fit the model.
        """
        del client  # it is required before the body is read
        # A page of another site can send any text, but no JSON, without a preflight, which we'd refuse.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise ApiError(415, f"Send {JSON}.", code="unsupported_media_type")
        body = await request.body()
        try:
            return model.model_validate_json(body)
        except ValidationError as invalid:
            raise body_error(invalid) from None

    return read


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardCall:
    """One HTTP request to the guard."""

    state: GuardState
    guard_stream: TimedStream
    """Nothing runs before its first event is awaited."""
    mode: StreamMode
    client: str
    id: str
    """As in the log and in the header `x-request-id`."""
    path: str

    @classmethod
    def of(cls, body: AnyRequest, state: GuardState, *, client: str, key: str | None, http: HttpRequest) -> "GuardCall":
        """Convert a body into a call.

        Args:
            body: the request's.
            state: of the endpoints.
            client: the name of the API key.
            key: the client's idempotency key; None for none.
            http: the request.

        Raises:
            ApiError: the body asks for something that the operator doesn't allow, or that no guard does.
        """
        is_stream = not isinstance(body, DecisionRequest) and bool(body.stream)
        if not isinstance(body, DecisionRequest):
            if body.model != state.settings.model:
                detail = f"There is no such model; ask for {state.settings.model!r}."
                raise ApiError(404, detail, param="model", code="model_not_found")
            # A temperature that is the tiers' own changes nothing; any other is unsupported.
            if body.temperature is not None and {*map(_temperature, state.guard.tiers)} != {body.temperature}:
                raise value_error("temperature", UNSUPPORTED["temperature"])
            if body.stream_options is not None and not is_stream:
                raise value_error("stream_options", "it needs `stream`")
        prefix = "" if isinstance(body, DecisionRequest) else "ilis_guard."
        labels, allowed = dict(body.options.labels), state.settings.labels
        if unknown := sorted(set(labels) - set(allowed)):
            raise value_error(f"{prefix}labels.{unknown[0]}", f"callers may give the labels {list(allowed)!r}")
        if state.settings.client_label is not None:
            labels[state.settings.client_label] = client
        mode = _mode(body.options, state, is_stream=is_stream)
        try:
            request = Request.of(body.conversation(), labels, body.stop_sequences)
            guard_stream = TimedStream(
                state.guard,
                request,
                id=None if key is None else _decision_id(client, key),
                mode=mode,
                seconds=state.settings.timeout_seconds,
                deadlines=state.deadlines,
                pending_work=state.pending_work,
            )
        except RequestError as error:
            messages = "prompt" if isinstance(body, CompletionRequest) else "messages"
            param = {"messages": messages, "labels": f"{prefix}labels"}.get(error.field, error.field)
            raise value_error(param, str(error)) from None
        return cls(
            state=state,
            guard_stream=guard_stream,
            mode=mode,
            client=client,
            id=http.state.request_id,
            path=http.url.path,
        )

    async def decide(self, receive: Receive) -> Decision:
        """Decide on a request that is answered in one piece.

        Args:
            receive: of the ASGI connection, which says when the client disconnects.

        Raises:
            ApiError: there is no slot for it.
            ClientDisconnected: the client disconnected; the generation has ended.
        """
        with await self.admit(receive):
            return await self.watch(race(self._decision(), disconnection(receive)))

    async def admit(self, receive: Receive) -> Slot:
        """Wait for a slot.

        Raises:
            ApiError: there is none.
            ClientDisconnected: the client disconnected.
        """
        with self.state.deadlines.open(self.state.settings.timeout_seconds) as deadline:
            return await race(self.state.limiter.admit(deadline), disconnection(receive))

    async def stream(self) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of a request that has a slot; the last is its decision.

        Raises:
            ApiError: there is no decision in time, and there won't be one.
            RequestConflictError: the key was given to another request.
        """
        since, metrics = time.monotonic(), self.state.metrics
        async with aclosing(self.guard_stream.events()) as guard_events:
            async for event in guard_events:
                if isinstance(event, Retraction):
                    metrics.count_retraction()
                if isinstance(event, Decision):
                    seconds = time.monotonic() - since
                    metrics.count_decision(event, seconds)
                    events.log().info(
                        events.REQUEST_DECIDED,
                        request=self.id,
                        decision=event.id,
                        client=self.client,
                        path=self.path,
                        mode=self.mode,
                        seconds=seconds,
                    )
                yield event

    async def watch(self, awaited: Awaitable[T]) -> T:
        """Await something, and count and log a client that disconnects meanwhile."""
        since = time.monotonic()
        try:
            return await awaited
        except ClientDisconnected:
            self.state.metrics.count_disconnect()
            events.log().info(
                events.CLIENT_DISCONNECTED,
                request=self.id,
                client=self.client,
                path=self.path,
                seconds=time.monotonic() - since,
            )
            raise

    async def _decision(self) -> Decision:
        async with aclosing(self.stream()) as stream:
            async for event in stream:
                if isinstance(event, Decision):
                    return event
        raise AssertionError("the decision is always the last event")


async def disconnection(receive: Receive) -> Exception:
    """Wait until the client has disconnected; its body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return ClientDisconnected("the client has disconnected")


def _decision_id(client: str, key: str) -> str:
    """The id of the decision on a client's key: no client learns of another's."""
    return hashlib.sha256(f"{len(client)}:{client}{key}".encode()).hexdigest()[:32]


def _temperature(tier: Tier) -> float | None:
    """The temperature with which a tier's tokens are chosen; None where that isn't known."""
    fingerprint = tier.model.fingerprint
    if not isinstance(fingerprint, Fingerprint):
        return None
    options: dict[str, Any] = {} if fingerprint.decoding == "greedy" else json.loads(fingerprint.decoding)
    return float(options.get("temperature", 1.0)) if options.get("do_sample") else 0.0


def _mode(options: GuardOptions, state: GuardState, *, is_stream: bool) -> StreamMode:
    settings = state.settings
    if options.mode is None:
        # Text that nobody reads on the way needn't be shown early.
        return "hold" if settings.stream_mode == "optimistic" and not is_stream else settings.stream_mode
    if not settings.may_choose(options.mode):
        allowed = sorted({settings.stream_mode, *settings.modes})
        raise value_error("ilis_guard.mode", f"callers may choose of {allowed!r}")
    if options.mode == "optimistic" and not is_stream:
        raise value_error("ilis_guard.mode", "`optimistic` shows an answer early, which needs `stream`")
    return options.mode
