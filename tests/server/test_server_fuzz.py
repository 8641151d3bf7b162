"""The OpenAPI document against the server that it describes, by schemathesis: no 5xx, nothing undocumented."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard_server import create_app
from tests.server.asking import KEY, guard_of, settings_with

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    ignored_auth,
]
EACH = 40
"""Requests of each kind."""


@pytest.fixture(scope="module")
def document() -> Iterator[Any]:
    with InMemoryQueue() as queue:
        guard = guard_of({"small": (FakeModel("Oslo it is."), FixedScorer(0.1))}, queue)
        app = create_app(
            policy=guard.policy,
            guard=guard,
            review=queue,
            server=settings_with(modes=("optimistic", "early_stop")),
        )
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


lazy = schemathesis.pytest.from_fixture("document")


@lazy.parametrize()
@settings(
    max_examples=EACH,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent_is_answered_as_the_document_says(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS, headers={"authorization": f"Bearer {KEY}"})
