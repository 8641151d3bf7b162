"""Slow clients and many connections: the server closes those that keep it waiting, and answers the others."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from ilis_guard import events
from ilis_guard.config.review import PageSettings
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FixedScorer
from ilis_guard_server import connections, create_app
from tests.server.servers import KEY, Endless, guard_of, on_socket, serve_on_socket, settings_with, shop, until

HALF_A_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"
AUTHORIZED = f"{HALF_A_HEAD.decode()}authorization: Bearer {KEY}\r\ncontent-type: application/json\r\n".encode()
BODY = json.dumps({"model": "ilis-guard", "messages": [{"role": "user", "content": "sure?"}]}).encode()
COMPLETE = AUTHORIZED + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
HALF_A_BODY = COMPLETE[:-10]
CLOSED = b"connection: close\r\n"
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that waits for nobody."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "READ_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(connections, name, 0.2)


@pytest.fixture(autouse=True)
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that looks at its connections all the time."""
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(connections, "LOG_SECONDS", 0.1)


def connect(url: str, source: str = "127.0.0.1") -> socket.socket:
    port = int(url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))


def rest(connection: socket.socket) -> bytes:
    """Everything that still comes, until the server closes."""
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return b""


def drip(connection: socket.socket, data: bytes, pause: float) -> None:
    """Send byte after byte, until the server closes."""
    connection.settimeout(pause)
    try:
        for byte in data:
            connection.sendall(bytes([byte]))
            try:
                if connection.recv(1, socket.MSG_PEEK) == b"":
                    break
            except TimeoutError:
                continue
            break
    finally:
        connection.settimeout(30)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begun", [HALF_A_HEAD, COMPLETE + HALF_A_HEAD], ids=["the first", "the second"])
def test_a_head_that_takes_too_long_is_refused(review: ReviewQueue, begun: bytes) -> None:
    with serve_on_socket(shop(review)) as served, connect(served.url) as connection:
        connection.sendall(begun)
        drip(connection, b"x: " + b"a" * 3000, 0.02)
        found = rest(connection)
    assert found.count(b"HTTP/1.1 200") == (begun != HALF_A_HEAD)
    assert found.count(b"HTTP/1.1 408") == 1
    assert CLOSED in found


@pytest.mark.usefixtures("impatient")
def test_a_connection_on_which_nothing_comes_is_closed_without_a_word(review: ReviewQueue) -> None:
    with serve_on_socket(shop(review)) as served, connect(served.url) as connection:
        assert rest(connection) == b""


@pytest.mark.usefixtures("impatient")
def test_a_body_that_comes_too_slowly_is_refused(review: ReviewQueue, logged: list[Any]) -> None:
    with serve_on_socket(shop(review)) as served, connect(served.url) as connection:
        connection.sendall(COMPLETE[: -len(BODY)])
        drip(connection, BODY, 0.05)
        found = rest(connection)
        assert found.startswith(b"HTTP/1.1 408")
        assert CLOSED in found
        with served.http() as client:
            until(lambda: 'status="499"} 1.0' in client.get("/metrics").text)
    assert not any(one["event"] == events.REQUEST_FAILED for one in logged)


def test_a_body_that_comes_steadily_may_take_long(review: ReviewQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(connections, "BODY_BYTES_A_SECOND", 50.0)
    body = BODY.ljust(1000)
    with serve_on_socket(shop(review)) as served, connect(served.url) as connection:
        connection.sendall(AUTHORIZED + b"content-length: %d\r\n\r\n" % len(body))
        drip(connection, body, 0.002)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert b"Oslo it is." in rest(connection)


@pytest.mark.usefixtures("impatient")
def test_a_client_that_goes_on_sending_after_the_answer_is_left(review: ReviewQueue) -> None:
    with serve_on_socket(shop(review)) as served, connect(served.url) as connection:
        connection.sendall(HALF_A_BODY.replace(KEY.encode(), b"wrong"))
        drip(connection, b" " * 3000, 0.02)
        found = rest(connection)
    assert found.startswith(b"HTTP/1.1 401")
    assert CLOSED in found


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("last", [b"", DOCUMENT.replace(b"host", b"connection: close\r\nhost")], ids=["open", "closed"])
def test_a_client_that_reads_nothing_is_left(review: ReviewQueue, logged: list[Any], last: bytes) -> None:
    """Also where the server has sent all that it wants to, and what is left is the operating system's to send."""
    with serve_on_socket(shop(review)) as served, connect(served.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(DOCUMENT * 300 + last)
        until(lambda: any(one.get("reads_nothing") for one in logged if one["event"] == events.CONNECTIONS_CLOSED))


def test_a_client_that_reads_slowly_gets_everything(review: ReviewQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 1.0)
    with serve_on_socket(shop(review)) as served, connect(served.url) as connection, served.http() as client:
        whole = len(client.get("/openapi.json").content)
        connection.sendall(DOCUMENT * 99 + DOCUMENT.replace(b"host", b"connection: close\r\nhost"))
        found = bytearray()
        while part := connection.recv(whole // 4):
            found += part
    assert found.count(b"HTTP/1.1 200") == 100
    assert found.count(b'{"openapi"') == 100


# Many.


@pytest.mark.parametrize(
    "begun",
    [b"", HALF_A_HEAD, HALF_A_BODY, DOCUMENT, DOCUMENT * 300],
    ids=["nothing", "half a head", "half a body", "nothing more", "reads nothing"],
)
def test_where_there_is_no_room_the_longest_waiting_connection_is_closed(review: ReviewQueue, begun: bytes) -> None:
    with serve_on_socket(shop(review), max_connections=4) as served, ExitStack() as stack:
        slow = []
        for _ in range(10):
            slow.append(stack.enter_context(connect(served.url)))
            slow[-1].sendall(begun)
        with connect(served.url) as good:
            good.sendall(COMPLETE)
            assert good.recv(65536).startswith(b"HTTP/1.1 200")
        for connection in slow[:6]:
            assert b"HTTP/1.1 408" not in rest(connection)  # there is no time for words


def test_a_request_that_is_being_answered_keeps_its_connection(review: ReviewQueue) -> None:
    endless = Endless()
    guard = guard_of({"small": (endless, FixedScorer(0.1))}, review)
    with serve_on_socket(guard, max_connections=2) as served, ExitStack() as stack:
        try:
            asked = [stack.enter_context(connect(served.url)) for _ in range(2)]
            for connection in asked:
                connection.sendall(COMPLETE)
            assert endless.began.wait(20)
            until(lambda: served.app.state.guard.limiter.in_flight == 2)
            with connect(served.url) as late:
                late.sendall(COMPLETE)
                found = rest(late)
            assert found.startswith(b"HTTP/1.1 503")
            assert CLOSED in found
        finally:
            endless.is_tired = True
        for connection in asked:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_address_with_most_waiting_connections_makes_room(review: ReviewQueue) -> None:
    with serve_on_socket(shop(review), max_connections=4) as served, ExitStack() as stack:
        good = stack.enter_context(connect(served.url))
        good.sendall(HALF_A_HEAD)
        for _ in range(10):
            stack.enter_context(connect(served.url, "127.0.0.2")).sendall(HALF_A_HEAD)
        good.sendall(COMPLETE[len(HALF_A_HEAD) :])
        assert good.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.fixture
def both(review: ReviewQueue, settings: PageSettings) -> Iterator[str]:
    """The address of a server of a guard and a page, which takes four connections."""
    guard = shop(review)
    app = create_app(settings, review=review, policy=guard.policy, guard=guard, server=settings_with())
    with on_socket(app, max_connections=4) as (url, _):
        yield url


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /healthz", 200),
        ("GET /readyz", 200),
        ("GET /metrics", 200),
        ("GET /v1/models", 200),
        ("GET /tickets", 303),
        ("GET /sign-in", 200),
        ("GET /static/page.css", 200),
        ("POST /v1/tickets/abcd/verdict", 401),
    ],
)
@pytest.mark.parametrize("begun", [HALF_A_HEAD, HALF_A_BODY], ids=["half a head", "half a body"])
def test_every_route_is_open_behind_a_crowd(both: str, line: str, status: int, begun: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(connect(both)).sendall(begun.replace(b"/v1/chat/completions", line.split()[1].encode()))
        with connect(both) as good:
            good.sendall(f"{line} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n\r\n".encode())
            assert good.recv(65536).startswith(b"HTTP/1.1 %d" % status)
