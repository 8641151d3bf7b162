"""The transport: allowed addresses, time limits, and limits on the response."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from email.utils import formatdate
from functools import partial
from typing import Any

import httpx
import pytest

from ilis_guard.errors import ConfigError
from ilis_guard.review import transport
from ilis_guard.review.outbox import SendResult
from ilis_guard.review.transport import WebhookTransport
from tests.endpoint import HOST, Answer as Answering, Endpoint, Exchange, answering

NOW = 1_800_000_000.0
PUBLIC = "93.184.215.14"


@pytest.fixture
async def sender(endpoint: Endpoint) -> AsyncIterator[WebhookTransport]:  # noqa: ARG001 - whom it trusts
    async with WebhookTransport([HOST]) as inside:
        yield inside


@pytest.fixture
async def outside() -> AsyncIterator[WebhookTransport]:
    """What may go to no internal host."""
    async with WebhookTransport([]) as sender:
        yield sender


async def _send(sender: WebhookTransport, url: str, *, may_quote: bool = True) -> SendResult:
    return await sender.send(url, {"webhook-id": "d1"}, '{"what":"Ångström"}', now=NOW, may_quote=may_quote)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where connections were tried to: nothing outside this machine is asked in a test."""
    tried: list[tuple[str, int]] = []

    async def refuse(_: Any, host: str, port: int, **__: Any) -> Any:
        tried.append((host, port))
        raise httpx.ConnectError("refused by the test")

    monkeypatch.setattr("httpcore._backends.auto.AutoBackend.connect_tcp", refuse)
    return tried


def _resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name lead to these addresses; addresses lead where they always do."""
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is None or not name.rstrip(".").endswith(".test"):
            return real(host, port, *arguments, **options)
        family = {False: socket.AF_INET, True: socket.AF_INET6}
        return [(family[":" in address], socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


async def test_a_message_arrives_unchanged(sender: WebhookTransport, endpoint: Endpoint) -> None:
    answer = await _send(sender, endpoint.url)

    assert answer == SendResult(status=204)
    assert answer.is_delivered
    (heard,) = endpoint.heard
    assert (heard.path, heard.id, heard.body) == ("/hook", "d1", '{"what":"Ångström"}'.encode())
    assert heard.headers["content-type"] == "application/json"
    assert heard.headers["accept-encoding"] == "identity"
    assert heard.headers["user-agent"].startswith("ilis_guard/")


async def test_an_endpoint_with_an_untrusted_certificate_gets_nothing(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    async with WebhookTransport([HOST]) as sender:
        answer = await _send(sender, endpoint.url)

    assert answer.status is None
    assert "certificate verify failed" in answer.error
    assert endpoint.heard == []


async def test_a_certificate_for_another_host_is_refused(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    _resolving(monkeypatch, HOST)
    async with WebhookTransport(["other.test", "hooks.test"]) as sender:
        assert (await _send(sender, f"https://hooks.test:{endpoint.port}/")).is_delivered
        answer = await _send(sender, f"https://other.test:{endpoint.port}/")

    assert "certificate is not valid for 'other.test'" in answer.error
    assert len(endpoint.heard) == 1


async def test_proxies_of_the_environment_are_ignored(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with WebhookTransport([HOST]) as sender:
        assert (await _send(sender, endpoint.url)).is_delivered


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.8.9.10",
        "localhost",
        "localhost.",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "127.1",
        "127。0。0。1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
    ],
)
async def test_no_address_of_this_machine_is_reached(outside: WebhookTransport, endpoint: Endpoint, host: str) -> None:
    answer = await _send(outside, f"https://{host}:{endpoint.port}/")

    assert not answer.is_delivered
    assert answer.status is None
    assert endpoint.heard == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.0.0.7",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "224.0.0.1",
        "[fe80::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[fec0::1]",
        "[::10.0.0.7]",
        "[::ffff:0:10.0.0.7]",
        "[4000::1]",
        "[::ffff:10.0.0.7]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a00:7]",
        "[64:ff9b:1::a00:7]",
        "[2002:a00:7::1]",
        "[2001:0:a00:7::1]",
    ],
)
async def test_no_connection_is_made_to_an_address_that_is_not_public(
    outside: WebhookTransport, tries: list[tuple[str, int]], host: str
) -> None:
    answer = await _send(outside, f"https://{host}/")

    assert answer.error.startswith("SSRFProtectionError: access denied: IP address ")
    assert tries == []


async def test_a_public_address_is_connected_to(outside: WebhookTransport, tries: list[tuple[str, int]]) -> None:
    answer = await _send(outside, f"https://{PUBLIC}/")

    assert answer.error == "ConnectError: refused by the test"
    assert tries == [(PUBLIC, 443)]


async def test_a_name_that_leads_inside_is_refused(
    outside: WebhookTransport, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    _resolving(monkeypatch, HOST)
    answer = await _send(outside, f"https://hooks.test:{endpoint.port}/")

    assert answer.error == f"SSRFProtectionError: access denied: IP address '{HOST}' is not globally reachable"
    assert endpoint.heard == []


async def test_a_name_is_not_asked_again_between_the_check_and_the_connection(
    outside: WebhookTransport, tries: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: Any) -> str:
        return PUBLIC

    monkeypatch.setattr("httpx_secure._AddressPolicy._resolve", resolve)
    await _send(outside, "https://hooks.test/")

    assert tries == [(PUBLIC, 443)], "the address that was checked is the one that is connected to, not the name"


async def test_an_internal_host_is_named_exactly(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    _resolving(monkeypatch, HOST)
    async with WebhookTransport(["hooks.test"]) as sender:
        assert (await _send(sender, f"https://hooks.test:{endpoint.port}/")).is_delivered
        for other in (HOST, "a.hooks.test", "hooks.test."):
            assert "access denied" in (await _send(sender, f"https://{other}:{endpoint.port}/")).error
    assert len(endpoint.heard) == 1


@pytest.mark.parametrize("host", [HOST, "[::1]", "169.254.169.254", "hooks.test"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(
    sender: WebhookTransport, endpoint: Endpoint, status: int, host: str
) -> None:
    endpoint.answer = answering(status, headers={"location": f"https://{host}:{endpoint.port}/inside"})
    answer = await _send(sender, endpoint.url)

    assert (answer.status, answer.error) == (status, f"answered {status}, a redirect, which isn't followed")
    assert [heard.path for heard in endpoint.heard] == ["/hook"]


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.test/",
        "ftp://hooks.test/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "//hooks.test/",
        "hooks.test/s3cret",
        "https://",
        "https:///s3cret",
        "https://s3cret@hooks.test/",
        "https://ada:s3cret@hooks.test/",
        "https://hooks.test@127.0.0.1/",
        "https://hooks.test\\@127.0.0.1/",
        "https://hooks.test:s3cret/",
        "https://hooks\x00.test/",
        "https://0177.0.0.1/",
        "",
    ],
)
async def test_an_address_that_is_no_plain_https_is_refused_and_not_shown(outside: WebhookTransport, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await _send(outside, url)
    assert "s3cret" not in str(caught.value)
    assert "hooks.test" not in str(caught.value)


async def test_cookies_are_not_kept(sender: WebhookTransport, endpoint: Endpoint) -> None:
    endpoint.answer = answering(200, headers={"set-cookie": "session=1; Path=/"})
    await _send(sender, endpoint.url)
    await _send(sender, endpoint.url)

    assert "cookie" not in endpoint.heard[1].headers


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_status_counts_as_delivered(sender: WebhookTransport, endpoint: Endpoint, status: int) -> None:
    endpoint.answer = answering(status)
    assert (await _send(sender, endpoint.url)).is_delivered


@pytest.mark.parametrize("status", [304, 400, 401, 404, 410, 429, 500, 503, 599])
async def test_any_other_status_is_a_failure(sender: WebhookTransport, endpoint: Endpoint, status: int) -> None:
    endpoint.answer = answering(status)
    answer = await _send(sender, endpoint.url)
    assert (answer.status, answer.is_delivered) == (status, False)


async def test_an_error_quotes_a_response_in_printable_characters(sender: WebhookTransport, endpoint: Endpoint) -> None:
    endpoint.answer = lambda exchange: exchange.reply(400, b"no \x1b[2J<script>\r\n\xff" + b"x" * 1000)
    said = (await _send(sender, endpoint.url)).error

    assert said.startswith("answered 400: no \\x1b[2J<script>\\r\\n\N{REPLACEMENT CHARACTER}xxx")
    assert len(said) < 300
    assert (await _send(sender, endpoint.url, may_quote=False)).error == "answered 400"


async def test_a_compressed_response_is_not_unpacked(sender: WebhookTransport, endpoint: Endpoint) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    endpoint.answer = lambda exchange: exchange.reply(200, bomb, content_encoding="gzip")
    assert (await _send(sender, endpoint.url)).is_delivered


async def test_an_endless_response_is_not_read_to_the_end(sender: WebhookTransport, endpoint: Endpoint) -> None:
    endpoint.answer = endpoint.flood
    assert (await _send(sender, endpoint.url)).is_delivered
    # Buffers on the way hold some; a sender that read on would take gigabytes before its time is up.
    assert endpoint.written < 32 * 1024 * 1024


async def test_a_slow_response_body_counts_as_delivered(
    sender: WebhookTransport, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_BODY_SECONDS", 0.2)
    endpoint.answer = endpoint.drip
    assert await _send(sender, endpoint.url) == SendResult(status=200)


@pytest.mark.parametrize("way", ["hang", "drip_headers"])
async def test_a_response_without_a_status_times_out(
    sender: WebhookTransport, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(transport, "TRY_SECONDS", 0.3)
    endpoint.answer = getattr(endpoint, way)
    assert await _send(sender, endpoint.url) == SendResult(error="no answer within 0.3 s")


def _half(exchange: Exchange) -> None:
    exchange.write(b"HTTP/1.1 2")
    exchange.end()


def _nonsense(exchange: Exchange) -> None:
    exchange.write(b"\x16\x03\x01 what?\r\n\r\n")
    exchange.end()


def _huge_header(exchange: Exchange) -> None:
    exchange.reply(200, x_more="x" * 1_000_000)


@pytest.mark.parametrize("answer", [Exchange.reset, _half, _nonsense, _huge_header])
async def test_a_broken_response_is_a_failed_try(
    sender: WebhookTransport, endpoint: Endpoint, answer: Answering
) -> None:
    endpoint.answer = answer
    failed = await _send(sender, endpoint.url)

    assert (failed.status, failed.is_delivered) == (None, False)
    assert failed.error.split(":")[0] in {"ReadError", "RemoteProtocolError"}
    endpoint.answer = answering(200)
    assert (await _send(sender, endpoint.url)).is_delivered


async def test_an_endpoint_that_is_down_is_a_failed_try(sender: WebhookTransport) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))  # and nobody listens
        answer = await _send(sender, f"https://{HOST}:{taken.getsockname()[1]}/")
    assert answer.error.startswith("ConnectError: ")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Fri, 15 Jan 2027 08:01:00", 60.0),
        ("9" * 400, 86_400.0),
        (formatdate(NOW + 10**8, usegmt=True), 86_400.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("²", None),
        ("Fri, 99 Jan 2027 08:01:00 GMT", None),
    ],
)
async def test_retry_after_is_read_as_seconds_or_as_a_date(
    sender: WebhookTransport, endpoint: Endpoint, header: str, seconds: float | None
) -> None:
    endpoint.answer = lambda exchange: exchange.reply(503, retry_after=header.encode("utf-8").decode("latin-1"))
    assert (await _send(sender, endpoint.url)).retry_after == seconds


async def test_many_at_once_share_connections(sender: WebhookTransport, endpoint: Endpoint) -> None:
    for _ in range(3):
        answers = await asyncio.gather(*(_send(sender, endpoint.url) for _ in range(20)))
        assert all(answer.is_delivered for answer in answers)
    assert len(endpoint.heard) == 60


async def test_an_internal_host_may_speak_plain_http() -> None:
    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hear, HOST, 0)
    url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}/"
    async with server, WebhookTransport([HOST]) as inside, WebhookTransport([]) as outside:
        assert (await _send(inside, url)).is_delivered
        with pytest.raises(ConfigError, match="https://"):
            await partial(_send, outside)(url)
