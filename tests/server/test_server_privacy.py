"""Callers see kinds of errors and the policy's words: no exception's text, path, host or key reaches them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from ilis_guard import Guard
from ilis_guard.config.review import PageSettings
from ilis_guard.errors import ModelError, QueueStorageError, TransientModelError
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Ticket
from ilis_guard_server import create_app
from tests.server.conftest import Start
from tests.server.servers import KEY, ServedGuard, guard_of, in_process, serve, settings_with
from tests.server.website import Site

API_KEY: Final = "sk-live-5ecretOfTheProvider"
HOST: Final = "db-7.internal.example"
MODES: Final = ("hold", "optimistic", "early_stop")
ERRORS: Final = [
    RuntimeError(f"Incorrect API key provided: {API_KEY}. See https://{HOST}/keys"),
    ModelError(f"ChatOpenAI: 401 from https://{HOST}/v1 with the key {API_KEY}"),
    TransientModelError(f"{HOST}:8443 refused the connection (Authorization: Bearer {API_KEY})"),
]


class BrokenQueue(InMemoryQueue):
    """A queue whose database is gone."""

    def escalate(self, **_: Any) -> Ticket:
        raise QueueStorageError(f"connection to server at {HOST!r}, port 5432 failed: FATAL: password {API_KEY!r}")


def failing(error: Exception, review: ReviewQueue) -> Guard:
    return guard_of({"small": (FakeModel({"q?": error}), FixedScorer(0.1))}, review)


def exchanges(served: ServedGuard) -> Iterator[httpx2.Response]:
    """A response of every endpoint that asks the guard, in one piece and streamed in every mode; and all others."""
    messages = [{"role": "user", "content": "q?"}]
    with served.http() as client:
        for path, body in (
            ("/v1/chat/completions", {"model": "ilis-guard", "messages": messages}),
            ("/v1/completions", {"model": "ilis-guard", "prompt": "q?"}),
        ):
            yield client.post(path, json=body)
            for mode in MODES:
                yield client.post(path, json=body | {"stream": True, "ilis_guard": {"mode": mode}})
        yield client.post("/v1/decisions", json={"messages": messages})
        for path in ("/metrics", "/readyz", "/v1/models", "/healthz", "/openapi.json", "/nowhere"):
            yield client.get(path)


def decision_in(response: httpx2.Response) -> dict[str, Any] | None:
    """The decision in a response, streamed or not; None where it has none."""
    if response.headers["content-type"].startswith("text/event-stream"):
        data = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        found = [one["ilis_guard"] for one in data if "action" in one.get("ilis_guard", {})]
        return found[0] if found else None
    if response.request.method == "GET":
        return None
    body: dict[str, Any] = response.json()
    decision: dict[str, Any] = body.get("ilis_guard", body)
    return decision


def check_private(response: httpx2.Response, *secrets: str) -> None:
    sent = response.text + str(response.headers.multi_items())
    assert [secret for secret in secrets if secret in sent] == [], response.request.url


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_providers_error_reaches_callers_by_its_kind_alone(error: Exception) -> None:
    kind = "UnexpectedError" if isinstance(error, RuntimeError) else type(error).__name__
    with InMemoryQueue() as queue, serve(failing(error, queue), review=queue, modes=MODES) as served:
        decisions = []
        for response in exchanges(served):
            check_private(response, API_KEY, HOST, "refused the connection")
            decisions.append(decision_in(response))
        found = [decision for decision in decisions if decision is not None]
        assert len(found) == 9
        for decision in found:
            assert (decision["action"], decision["rule"]) == ("escalate", "broken")
            (attempt,) = decision["attempts"]
            assert attempt["error"]["kind"] == kind
            assert set(attempt["error"]) == {"kind", "message"}
        # Reviewers and operators see all of it.
        tickets = queue.list(limit=100)
        assert len(tickets) == 9
        assert API_KEY in queue.get(tickets[0].id).attempts[0]["error"]["detail"]


def test_reviewers_see_the_details_of_an_error(start: Start, settings: PageSettings, review: ReviewQueue) -> None:
    ticket = failing(ERRORS[0], review).decide("q?").ticket
    assert ticket is not None
    with start(settings) as site:
        assert API_KEY in site.signed_in("ana").get(f"/tickets/{ticket.id}").text


def test_a_queues_host_and_password_stay_out_of_responses() -> None:
    with BrokenQueue() as queue, serve(failing(ERRORS[0], queue), review=queue, modes=MODES) as served:
        for response in exchanges(served):
            check_private(response, API_KEY, HOST, "5432")
            decision = decision_in(response)
            if decision is not None:
                assert (decision["action"], decision["ticket"]) == ("abstain", None)
                assert decision["ticket_error"]["kind"] == "QueueStorageError"
                assert set(decision["ticket_error"]) == {"kind", "message"}


def test_a_queues_path_stays_out_of_responses(tmp_path: Path) -> None:
    folder = tmp_path / "private-folder"
    folder.mkdir()
    database = folder / "tickets.db"
    with (
        ReviewQueue(f"sqlite:///{database}") as queue,
        serve(failing(ERRORS[0], queue), review=queue, modes=MODES) as served,
    ):
        database.write_bytes(b"no database at all" * 1000)
        for response in exchanges(served):
            check_private(response, "private-folder", "tickets.db", API_KEY)
            decision = decision_in(response)
            if decision is not None:
                assert decision["ticket_error"]["kind"] == "QueueStorageError"
        with served.http() as client:
            assert client.get("/readyz").status_code == 503


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_a_queues_path_stays_out_of_the_page_and_of_verdicts(
    site: Site, database: Path, accept: str, settings: PageSettings
) -> None:
    assert settings.verdict_secret is not None
    ana = site.signed_in("ana")
    database.write_bytes(b"no database at all" * 1000)
    for path in ("/tickets", f"/tickets/{'f' * 32}"):
        response = ana.client.get(path, headers={"accept": accept})
        assert response.status_code == 503
        check_private(response, str(database.parent), database.name)


def test_a_defect_in_a_scorer_and_a_policy_reaches_callers_by_kind(tmp_path: Path) -> None:
    class BrokenScorer(FixedScorer):
        def score(self, *_: Any, **__: Any) -> Any:
            raise OSError(f"no such file: {tmp_path}/bundle.txt")

    with InMemoryQueue() as queue:
        guard = guard_of({"small": (FakeModel("Oslo"), BrokenScorer(0.1))}, queue)
        app = create_app(policy=guard.policy, guard=guard, server=settings_with(modes=MODES))
        with in_process(app) as connect:
            served = ServedGuard(url="http://127.0.0.1:8000", app=app, connect=connect)
            for response in exchanges(served):
                check_private(response, str(tmp_path), "bundle.txt", KEY)
