"""The OpenAPI document: what FastAPI writes, with the bodies that are read by hand, and nothing that can't happen."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

SCHEMAS: Final = "#/components/schemas/"
_UNUSED: Final = ("HTTPValidationError", "ValidationError")
_SCHEME: Final = "key"
"""Of the API keys."""


def body_of(name: str) -> dict[str, Any]:
    """A request's body, by the name of its model."""
    content = {"application/json": {"schema": _ref(name)}}
    return {"requestBody": {"required": True, "content": content}}


def json_response(name: str) -> dict[str, Any]:
    """A response, by the name of its model."""
    header = {"description": "Its id; its action", "schema": {"type": "string"}}
    return {
        "description": "The decision",
        "headers": {"x-ilis-guard-decision": header},
        "content": {"application/json": {"schema": _ref(name)}},
    }


def decision_response(whole: str, chunk: str) -> dict[str, Any]:
    """A response that may come in one piece or streamed, by the names of its models."""
    response = json_response(whole)
    told = {"type": "string", "contentMediaType": "application/json", "contentSchema": _ref(chunk)}
    failed = told | {"contentSchema": _ref("Problem")}
    data = {"anyOf": [{"const": "[DONE]"}, told, failed]}
    event: dict[str, Any] = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    event["description"] = f"The JSON of a {chunk}, or of a Problem where the stream failed; at the end [DONE]"
    response["content"]["text/event-stream"] = {"schema": event}
    # A stream begins before there is a decision.
    response["headers"]["x-ilis-guard-decision"]["description"] += "; not of a stream"
    return response


def describe(app: FastAPI, models: Sequence[type[BaseModel]], *, needs_key: Mapping[str, bool]) -> None:
    """Have an application tell all of its shapes.

    Args:
        app: what `/openapi.json` is asked of.
        models: those that the routes name.
        needs_key: by path: whether it is only for those who have an API key.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _complete(document, models, needs_key)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to say more


def _complete(document: dict[str, Any], models: Sequence[type[BaseModel]], needs_key: Mapping[str, bool]) -> None:
    _, written = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMAS + "{model}")
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(written["$defs"])
    for name in _UNUSED:
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # Bodies and paths that can't be used are answered with 400.
            operation["responses"].pop("422", None)
            if needs_key.get(path, False):
                operation["security"] = [{_SCHEME: []}]
                components["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": SCHEMAS + name}
