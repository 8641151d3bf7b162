"""What is asked, once it is certain that it may be: a body becomes a request to the guard."""

import json
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import Request as HttpRequest
from pydantic import ValidationError

from ilis_guard.cascade.tier import Tier
from ilis_guard.errors import RequestError
from ilis_guard.labels import problem as label_problem
from ilis_guard.types import Fingerprint, Request, StreamMode
from ilis_guard_server.openai_requests import (
    Body,
    ChatRequest,
    CompletionRequest,
    DecisionRequest,
    GuardedRequest,
    Wishes,
)
from ilis_guard_server.problems import RefusedError
from ilis_guard_server.refusing import REASONS, refused, unusable
from ilis_guard_server.service import Service

B = TypeVar("B", bound=Body)

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request to the guard, and where it came from."""

    request: Request
    mode: StreamMode
    client: str
    id: str
    """As the log and the header `x-request-id` have it."""
    path: str


async def read(request: HttpRequest, kind: type[B]) -> B:
    """The body.

    Raises:
        RefusedError: it isn't JSON, or not of this kind.
    """
    # A page of another site can send any text, but no JSON, without asking us first; and we'd say no.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise RefusedError(415, f"Send {JSON}.", code="unsupported_media_type")
    body = await request.body()
    try:
        return kind.model_validate_json(body)
    except ValidationError as problems:
        raise refused(problems) from None


def asked_of(
    body: ChatRequest | CompletionRequest | DecisionRequest, service: Service, *, client: str, request: HttpRequest
) -> Asked:
    """The request to the guard.

    Raises:
        RefusedError: it asks for what the operator doesn't allow, or what no guard does.
    """
    streams = isinstance(body, GuardedRequest) and bool(body.stream)
    if isinstance(body, GuardedRequest):
        _check_model(body, service)
        _check_temperature(body, service)
        if body.stream_options is not None and not streams:
            raise unusable("stream_options", "there is no `stream` that it could be about")
    return Asked(
        request=_request(body, service, client=client),
        mode=_mode(body.wishes, service, streams=streams),
        client=client,
        id=request.state.request_id,
        path=request.url.path,
    )


def _check_model(body: GuardedRequest, service: Service) -> None:
    if body.model != service.settings.model:
        raise RefusedError(
            404,
            f"There is no such model; ask for {service.settings.model!r}.",
            param="model",
            code="model_not_found",
        )


def _check_temperature(body: GuardedRequest, service: Service) -> None:
    """A temperature that is the tiers' own says nothing new; another one can't be had."""
    if body.temperature is not None and {_temperature(tier) for tier in service.guard.tiers} != {body.temperature}:
        raise unusable("temperature", REASONS["temperature"])


def _temperature(tier: Tier) -> float | None:
    """What a tier's tokens are chosen with; None where that isn't known."""
    fingerprint = tier.model.fingerprint
    if not isinstance(fingerprint, Fingerprint):
        return None
    options: dict[str, Any] = {} if fingerprint.decoding == "greedy" else json.loads(fingerprint.decoding)
    return float(options.get("temperature", 1.0)) if options.get("do_sample") else 0.0


def _request(body: ChatRequest | CompletionRequest | DecisionRequest, service: Service, *, client: str) -> Request:
    settings, stop = service.settings, body.stops
    labels = dict(body.wishes.labels)
    where = "labels" if isinstance(body, DecisionRequest) else "ilis_guard.labels"
    if unknown := sorted(set(labels) - set(settings.labels)):
        raise unusable(f"{where}.{unknown[0]}", f"callers may give the labels {list(settings.labels)!r}")
    if what := label_problem(labels):
        raise unusable(where, what)
    if settings.client_label is not None:
        labels[settings.client_label] = client
    if stop and (deaf := [tier.name for tier in service.guard.tiers if not tier.takes_stop]):
        raise unusable("stop", f"the models of the tiers {deaf!r} can't end an answer at one; leave it out")
    try:
        return Request.of(body.conversation(), labels, stop)
    except RequestError as error:
        raise unusable("prompt" if isinstance(body, CompletionRequest) else "messages", str(error)) from None


def _mode(wishes: Wishes, service: Service, *, streams: bool) -> StreamMode:
    settings = service.settings
    if wishes.mode is None:
        # What nobody watches needn't be shown early.
        return "hold" if settings.stream_mode == "optimistic" and not streams else settings.stream_mode
    if not settings.may_choose(wishes.mode):
        allowed = sorted({settings.stream_mode, *settings.modes})
        raise unusable("ilis_guard.mode", f"callers may choose of {allowed!r}")
    if wishes.mode == "optimistic" and not streams:
        raise unusable("ilis_guard.mode", "`optimistic` shows an answer early, which needs `stream`")
    return wishes.mode
