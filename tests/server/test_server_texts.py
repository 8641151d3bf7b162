"""A real provider sends what no encoding can express: the client gets a decision, and its retries make no tickets."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from ilis_guard.models.remote import RemoteModel
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FixedScorer
from tests.server.servers import KEY, guard_of, serve_on_socket

ASKED: Any = {"model": "ilis-guard", "messages": [{"role": "user", "content": "person?"}]}
WRITTEN: Final = r"Trondheim \ud800 \u0000 perhaps"
"""As the provider writes it in its JSON."""
KEPT: Final = "Trondheim \ufffd \0 perhaps"


@contextmanager
def provider(*, status: int = 200) -> Iterator[str]:
    """A provider of a chat model, and its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "m",
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "TEXT"}}
                    ],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
                }
                if status == 200
                else {"error": {"message": "TEXT", "type": "TEXT", "param": None, "code": "TEXT"}}
            ).replace("TEXT", WRITTEN)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(params=["sqlite", "postgresql"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReviewQueue]:
    url = f"sqlite:///{tmp_path}/tickets.db"
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgresql").new_queue())
    with ReviewQueue(url) as one:
        yield one


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("status", [200, 400, 500], ids=str)
def test_a_half_character_of_a_providers_is_one_decision_and_one_ticket(
    queue: ReviewQueue, status: int, is_stream: bool
) -> None:
    with provider(status=status) as url:
        chat = ChatOpenAI(model="m", base_url=url, api_key=SecretStr("x"), max_retries=0)
        guard = guard_of({"small": (RemoteModel(chat), FixedScorer(0.6))}, queue)
        # OpenAI's client with its own retries.
        with (
            serve_on_socket(guard) as served,
            openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client,
        ):
            done: Any = client.chat.completions.create(**ASKED, stream=is_stream)
            told = list(done)[-1].ilis_guard if is_stream else done.ilis_guard
            with served.http() as http:
                whole = http.post("/v1/decisions", json={"messages": ASKED["messages"]}).json()
    assert told["action"] == whole["action"] == "escalate"
    assert len(queue.list()) == 2
    assert queue.get(told["ticket"]["id"]).proposed == (KEPT if status == 200 else None)
    assert whole["attempts"][0]["text"] == (KEPT if status == 200 else "")
