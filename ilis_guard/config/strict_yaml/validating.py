"""A document -> a pydantic model, or one complaint with every problem and its place."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ilis_guard.config.strict_yaml.reading import Document, Keys
from ilis_guard.config.strict_yaml.wording import listed, nearest, short
from ilis_guard.errors import IlisGuardError

M = TypeVar("M", bound=BaseModel)


def validated(document: Document, model: type[M], *, error: type[IlisGuardError]) -> M:
    """Build `model` from a document, with pydantic's strict rules: a number in quotes is no number.

    A key without a value, such as a `guarantee:` whose lines were all commented out, isn't taken for one that was left
    out: who wrote it thinks otherwise.

    Raises:
        IlisGuardError: as `error`, with one line per problem, each with its place.
    """
    try:
        # Through JSON: pydantic's strict mode for it still takes strings for enums, and lists for tuples.
        built = model.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as problems:
        items = problems.errors(include_url=False)
        # A list whose items are all wrong is called too short as well; that only hides what is wrong.
        named = [item for item in items if not _is_echo(item, items)]
        lines = (_problem(document, model, item) for item in named)
        raise error(listed(lines, len(named))) from None
    empty = [*_without_value(built, ())]
    if empty:
        lines = (
            f"{document.place(keys)}: {_key_path(keys)}has no value; give it one, or take it out" for keys in empty
        )
        raise error(listed(lines, len(empty)))
    return built


def _without_value(value: object, keys: Keys) -> Iterator[Keys]:
    """Where models in a value have fields that are written and None."""
    if isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            inside = (*keys, info.alias or name)
            if name in value.model_fields_set and getattr(value, name) is None:
                yield inside
            yield from _without_value(getattr(value, name), inside)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _without_value(item, (*keys, key))
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _without_value(item, (*keys, index))


def _is_echo(item: ErrorDetails, items: list[ErrorDetails]) -> bool:
    place = item["loc"]
    return item["type"] == "too_short" and any(other["loc"][: len(place)] == place for other in items if other != item)


def _problem(document: Document, model: type[BaseModel], item: ErrorDetails) -> str:
    """One line for one of pydantic's complaints."""
    keys = document.existing(item["loc"])
    if item["type"] == "extra_forbidden":
        where, unknown = _key_path(keys[:-1]), str(keys[-1])
        names = [name for known in _models_at(model, item["loc"][:-1]) for name in _key_names(known)]
        hint = nearest(unknown, names) or f"; take it out, or write one of {', '.join(names)}"
        return f"{document.key_place(keys)}: {where}unknown key {short(unknown)}{hint}"
    if item["type"] == "missing":
        return f"{document.place(keys)}: {_key_path(keys)}the key {str(item['loc'][-1])!r} is missing; add it"
    what = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if item["type"] in ("tuple_type", "list_type"):
        what = "should be a list, each item of which starts with `- `"
    return f"{document.place(keys)}: {_key_path(keys)}{what}, got {short(item['input'])}"


def _key_path(keys: Keys) -> str:
    """``rules[0].when: ``; nothing at the top."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
    return f"{path}: " if path else ""


def _key_names(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield info.alias or name


def _models_at(model: type[BaseModel], keys: Keys) -> list[type[BaseModel]]:
    """The models that may stand at `keys`. List indices, dict keys and pydantic's union tags lead no deeper."""
    models = [model]
    for key in keys:
        inner = [
            found
            for known in models
            for name, info in known.model_fields.items()
            if key in (name, info.alias)
            for found in _models_in(info.annotation)
        ]
        models = inner or models
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
