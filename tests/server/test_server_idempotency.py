"""One idempotency key, one decision: one call of the model, one answer, one ticket, however often the request comes."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx2
import openai
import pytest

from ilis_guard import Guard, events
from ilis_guard.config.secrets import hash_token
from ilis_guard.config.server import KeySettings
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from tests.server.servers import KEY, RULES, guard_of, serve, serve_on_socket, shop

ASKED: Any = {"model": "ilis-guard", "messages": [{"role": "user", "content": "person?"}]}
OTHER: Any = {"model": "ilis-guard", "messages": [{"role": "user", "content": "sure?"}]}
PATHS: Final = ["/v1/chat/completions", "/v1/completions", "/v1/decisions"]


def keyed(key: str = "order-17") -> Any:
    return {"extra_headers": {"Idempotency-Key": key}}


def body(path: str, prompt: str = "person?") -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    if path == "/v1/decisions":
        return {"messages": messages}
    return {"model": "ilis-guard"} | ({"prompt": prompt} if path == "/v1/completions" else {"messages": messages})


@pytest.fixture
def queue() -> Iterator[ReviewQueue]:
    with InMemoryQueue() as one:
        yield one


def calls(guard: Guard) -> list[int]:
    return [len(tier.model.calls) for tier in guard.tiers if isinstance(tier.model, FakeModel)]


@pytest.mark.parametrize("path", PATHS)
def test_a_repeated_request_gets_the_same_decision(queue: ReviewQueue, path: str) -> None:
    guard = shop(queue)
    with serve(guard) as served, served.http() as client:
        first, again = (client.post(path, json=body(path), headers={"idempotency-key": "k"}) for _ in range(2))
        other = client.post(path, json=body(path), headers={"idempotency-key": "another"})
    told, retold = (one.json().get("ilis_guard", one.json()) for one in (first, again))
    assert (first.status_code, again.status_code, told["action"]) == (200, 200, "escalate")
    assert told == retold
    assert first.headers["x-ilis-guard-decision"] == again.headers["x-ilis-guard-decision"]
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert other.headers["x-ilis-guard-decision"] != first.headers["x-ilis-guard-decision"]
    assert calls(guard) == [2, 0]
    assert len(queue.list()) == 2


@pytest.mark.parametrize("prompt", ["sure?", "larger?", "hopeless?", "broken?"])
def test_whatever_the_decision_is(queue: ReviewQueue, prompt: str) -> None:
    guard, asked = shop(queue), body(PATHS[0], prompt)
    with serve(guard) as served, served.client() as client:
        first: Any = client.chat.completions.create(**asked, **keyed())
        before = calls(guard)
        again: Any = client.chat.completions.create(**asked, **keyed())
    assert again.choices == first.choices
    assert (again.usage, again.ilis_guard) == (first.usage, first.ilis_guard)
    assert calls(guard) == before


@pytest.mark.parametrize("mode", ["hold", "optimistic"])
def test_a_stream_gets_the_same_decision_as_its_first_request(queue: ReviewQueue, mode: str) -> None:
    guard = shop(queue)
    options: Any = {"stream": True, "extra_body": {"ilis_guard": {"mode": mode}}}
    with serve(guard, modes=("optimistic",)) as served, served.client() as client:
        first: Any = client.chat.completions.create(**OTHER, **keyed())
        again: list[Any] = list(client.chat.completions.create(**OTHER, **keyed(), **options))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in again) == first.choices[0].message.content
        assert again[-1].ilis_guard == first.ilis_guard
        refused: list[Any] = list(client.chat.completions.create(**ASKED, **keyed("two"), **options))
        once_more: Any = client.chat.completions.create(**ASKED, **keyed("two"))
        assert once_more.ilis_guard["ticket"] == refused[-1].ilis_guard["ticket"]
    assert calls(guard) == [2, 0]
    assert len(queue.list()) == 1


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_key_that_was_sent_with_another_request_is_a_422(queue: ReviewQueue, is_stream: bool) -> None:
    guard = shop(queue)
    with serve(guard) as served, served.client() as client:
        client.chat.completions.create(**ASKED, **keyed())
        for changed in (
            OTHER,
            ASKED | {"stop": ["x"]},
            ASKED | {"extra_body": {"ilis_guard": {"labels": {"topic": "a"}}}},
        ):
            with pytest.raises(openai.UnprocessableEntityError, match="make a new one for each") as caught:
                client.chat.completions.create(**changed, **keyed(), stream=is_stream)
            assert caught.value.code == "RequestConflictError"
    assert calls(guard) == [1, 0]


def test_no_client_gets_anothers_decision(queue: ReviewQueue) -> None:
    keys = tuple(KeySettings(name=name, key=hash_token(f"{KEY}-{name}")) for name in ("one", "two"))
    with serve(shop(queue), api_keys=keys) as served:
        told = []
        for name in ("one", "two"):
            with served.http(key=f"{KEY}-{name}") as client:
                answered = client.post(PATHS[0], json=ASKED, headers={"idempotency-key": "k"})
                told.append(answered.json()["ilis_guard"]["id"])
        with served.http(key=f"{KEY}-two") as client:
            assert client.post(PATHS[0], json=OTHER, headers={"idempotency-key": "k"}).status_code == 422
            assert client.post(PATHS[0], json=OTHER, headers={"idempotency-key": "l"}).status_code == 200
    assert told[0] != told[1]
    assert len(queue.list()) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "\xe9"])
def test_what_is_no_key_is_a_400(queue: ReviewQueue, key: str) -> None:
    guard = shop(queue)
    with serve(guard) as served, served.http() as client:
        refused = client.post(PATHS[0], json=ASKED, headers=[(b"idempotency-key", key.encode("latin-1"))])
    assert refused.status_code == 400
    assert "idempotency-key" in refused.json()["detail"]
    assert calls(guard) == [0, 0]


@pytest.mark.parametrize("path", PATHS)
def test_several_keys_are_a_400(queue: ReviewQueue, path: str) -> None:
    guard = shop(queue)
    with serve(guard) as served, served.http() as client:
        both = [("idempotency-key", "one"), ("Idempotency-Key", "two")]
        refused = client.post(path, json=body(path), headers=both)
        twice = client.post(path, json=body(path), headers=[both[0], both[0]])
    assert (refused.status_code, twice.status_code) == (400, 200)
    assert "several idempotency-key headers" in refused.text
    assert calls(guard) == [1, 0]


class Lossy(httpx2.BaseTransport):
    """A connection that breaks when the answer to the first request, and to the second, is on its way."""

    def __init__(self, connect: Callable[[], httpx2.Client], lost: int) -> None:
        self._client = connect()
        self._lost = lost
        self.sent: list[httpx2.Request] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append(request)
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"host"]
        answered = self._client.request(request.method, request.url.path, content=request.read(), headers=headers)
        if len(self.sent) <= self._lost:
            raise httpx2.ReadError("the connection broke", request=request)
        return httpx2.Response(answered.status_code, headers=answered.headers, content=answered.content)


def test_the_retries_of_openais_own_client_make_one_ticket(queue: ReviewQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    guard = shop(queue)
    with serve(guard) as served:
        lossy = Lossy(served.connect, 2)
        # By default it sends a request three times.
        with openai.OpenAI(
            base_url=f"{served.url}/v1", api_key=KEY, http_client=httpx2.Client(transport=lossy)
        ) as client:
            done: Any = client.chat.completions.create(**ASKED, **keyed())
    assert [request.headers["x-stainless-retry-count"] for request in lossy.sent] == ["0", "1", "2"]
    assert [ticket.id for ticket in queue.list()] == [done.ilis_guard["ticket"]["id"]]
    assert calls(guard) == [1, 0]


class Slow(FakeModel):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__("Trondheim perhaps.")
        self.let = threading.Event()
        self.began = threading.Event()

    def generate(self, *args: Any, **options: Any) -> Any:
        self.began.set()
        self.let.wait(60)
        return super().generate(*args, **options)


def test_a_request_that_comes_while_its_first_is_decided_waits_for_that(queue: ReviewQueue) -> None:
    model = Slow()
    guard = guard_of({"small": (model, FixedScorer(0.6))}, queue)
    serving = serve_on_socket(guard, max_concurrent=20)
    with serving as served, served.client() as client, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(lambda: client.chat.completions.create(**ASKED, **keyed())) for _ in range(8)]
        assert model.began.wait(60)
        with pytest.raises(openai.UnprocessableEntityError):
            client.chat.completions.create(**OTHER, **keyed())
        model.let.set()
        done: list[Any] = [one.result() for one in asked]
    assert len({one.ilis_guard["ticket"]["id"] for one in done}) == 1
    assert calls(guard) == [1]
    assert len(queue.list()) == 1


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_several_servers_and_restarts_know_of_one_another(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    url = f"sqlite:///{tmp_path}/tickets.db"
    if database == "postgresql":
        url = str(request.getfixturevalue("postgresql").new_queue())
    told = []
    for _ in range(2):
        with ReviewQueue(url) as queue, ReviewQueue(url) as other:
            guards = [shop(queue), shop(other)]
            with serve(guards[0]) as one, serve(guards[1]) as two, one.client() as client, two.client() as beside:
                told += [asking.chat.completions.create(**ASKED, **keyed()) for asking in (client, beside)]
                assert len(queue.list()) == 1
                with pytest.raises(openai.UnprocessableEntityError):
                    beside.chat.completions.create(**OTHER, **keyed())
            assert calls(guards[1]) == [0, 0]
    assert len({one.ilis_guard["ticket"]["id"] for one in told}) == 1


def test_of_two_servers_that_decide_at_once_the_first_to_commit_decides(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tickets.db"
    with ReviewQueue(url) as queue, ReviewQueue(url) as other:
        slow = Slow()
        late = guard_of({"small": (slow, FixedScorer(0.1))}, other)  # it would answer
        with (
            serve_on_socket(shop(queue)) as one,
            serve_on_socket(late) as two,
            one.client() as client,
            two.client() as beside,
            ThreadPoolExecutor(1) as threads,
        ):
            waiting: Any = threads.submit(lambda: beside.chat.completions.create(**ASKED, **keyed()))
            assert slow.began.wait(60)
            done: Any = client.chat.completions.create(**ASKED, **keyed())
            slow.let.set()
            assert waiting.result().ilis_guard == done.ilis_guard
        assert done.ilis_guard["action"] == "escalate"
        assert len(queue.list()) == 1


def test_without_a_queue_the_newest_decisions_are_remembered() -> None:
    policy = RULES.replace("escalate, to: support", "abstain")
    model = FakeModel("Oslo it is.")
    guard = Guard(tiers=guard_of({"small": (model, FixedScorer(0.1))}, InMemoryQueue()).tiers, policy=_parse(policy))
    with serve(guard) as served, served.client() as client:
        told: list[Any] = [client.chat.completions.create(**OTHER, **keyed()) for _ in range(3)]
        with pytest.raises(openai.UnprocessableEntityError):
            client.chat.completions.create(**ASKED, **keyed())
    assert len({one.ilis_guard["id"] for one in told}) == 1
    assert calls(guard) == [1]


def _parse(policy: str) -> Any:
    from ilis_guard import Policy

    return Policy.parse(policy)


def test_a_retry_after_a_lost_ticket_is_decided_anew(
    queue: ReviewQueue, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OverflowError("the disk is full")

    with serve(shop(queue)) as served, served.client() as client:
        with monkeypatch.context() as patched:
            patched.setattr("ilis_guard.review.tickets.create", full)
            lost: Any = client.chat.completions.create(**ASKED, **keyed())
        done: Any = client.chat.completions.create(**ASKED, **keyed())
    assert (lost.ilis_guard["action"], done.ilis_guard["action"]) == ("abstain", "escalate")
    assert lost.ilis_guard["id"] == done.ilis_guard["id"]
    assert any(one["event"] == events.ESCALATION_FAILED for one in logged)
