"""The OpenAPI document against the server that it describes, by schemathesis: no 5xx, nothing undocumented."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard_server import create_app
from tests.server.servers import KEY, guard_of, settings_with

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
pytestmark = pytest.mark.fuzz

OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/decisions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/metrics"),
    ("GET", "/readyz"),
    ("GET", "/healthz"),
]
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    with InMemoryQueue() as queue:
        guard = guard_of({"small": (FakeModel("Oslo it is."), FixedScorer(0.1))}, queue)
        settings_here = settings_with(modes=("optimistic", "early_stop"))
        app = create_app(policy=guard.policy, guard=guard, review=queue, server=settings_here)
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_operation_is_fuzzed(schema: Any) -> None:
    found = [(result.ok().method.upper(), result.ok().path) for result in schema.get_all_operations()]
    assert sorted(found) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", MODES, ids=["as documented", "otherwise"])
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_request_is_answered_as_the_document_says(
    schema: Any, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and operation.body.items == []:
        return  # there is nothing to get wrong where nothing is sent

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def answered(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "ilis-guard"  # else nearly all of them stop at the first check
        case.call_and_validate(checks=CHECKS, headers={"authorization": f"Bearer {KEY}"})

    answered()
