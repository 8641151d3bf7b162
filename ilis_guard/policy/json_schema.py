"""The language as a JSON Schema: with it an editor completes a policy's keys and underlines what is wrong."""

import json
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ilis_guard.policy.schema import VERSION, PolicyFile

SHIPPED: Final = Path(__file__).with_name("policy.schema.json")
"""The schema as a file, which a policy's first line can name: ``# yaml-language-server: $schema=PATH``."""


def json_schema() -> dict[str, Any]:
    """The schema, draft 2020-12.

    It refuses what a shape can tell. Conditions, repeated ids and what only shows when all rules are seen together are
    for `policy check`.
    """
    schema = PolicyFile.model_json_schema(schema_generator=_Generator)
    return {"$schema": _Generator.schema_dialect, **schema, "title": f"ilis_guard policy, version {VERSION}"}


def as_text() -> str:
    """The schema as the shipped file has it."""
    return json.dumps(json_schema(), indent=2) + "\n"


def beside(text: str) -> str:
    """A shipped policy's text, to be put into a folder with the schema beside it."""
    return text.replace(f"$schema=../ilis_guard/policy/{SHIPPED.name}", f"$schema={SHIPPED.name}", 1)


class _Generator(GenerateJsonSchema):
    """A key without a value is refused, so none takes null; and no title but the keys themselves."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default") is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002  # none has one
        return False
