"""The OpenAPI document: FastAPI's own, with the bodies that FastAPI doesn't read, and without what can't happen."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from ilis_guard.concurrency.portal import run_in_thread
from ilis_guard_server.problem_details import MEDIA_TYPE, Problem
from ilis_guard_server.schemas import requests, responses

_SCHEMAS: Final = "#/components/schemas/"
_MODELS: Final[tuple[type[BaseModel], ...]] = (
    Problem,
    requests.VerdictMessage,
    requests.ChatRequest,
    requests.CompletionRequest,
    requests.DecisionRequest,
    responses.ChatCompletion,
    responses.ChatChunk,
    responses.Completion,
    responses.DecisionBody,
)
"""Models that `request_body`, `decision_response` and `problem_responses` refer to."""
_UNUSED: Final = ("HTTPValidationError", "ValidationError")


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that a dependency reads."""
    content = {"application/json": {"schema": _reference(model)}}
    return {"requestBody": {"required": True, "content": content}}


def required_header(name: str, description: str) -> dict[str, Any]:
    """Describe a header that a dependency reads."""
    return {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": description}


def decision_response(whole: type[BaseModel], chunk: type[BaseModel] | None = None) -> dict[str, Any]:
    """Describe a response with a decision: in one piece, or, where there are chunks, also as a stream."""
    description = "The decision's id; its action"
    content: dict[str, Any] = {"application/json": {"schema": _reference(whole)}}
    if chunk is not None:
        # A stream begins before there is a decision.
        description += "; not of a stream"
        data = [
            {"type": "string", "contentMediaType": "application/json", "contentSchema": _reference(model)}
            for model in (chunk, Problem)
        ]
        event = {
            "type": "object",
            "properties": {"data": {"anyOf": [{"const": "[DONE]"}, *data]}},
            "required": ["data"],
            "description": f"The JSON of a {chunk.__name__}, or of a Problem where the stream failed; at last [DONE]",
        }
        content["text/event-stream"] = {"schema": event}
    header = {"description": description, "schema": {"type": "string"}}
    return {"description": "The decision", "headers": {responses.DECISION_HEADER: header}, "content": content}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe responses of these statuses: each is a problem."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": _reference(Problem)}}}
        for status in statuses
    }


def install_openapi(app: FastAPI, *, needs_key: bool) -> None:
    """Let an application return this document.

    It is made once, in a thread: anybody may ask for it, and it takes a good part of a second.

    Args:
        app: the application.
        needs_key: whether clients need an API key.
    """
    rendered: list[bytes] = []

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _complete(document, _MODELS, needs_key=needs_key)
            app.openapi_schema = document
        return app.openapi_schema

    async def get_document() -> Response:
        if not rendered:
            rendered.append(await run_in_thread(lambda: json.dumps(openapi()).encode()))
        return Response(rendered[0], media_type="application/json")

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this way to extend it
    app.add_api_route("/openapi.json", get_document, include_in_schema=False)


def _complete(document: dict[str, Any], models: Sequence[type[BaseModel]], *, needs_key: bool) -> None:
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_SCHEMAS + "{model}")
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    for name in _UNUSED:
        schemas.pop(name, None)
    if not needs_key:
        components.pop("securitySchemes", None)
    for operations in document["paths"].values():
        for operation in operations.values():
            # What can't be used is answered with 400: FastAPI's own 422, which is no problem, never comes.
            if MEDIA_TYPE not in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"].pop("422", None)
            if not needs_key:
                operation.pop("security", None)


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _SCHEMAS + model.__name__}
