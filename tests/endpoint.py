"""An endpoint of webhooks on this machine: a real https server, whose certificate a test's own authority signed."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

HOST = "127.0.0.1"
PATIENCE = 60.0
"""Seconds until a test gives up that waits for another process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Exchange(BaseHTTPRequestHandler):
    """Keeps what comes, and answers as the endpoint's `answer` says."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): text for name, text in self.headers.items()}
        self.server.endpoint.heard.append(Heard(path=self.path, headers=headers, body=body))
        self.server.endpoint.answer(self)

    def write(self, some: bytes) -> None:
        self.wfile.write(some)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        told = {"content-length": str(len(body))} | {name.replace("_", "-"): text for name, text in headers.items()}
        lines = "".join(f"{name}: {text}\r\n" for name, text in told.items())
        self.write(f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode("latin-1") + body)

    def end(self) -> None:
        """Close the connection after this."""
        self.close_connection = True

    def reset(self) -> None:
        """Break it, as a machine that crashes."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


Answer = Callable[[Exchange], None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, endpoint: "Endpoint", context: ssl.SSLContext) -> None:
        super().__init__((HOST, 0), Exchange)
        self.endpoint = endpoint
        self._context = context
        self.open: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        # Here, and not where connections are accepted: one client that is slow would keep out all others.
        with suppress(OSError), self._context.wrap_socket(request, server_side=True) as secure:
            self.open.add(secure)
            try:
                Exchange(secure, client_address, self)
            finally:
                self.open.discard(secure)

    def shutdown_request(self, request: Any) -> None:
        request.close()


class Endpoint:
    """What it heard, and how it answers."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(HOST, "hooks.test").configure_cert(context)
        self.heard: list[Heard] = []
        self.answer: Answer = answering(204)
        self.written = 0
        """Bytes of the endless answer."""
        self._is_over = threading.Event()
        self._server = _Server(self, context)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [heard.id for heard in self.heard]

    def await_heard(self, count: int) -> None:
        """Until so many requests came; for tests whose sender is another process."""
        end = time.monotonic() + PATIENCE
        while len(self.heard) < count:
            assert time.monotonic() < end, f"heard {len(self.heard)} of {count}"
            time.sleep(0.01)

    def stop(self) -> None:
        self._is_over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        end = time.monotonic() + PATIENCE
        while still_open := tuple(self._server.open):
            for connection in still_open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            assert time.monotonic() < end
            time.sleep(0.005)

    def hang(self, exchange: Exchange) -> None:
        """Say nothing until the test ends."""
        self._is_over.wait()
        exchange.end()

    def drip(self, exchange: Exchange) -> None:
        """Take the message, and then send a byte of the body now and again."""
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while not self._is_over.wait(0.05):
            exchange.write(b".")

    def drip_headers(self, exchange: Exchange) -> None:
        """Never come to the end of the headers."""
        exchange.write(b"HTTP/1.1 200 OK\r\n")
        while not self._is_over.wait(0.05):
            exchange.write(b"x-more: and more\r\n")

    def flood(self, exchange: Exchange) -> None:
        """Send without end."""
        exchange.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not self._is_over.is_set():
            exchange.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            self.written += 0x10000


def answering(*statuses: int, headers: dict[str, str] | None = None) -> Answer:
    """Answers with these statuses one after the other, and with the last one ever after."""
    remaining = list(statuses)

    def answer(exchange: Exchange) -> None:
        exchange.reply(remaining.pop(0) if len(remaining) > 1 else remaining[0], b"", **(headers or {}))

    return answer


@contextmanager
def listening(folder: Path) -> Iterator[Endpoint]:
    """An endpoint that is gone when the block ends."""
    endpoint = Endpoint(folder)
    try:
        yield endpoint
    finally:
        endpoint.stop()
