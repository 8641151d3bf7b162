"""What stands before the guard: keys, limits, and what ends a request early. Real sockets, on a real server."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from ilis_guard import events
from ilis_guard.config.secrets import hash_token
from ilis_guard.config.server import KeySettings
from ilis_guard.errors import ConfigError
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard_server.schemas.requests import ChatRequest, CompletionRequest, DecisionRequest
from tests.server.servers import CLIENT, KEY, Endless, ServedGuard, guard_of, serve, serve_on_socket, shop, until

ASKED: Any = {"model": "ilis-guard", "messages": [{"role": "user", "content": "sure?"}]}


@pytest.fixture
def queue() -> Iterator[ReviewQueue]:
    with InMemoryQueue() as one:
        yield one


@pytest.fixture
def endless() -> Iterator[Endless]:
    model = Endless()
    yield model
    model.is_tired = True


def counted(served: ServedGuard) -> dict[tuple[str, ...], float]:
    """All samples by name and labels' values."""
    with served.http() as client:
        text = client.get("/metrics").text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# Keys.


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, "Bearer ä"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/decisions", "/v1/models", "/metrics"])
def test_every_endpoint_needs_a_known_key(queue: ReviewQueue, header: str | None, path: str) -> None:
    with serve(shop(queue)) as served, served.http(key=None) as client:
        headers = [] if header is None else [(b"authorization", header.encode())]
        response = client.request("POST" if "comp" in path or "dec" in path else "GET", path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "authentication_error"


def test_openais_client_raises_its_authentication_error(queue: ReviewQueue, logged: list[Any]) -> None:
    with serve(shop(queue)) as served, served.client() as client:
        with pytest.raises(openai.AuthenticationError, match="API key") as caught:
            client.with_options(api_key="ilis-wrong").models.list()
        assert caught.value.code == "invalid_api_key"
    (refused,) = [one for one in logged if one["event"] == events.AUTH_FAILED]
    assert refused["request"] == caught.value.request_id
    assert "ilis-wrong" not in str(logged)


def test_keys_can_change_and_a_lost_hash_shuts_out_its_owner_alone(
    queue: ReviewQueue, tmp_path: Path, logged: list[Any]
) -> None:
    file = tmp_path / "hash"
    file.write_text(hash_token("old"))
    keys = (KeySettings(name="files", key=f"file:{file}"), KeySettings(name=CLIENT, key=hash_token(KEY)))
    with serve(shop(queue), api_keys=keys) as served:

        def status(key: str) -> int:
            with served.http(key=key) as client:
                return client.get("/v1/models").status_code

        assert (status("old"), status("new")) == (200, 401)
        file.write_text(f"{hash_token('old')} {hash_token('new')}")
        assert (status("old"), status("new")) == (200, 200)
        file.unlink()
        assert (status("old"), status(KEY)) == (401, 200)
    assert [one["name"] for one in logged if one["event"] == events.API_KEY_UNREADABLE] == ["files"] * 2


def test_a_missing_hash_keeps_the_server_from_starting(queue: ReviewQueue) -> None:
    with (
        pytest.raises(ConfigError, match="NO_SUCH_HASH"),
        serve(shop(queue), api_keys=(KeySettings(name="a", key="${NO_SUCH_HASH}"),)),
    ):
        raise AssertionError("it started")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:80000"}, 403),  # Starlette takes the server's own address instead
        ({"origin": "http://127.0.0.1"}, 403),
    ],
)
def test_without_keys_only_programs_on_this_machine_may_ask(
    queue: ReviewQueue, headers: dict[str, str], status: int
) -> None:
    with serve(shop(queue), api_keys=()) as served, served.http(key=None) as client:
        response = client.post("/v1/chat/completions", json=ASKED, headers=headers)
        assert response.status_code == status
        assert "access-control-allow-origin" not in response.headers


# Bodies.


def test_a_body_may_be_as_large_as_the_operator_says(queue: ReviewQueue) -> None:
    with serve(shop(queue), max_body_bytes=2000) as served, served.http() as client:
        fits = json.dumps(ASKED).ljust(2000)
        json_type = {"content-type": "application/json"}
        assert client.post("/v1/chat/completions", content=fits, headers=json_type).status_code == 200
        announced = client.post("/v1/chat/completions", content=fits + " ", headers=json_type)
        streamed = client.post("/v1/chat/completions", content=iter([fits.encode(), b" "]), headers=json_type)
        assert (announced.status_code, streamed.status_code) == (413, 413)


def test_of_a_body_full_of_problems_only_the_first_is_gathered() -> None:
    """A megabyte holds half a million; while they are gathered, nobody else is answered."""
    full: dict[str, Any] = {"model": "ilis-guard", "prompt": [0] * 1000, "messages": [0] * 1000}
    parts = {"model": "ilis-guard", "messages": [{"role": "user", "content": [0] * 1000}]}
    for kind, body in ((ChatRequest, full), (ChatRequest, parts), (CompletionRequest, full), (DecisionRequest, full)):
        with pytest.raises(ValidationError) as caught:
            kind.model_validate(body)
        assert caught.value.error_count() < 5


def test_a_disconnect_in_the_middle_of_a_body_is_no_defect(queue: ReviewQueue, logged: list[Any]) -> None:
    with serve_on_socket(shop(queue)) as served:
        with begun(served, length=100) as connection:
            connection.sendall(b'{"mod')
        responses = ("ilis_guard_responses_total", "/v1/chat/completions")
        until(lambda: (*responses, "499") in counted(served))
        assert (*responses, "500") not in counted(served)
    assert not any(one["event"] == events.REQUEST_FAILED for one in logged)


# Limits.


def test_a_full_waiting_line_is_a_429_with_retry_after(queue: ReviewQueue, endless: Endless) -> None:
    guard = guard_of({"small": (endless, FixedScorer(0.1))}, queue)
    with serve_on_socket(guard, max_concurrent=1, max_waiting=1) as served, sent(served), sent(served):
        until(lambda: counted(served)["ilis_guard_requests_waiting",] == 1)
        with served.client() as client, pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**ASKED)
        assert caught.value.code == "too_many_requests"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_the_policy_rules_on_a_request_that_takes_too_long(queue: ReviewQueue, endless: Endless) -> None:
    guard = guard_of({"small": (endless, FixedScorer(0.1))}, queue)
    with serve(guard, timeout_seconds=0.3) as served, served.client() as client:
        completion: Any = client.chat.completions.create(**ASKED, stop="never said")
        assert endless.stopped.wait(20)
        assert completion.choices[0].message.refusal == "A person will look at it."
        told = completion.ilis_guard
        assert (told["action"], told["rule"]) == ("escalate", "broken")
        assert told["attempts"][0]["error"] == {"kind": "BudgetError", "message": "The time for the request is over."}
        assert queue.get(told["ticket"]["id"]).ticket.queue == "support"
        numbers = counted(served)
    assert numbers["ilis_guard_attempt_errors_total", "BudgetError", "small"] == 1
    assert numbers["ilis_guard_tickets_total", "support"] == 1


def test_text_shown_before_the_timeout_is_retracted(queue: ReviewQueue, endless: Endless) -> None:
    guard = guard_of({"small": (endless, FixedScorer(0.1))}, queue)
    with serve(guard, timeout_seconds=0.5, stream_mode="optimistic") as served, served.client() as client:
        chunks: list[Any] = list(client.chat.completions.create(**ASKED, stream=True))
    assert chunks[1].choices[0].delta.content.startswith("word")
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert (chunks[-1].ilis_guard["retracted"], chunks[-1].ilis_guard["action"]) == (True, "escalate")


# Clients that leave.


def sent(served: ServedGuard, **more: Any) -> socket.socket:
    """A request on a socket of its own."""
    body = json.dumps(ASKED | more).encode()
    connection = begun(served, length=len(body))
    connection.sendall(body)
    return connection


def begun(served: ServedGuard, *, length: int) -> socket.socket:
    """The head of a request on a socket of its own."""
    port = int(served.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


@pytest.mark.parametrize(
    "more",
    [{}, {"stream": True}, {"stream": True, "ilis_guard": {"mode": "optimistic"}}],
    ids=["whole", "held stream", "optimistic stream"],
)
def test_a_disconnect_stops_the_model_and_frees_the_slot(
    queue: ReviewQueue, endless: Endless, logged: list[Any], more: dict[str, Any]
) -> None:
    guard = guard_of({"small": (endless, FixedScorer(0.1))}, queue)
    with serve_on_socket(guard, max_concurrent=1, max_waiting=0, modes=("optimistic",)) as served:
        connection = sent(served, **more)
        assert endless.began.wait(20)
        if more:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert not endless.stopped.is_set()
        connection.close()
        assert endless.stopped.wait(20)
        until(lambda: counted(served)["ilis_guard_requests_in_flight",] == 0)
        words = endless.words
        assert counted(served)["ilis_guard_client_disconnects_total",] == 1
    assert endless.words == words
    (gone,) = [one for one in logged if one["event"] == events.CLIENT_DISCONNECTED]
    assert gone["client"] == CLIENT
    assert not any(one["event"] in (events.REQUEST_DECIDED, events.REQUEST_FAILED) for one in logged)
    assert list(queue.list()) == []


def test_a_disconnect_while_waiting_makes_room(queue: ReviewQueue, endless: Endless) -> None:
    guard = guard_of({"small": (endless, FixedScorer(0.1))}, queue)
    with serve_on_socket(guard, max_concurrent=1, max_waiting=1) as served, sent(served):
        assert endless.began.wait(20)
        with sent(served):
            until(lambda: counted(served)["ilis_guard_requests_waiting",] == 1)
        until(lambda: counted(served)["ilis_guard_requests_waiting",] == 0)


def test_a_long_stream_is_kept_open_by_comments(
    queue: ReviewQueue, endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ilis_guard_server.sse.KEEP_ALIVE_SECONDS", 0.05)
    guard = guard_of({"small": (endless, FixedScorer(0.1))}, queue)
    with serve(guard, timeout_seconds=1.0) as served, served.client() as client:
        chunks: list[Any] = list(client.chat.completions.create(**ASKED, stream=True))
        assert chunks[-1].ilis_guard["action"] == "escalate"  # OpenAI's client passes over comments
        with served.http() as http:
            text = http.post("/v1/chat/completions", json=ASKED | {"stream": True}).text
        assert text.count(": keep-alive\n\n") > 2


def test_a_client_that_reads_nothing_counts_as_disconnected(
    queue: ReviewQueue, monkeypatch: pytest.MonkeyPatch, endless: Endless
) -> None:
    monkeypatch.setattr("ilis_guard_server.sse.SEND_SECONDS", 0.2)
    endless.word = "word" * 10_000  # what a socket takes is soon full
    guard = guard_of({"small": (endless, FixedScorer(0.1))}, queue)
    with (
        serve_on_socket(guard, stream_mode="optimistic", model="m" * 100) as served,
        sent(served, model="m" * 100, stream=True),
    ):
        until(lambda: counted(served)["ilis_guard_client_disconnects_total",] == 1)
        assert endless.stopped.wait(20)


# A defect in the middle of a stream.


def test_a_failed_stream_ends_with_a_problem_without_particulars(
    queue: ReviewQueue, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the prompt was: sure?")

    monkeypatch.setattr("ilis_guard_server.routers.openai.DecisionSummary.of", fails)
    with serve(shop(queue)) as served, served.client() as client:
        coming: Any = client.chat.completions.create(**ASKED, stream=True)
        with pytest.raises(openai.APIError, match=r"request [0-9a-f]{32}") as caught:
            list(coming)
        assert "prompt" not in str(caught.value)
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**ASKED)
    assert [one["error"] for one in logged if one["event"] == events.REQUEST_FAILED] == ["RuntimeError"] * 2


# Counters and readiness.


def test_requests_and_decisions_are_counted_without_texts(queue: ReviewQueue) -> None:
    with serve(shop(queue)) as served:
        with served.http() as client:
            for question in ("sure?", "larger?", "broken?"):
                asked = ASKED | {"messages": [{"role": "user", "content": question}]}
                assert client.post("/v1/chat/completions", json=asked).status_code == 200
            client.post("/v1/chat/completions", json=ASKED | {"n": 2})
            client.get("/anything")
            text = client.get("/metrics").text
        numbers = counted(served)
    assert numbers["ilis_guard_decisions_total", "answer", "sure", "small"] == 1
    assert numbers["ilis_guard_decisions_total", "answer", "sure", "large"] == 1
    assert numbers["ilis_guard_decisions_total", "escalate", "broken", "small"] == 1
    assert numbers["ilis_guard_attempts_total", "answer", "small"] == 3
    assert numbers["ilis_guard_attempt_errors_total", "UnexpectedError", "small"] == 1
    assert numbers["ilis_guard_tokens_total", "answer", "large"] == 4
    assert numbers["ilis_guard_uncertainty_count", "small"] == 2
    assert numbers["ilis_guard_responses_total", "/v1/chat/completions", "200"] == 3
    assert numbers["ilis_guard_responses_total", "/v1/chat/completions", "400"] == 1
    for words in ("anything", "Oslo", "sure?", "broken?", CLIENT):
        assert words not in text


def test_two_applications_count_for_themselves(queue: ReviewQueue) -> None:
    with serve(shop(queue)) as one, serve(shop(queue)) as other:
        with one.http() as client:
            client.post("/v1/chat/completions", json=ASKED)
        name = ("ilis_guard_decisions_total", "answer", "sure", "small")
        assert (counted(one).get(name), counted(other).get(name)) == (1, None)


def test_readiness_follows_the_queue_and_the_policy(tmp_path: Path, logged: list[Any]) -> None:
    database, policy = tmp_path / "tickets.db", tmp_path / "policy.yaml"
    policy.write_text("version: 1\nname: p\nrules: [{id: a, do: abstain}]\n")
    with ReviewQueue(f"sqlite:///{database}") as queue:
        guard = guard_of({"small": (FakeModel("x"), FixedScorer(0.1))}, queue)
        guard.follow(policy)
        with serve(guard, review=queue) as served, served.http(key=None) as client:

            def ready() -> tuple[int, dict[str, Any]]:
                response: httpx2.Response = client.get("/readyz")
                return response.status_code, response.json()

            assert ready() == (200, {"status": "ready", "queue": True, "policy": True, "serving": True})
            not_in_force = {"status": "not ready", "queue": True, "policy": False, "serving": True}
            policy.write_text("version: 1\nname: p\nrules: [{id: a, do: nothing}]\n")
            until(lambda: ready() == (503, not_in_force))
            policy.write_text("version: 1\nname: p\nrules: [{id: a, do: abstain}]\n")
            until(lambda: ready()[0] == 200)
            database.write_bytes(b"no database at all" * 1000)
            unreachable = {"status": "not ready", "queue": False, "policy": True, "serving": True}
            until(lambda: ready() == (503, unreachable))
            assert client.get("/healthz").status_code == 200
    assert any(one["event"] == events.QUEUE_UNREACHABLE for one in logged)


def test_a_probe_waits_for_no_thread_that_requests_use(queue: ReviewQueue) -> None:
    at_work, done = threading.Event(), threading.Event()
    with serve(shop(queue), review=queue) as served, served.http() as client, served.http() as other:

        @served.app.get("/narrow")
        async def narrow() -> None:
            anyio.to_thread.current_default_thread_limiter().total_tokens = 1

        @served.app.get("/slow")
        def slow() -> None:
            at_work.set()
            done.wait(20)

        assert client.get("/narrow").status_code == 200
        with ThreadPoolExecutor() as threads:
            request = threads.submit(other.get, "/slow")
            try:
                assert at_work.wait(20)
                assert client.get("/readyz").json()["status"] == "ready"
                assert not request.done()
            finally:
                done.set()
            assert request.result().status_code == 200


def test_the_log_leads_from_request_to_decision_to_client(queue: ReviewQueue, logged: list[Any]) -> None:
    with serve(shop(queue)) as served, served.client() as client:
        completion: Any = client.chat.completions.create(**ASKED)
    (told,) = [one for one in logged if one["event"] == events.REQUEST_DECIDED]
    assert (told["decision"], told["client"]) == (completion.ilis_guard["id"], CLIENT)
    assert completion.id == f"chatcmpl-{told['request']}"
    assert told["mode"] == "hold"
