"""Build pydantic models from YAML documents; an error lists every problem with its place."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ilis_guard.config.strict_yaml import Document, Keys, list_problems, shorten, suggest
from ilis_guard.errors import IlisGuardError

M = TypeVar("M", bound=BaseModel)


def validate(document: Document, model: type[M], *, error: type[IlisGuardError], folder: Path | None = None) -> M:
    """Build a model from a document by pydantic's strict rules: a number in quotes is no number.

    A key without a value, such as a `guarantee:` whose lines were all commented out, is an error: whoever wrote it
    means something else than whoever left it out.

    Args:
        document: the values.
        model: the class to build.
        error: the class of the error.
        folder: the folder against which `relative_to_file` resolves paths; None leaves them unchanged.

    Raises:
        IlisGuardError: as `error`, with one line for each problem and its place.
    """
    try:
        # Through JSON: there pydantic's strict mode still takes strings for enums, and lists for tuples.
        built = model.model_validate_json(json.dumps(document.data), strict=True, context=folder)
    except ValidationError as problems:
        items = problems.errors(include_url=False)
        # Pydantic also calls a list too short whose items are all wrong; that hides the real problems.
        named = [item for item in items if not _is_echo(item, items)]
        raise error(list_problems((_problem(document, model, item) for item in named), len(named))) from None
    empty = [*_without_value(built, ())]
    if empty:
        lines = (document.problem(keys, "has no value; give it one, or take it out") for keys in empty)
        raise error(list_problems(lines, len(empty)))
    return built


def duplicate_names(document: Document, keys: Keys, names: Sequence[str]) -> Iterator[str]:
    """Describe each item of the list at `keys` whose name an earlier item has."""
    for index, name in enumerate(names):
        if name in names[:index]:
            first = document.place((*keys, names.index(name), "name"))
            message = f"duplicate name {name!r}, which already stands at {first}; give each its own"
            yield document.problem((*keys, index, "name"), message)


def _without_value(value: object, keys: Keys) -> Iterator[Keys]:
    """The fields of all models in a value that the file sets to None."""
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
    """Describe one of pydantic's errors."""
    keys = document.existing(item["loc"])
    if item["type"] == "extra_forbidden":
        unknown = str(keys[-1])
        names = [name for known in _models_at(model, item["loc"][:-1]) for name in _key_names(known)]
        hint = suggest(unknown, names) or f"; take it out, or write one of {', '.join(names)}"
        return document.key_problem(keys, f"unknown key {shorten(unknown)}{hint}")
    if item["type"] == "missing":
        return document.problem(keys, f"the key {str(item['loc'][-1])!r} is missing; add it")
    what = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if item["type"] in ("tuple_type", "list_type"):
        what = "should be a list, each item of which starts with `- `"
    return document.problem(keys, f"{what}, got {shorten(item['input'])}")


def _key_names(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield info.alias or name


def _models_at(model: type[BaseModel], keys: Keys) -> list[type[BaseModel]]:
    """The models that `keys` may lead to. List indices, dict keys and pydantic's union tags lead no deeper."""
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
