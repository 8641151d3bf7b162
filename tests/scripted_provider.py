"""A provider over real HTTP that answers as scripted: any body or stream, an error, or a connection that breaks."""

import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeAlias

Breakage = Literal["never replies", "resets", "closes without a reply", "closes in the middle of a reply"]
Scripted: TypeAlias = dict[str, Any] | Sequence[dict[str, Any]] | int | Breakage
"""The body of a reply, the events of a stream, the status of an error, or what happens to the connection."""


class ScriptedProvider:
    """Answers every request alike until it is told otherwise."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.script: Scripted = 500
        self.requests = 0
        """How many came."""
        self.closed = threading.Event()

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Of a `ChatOpenAI` that asks here."""
        return {"model": "clerk", "base_url": f"{self.url}/v1", "api_key": "k", "max_retries": 0} | changes


def completion(text: str = "Oslo", finish_reason: Any = "stop", **changes: Any) -> dict[str, Any]:
    """A reply as of OpenAI's chat completions."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": finish_reason,
        "logprobs": {"content": [{"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": []}], "refusal": None},
    }
    usage = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "clerk", "choices": [choice]}
    return whole | {"usage": usage} | changes


def chunks(*texts: str, finish_reason: str | None = "stop") -> list[dict[str, Any]]:
    """A reply as OpenAI streams it; None for a stream that just ends."""
    deltas: list[tuple[dict[str, Any], str | None]] = [({"content": text}, None) for text in texts]
    if finish_reason is not None:
        deltas.append(({}, finish_reason))
    shared = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "clerk"}
    return [
        shared | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}
        for delta, reason in deltas
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    serving: ScriptedProvider

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.serving.requests += 1
        script = self.serving.script
        self.close_connection = True
        if isinstance(script, str):
            self._break(script)
        elif isinstance(script, int):
            self._send(script, json.dumps({"error": {"message": "no"}}), "application/json")
        elif isinstance(script, dict):
            self._send(200, json.dumps(script), "application/json")
        else:
            lines = [*map(json.dumps, script), "[DONE]"]
            self._send(200, "".join(f"data: {line}\n\n" for line in lines), "text/event-stream")

    def _send(self, status: int, text: str, kind: str, *, missing: int = 0) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) + missing))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _break(self, how: str) -> None:
        if how == "never replies":
            self.serving.closed.wait(30)
        elif how == "resets":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif how == "closes in the middle of a reply":
            self._send(200, '{"id"', "application/json", missing=100)

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""


@contextmanager
def scripted_provider(script: Scripted = 500) -> Iterator[ScriptedProvider]:
    """A provider that serves as long as this lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    serving = ScriptedProvider(f"http://127.0.0.1:{server.server_port}")
    serving.script = script
    server.RequestHandlerClass = type("Handler", (_Handler,), {"serving": serving})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield serving
    finally:
        serving.closed.set()
        server.shutdown()
        thread.join()
        server.server_close()
