"""A real server with few file descriptors, and more slow clients than it has: every escalation is stored."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ilis_guard.review import ReviewQueue
from tests.server.test_server_connections import DOCUMENT, HALF_A_BODY, HALF_A_HEAD

ROOT = Path(__file__).parents[2]
DESCRIPTORS = 128
SLOW = 300
GOOD = 30
POLICY = """
version: 1
name: everything
rules: [{id: person, do: escalate, to: support, say: A person will look at it.}]
"""
GUARD = """
version: 1
policy: policy.yaml
tiers: [{name: slow, remote: {chat_model: "tests.server.slow_chat:SlowChat"}}]
review: {storage: "sqlite:///tickets.db"}
"""

pytestmark = pytest.mark.usefixtures("process")


@contextmanager
def limited(folder: Path) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """`ilis-guard serve` with few file descriptors, once it takes requests, and its address."""
    (folder / "policy.yaml").write_text(POLICY)
    (folder / "guard.yaml").write_text(f"{GUARD}server: {{}}\n")
    program = str(Path(sys.executable).parent / "ilis-guard")
    command = [program, "serve", "--config", str(folder / "guard.yaml"), "--port", "0"]
    process = subprocess.Popen(
        ["sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "sh", *command],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"},
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            lines = []
            for line in process.stderr:  # warnings come first
                lines.append(line)
                if line.startswith("the guard answers at http://127.0.0.1:"):
                    port = int(line.strip().removesuffix("/v1").rpartition(":")[2])
                    yield process, ("127.0.0.1", port)
                    break
            else:
                raise AssertionError(f"the server didn't start: {lines}")
        finally:
            process.kill()
            process.wait()


def test_more_slow_clients_than_descriptors_lose_no_escalation(tmp_path: Path) -> None:
    body = json.dumps({"model": "ilis-guard", "messages": [{"role": "user", "content": "0"}]})
    kinds = [b"", HALF_A_HEAD, HALF_A_BODY, DOCUMENT, DOCUMENT * 50]
    promised = []
    with limited(tmp_path) as (process, address), ExitStack() as stack:
        slow = []
        for number in range(SLOW):
            slow.append(stack.enter_context(socket.create_connection(address, timeout=60)))
            slow[-1].sendall(kinds[number % len(kinds)])
            if number % (SLOW // GOOD) == 0:
                good = http.client.HTTPConnection(*address, timeout=60)
                good.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
                promised.append(json.load(good.getresponse())["ilis_guard"]["ticket"]["id"])
                good.close()
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < DESCRIPTORS
        closed = [connection for connection in slow[: SLOW - DESCRIPTORS] if is_closed(connection)]
        assert len(closed) == SLOW - DESCRIPTORS  # the first ones, in favour of those that came later
    with ReviewQueue(f"sqlite:///{tmp_path}/tickets.db") as queue:
        assert sorted(ticket.id for ticket in queue.list(limit=1000)) == sorted(promised)
    assert len(promised) == GOOD


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True
