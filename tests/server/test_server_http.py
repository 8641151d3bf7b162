"""HTTP/1.1 as the server reads it: what a proxy could read in another way is refused, and the connection closed."""

import json
import re
import socket
from collections.abc import Iterator

import pytest

from ilis_guard.testing import InMemoryQueue
from tests.server.servers import KEY, ServedGuard, serve_on_socket, shop

BODY = json.dumps({"model": "ilis-guard", "messages": [{"role": "user", "content": "sure?"}]}).encode()
LENGTH = b"content-length: %d" % len(BODY)
CHUNKED = b"transfer-encoding: chunked"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def served() -> Iterator[ServedGuard]:
    with InMemoryQueue() as queue, serve_on_socket(shop(queue)) as running:
        yield running


def asked(*headers: bytes, body: bytes = BODY, line: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    """A request with a valid key, and these headers."""
    head = [line, b"host: 127.0.0.1", b"authorization: Bearer " + KEY.encode(), b"content-type: application/json"]
    return b"\r\n".join([*head, *headers, b"", body])


def answered(served: ServedGuard, *sent: bytes) -> bytes:
    """Everything that the server sends to a client that sends this and reads on until the server closes."""
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=30) as connection:
        for part in sent:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def statuses(response: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+) ", response)]


@pytest.mark.parametrize(
    "request_", [asked(LENGTH), asked(CHUNKED, body=CHUNKS), asked(b"Content-Length:%d" % len(BODY))]
)
def test_a_body_with_one_length_or_in_chunks_is_answered(served: ServedGuard, request_: bytes) -> None:
    last = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    response = answered(served, request_ + last)
    assert statuses(response) == [200, 200]
    assert b"Oslo it is." in response


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(asked(LENGTH, CHUNKED, body=CHUNKS), id="length, then chunks"),
        pytest.param(asked(CHUNKED, LENGTH, body=CHUNKS), id="chunks, then length"),
        pytest.param(asked(b"content-length: 0", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED), id="CL.TE"),
        pytest.param(asked(LENGTH, LENGTH), id="the same length twice"),
        pytest.param(asked(LENGTH, b"content-length: 1"), id="two lengths"),
        pytest.param(asked(LENGTH + b", %d" % len(BODY)), id="a list of equal lengths"),
        pytest.param(asked(LENGTH + b", 1"), id="a list of lengths"),
        pytest.param(asked(b"content-length: +%d" % len(BODY)), id="a sign"),
        pytest.param(asked(b"content-length: -1"), id="a negative length"),
        pytest.param(asked(b"content-length: 0x10"), id="a hexadecimal length"),
        pytest.param(asked(b"content-length: " + b"9" * 30), id="an astronomical length"),
        pytest.param(asked(b"content-length:"), id="no length"),
        pytest.param(asked(b"content-length: \xb2"), id="a digit of Latin-1"),
        pytest.param(asked(LENGTH.replace(b":", b" :")), id="a space before the colon"),
        pytest.param(asked(b"transfer-encoding : chunked", body=CHUNKS), id="the same of chunks"),
        pytest.param(asked(b"transfer-encoding: chunked, chunked", body=CHUNKS), id="chunks of chunks"),
        pytest.param(asked(CHUNKED, CHUNKED, body=CHUNKS), id="chunked twice"),
        pytest.param(asked(b"transfer-encoding: identity", LENGTH), id="identity"),
        pytest.param(asked(b"transfer-encoding: gzip, chunked", body=CHUNKS), id="compressed"),
        pytest.param(asked(b"transfer-encoding: xchunked", body=CHUNKS), id="an unknown coding"),
        pytest.param(asked(b'transfer-encoding: "chunked"', body=CHUNKS), id="a quoted coding"),
        pytest.param(asked(b"transfer-encoding: \x0bchunked", body=CHUNKS), id="a vertical tab"),
        pytest.param(asked(b"transfer-encoding:\r\n chunked", body=CHUNKS), id="a folded coding"),
        pytest.param(asked(LENGTH, b"x: a\r\n b"), id="a folded header"),
        pytest.param(asked(LENGTH, b"x: a\r\n\tb"), id="a header folded by a tab"),
        pytest.param(asked(LENGTH, b"x: a\rb"), id="a bare carriage return"),
        pytest.param(asked(LENGTH, b"x: a\nb: c"), id="a bare line feed"),
        pytest.param(asked(LENGTH, b"x: a\x00b"), id="a NUL"),
        pytest.param(asked(LENGTH).replace(b"\r\n", b"\n"), id="line feeds only"),
        pytest.param(asked(LENGTH, b"x"), id="no colon"),
        pytest.param(asked(LENGTH, b": a"), id="no name"),
        pytest.param(b"\r\n" + asked(LENGTH), id="an empty line before"),
        pytest.param(b" " + asked(LENGTH), id="a space before"),
        pytest.param(asked(LENGTH, b"host: evil.example"), id="two hosts"),
        pytest.param(b"GET /healthz HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(
            asked(LENGTH, line=b"POST http://127.0.0.1/v1/chat/completions HTTP/1.1"), id="an absolute target"
        ),
        pytest.param(asked(line=b"CONNECT evil.example:443 HTTP/1.1", body=b""), id="a tunnel"),
        pytest.param(asked(line=b"GET * HTTP/1.1", body=b""), id="an asterisk"),
        pytest.param(asked(line=b"GET healthz HTTP/1.1", body=b""), id="a target without a slash"),
        pytest.param(asked(line=b"GET /healthz", body=b""), id="HTTP/0.9"),
        pytest.param(asked(line=b"GET /healthz HTTP/1.2", body=b""), id="HTTP/1.2"),
        pytest.param(asked(line=b"GET /healthz HTTP/2.0", body=b""), id="HTTP/2 in letters"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2's preface"),
        pytest.param(asked(line=b"GET /healthz http/1.1", body=b""), id="small letters"),
        pytest.param(asked(line=b"GET  /healthz HTTP/1.1", body=b""), id="two spaces"),
        pytest.param(asked(line=b"GET /healthz HTTP/1.1 x", body=b""), id="something after the version"),
        pytest.param(asked(CHUNKED, line=b"POST /v1/chat/completions HTTP/1.0", body=CHUNKS), id="chunks in HTTP/1.0"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(served: ServedGuard, request_: bytes) -> None:
    response = answered(served, request_ + SMUGGLED)
    assert statuses(response) == [400]
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(b"%x;\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), id="a line feed in an extension"),
        pytest.param(b"%x\n%s\n0\n\n" % (len(BODY), BODY), id="line feeds"),
        pytest.param(b"0x%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), id="a prefix"),
        pytest.param(b"+%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), id="a sign"),
        pytest.param(b"-1\r\n%s\r\n0\r\n\r\n" % BODY, id="a negative length"),
        pytest.param(b"%x\r\n%sxx0\r\n\r\n" % (len(BODY), BODY), id="no line's end after a chunk"),
        pytest.param(b"%x\r\n%s\r\n\r\n" % (len(BODY), BODY), id="no length"),
        pytest.param(b"f" * 30 + b"\r\n", id="an astronomical length"),
        pytest.param(b"%x\r\n%s\r\n0\r\nx: a\r\n \x00b\r\n\r\n" % (len(BODY), BODY), id="an invalid trailer"),
        pytest.param(b"1\r\n \r\n" * 20_000, id="chunks of a byte"),
    ],
)
def test_chunks_are_read_in_one_way(served: ServedGuard, chunks: bytes) -> None:
    assert statuses(answered(served, asked(CHUNKED, body=chunks + SMUGGLED))) == [400]


@pytest.mark.parametrize(
    "head",
    [
        asked(b"x: " + b"a" * 40_000, body=b""),
        asked(b"x: " + b"a" * 300_000, body=b"")[:-4],  # whose end never comes
        asked(*[b"x: a"] * 200, body=b""),
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
    ids=["a long header", "an endless header", "many headers", "a long path"],
)
def test_a_huge_head_is_refused(served: ServedGuard, head: bytes) -> None:
    assert statuses(answered(served, head)) == [431]


def test_http_1_0_is_answered_and_closed(served: ServedGuard) -> None:
    response = answered(served, b"GET /healthz HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" + SMUGGLED)
    assert statuses(response) == [200]
    assert b"connection: close" in response.lower()


def test_no_connection_becomes_a_web_socket(served: ServedGuard) -> None:
    upgrade = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n"
    assert statuses(answered(served, upgrade)) in ([200], [400])


def test_garbage_after_a_response_has_begun_ends_the_connection_quietly(
    served: ServedGuard, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asked(CHUNKED, body=b"5\r\nhello\r\n").replace(KEY.encode(), b"wrong")
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(begun)
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        connection.sendall(b"no chunk\r\n")
        while connection.recv(65536):
            pass
    assert {record.name for record in caplog.records} == {"ilis_guard"}  # not asyncio, nor uvicorn


@pytest.mark.parametrize("size", [300_000, 3_000_000])
def test_a_response_arrives_although_its_request_is_still_being_sent(served: ServedGuard, size: int) -> None:
    """A connection that is closed with something unread is reset, and its client may lose the response."""
    for request in (
        asked(b"content-length: %d" % size, body=b" " * size).replace(KEY.encode(), b"wrong"),
        asked(b"content-length: 1", CHUNKED, body=b" " * size),
    ):
        assert statuses(answered(served, request)) in ([401], [400])


# Addresses.


@pytest.mark.parametrize("path", ["/v1/models/", "/healthz/", "//evil.example/..", "/static", "/v1", "/v1//models"])
@pytest.mark.parametrize(
    "headers",
    [b"host: evil.example", b"host: evil.example\r\nx-forwarded-host: evil.example\r\nx-forwarded-proto: https"],
)
def test_no_redirect_follows_the_host(served: ServedGuard, path: str, headers: bytes) -> None:
    request = b"GET %s HTTP/1.1\r\n%s\r\nauthorization: Bearer %s\r\nconnection: close\r\n\r\n"
    response = answered(served, request % (path.encode(), headers, KEY.encode()))
    assert statuses(response) == [404]
    assert b"evil.example" not in response
    assert b"\r\nlocation:" not in response.lower()


def test_the_api_description_names_no_host(served: ServedGuard) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"
    response = answered(served, request)
    assert statuses(response) == [200]
    assert b"evil.example" not in response
