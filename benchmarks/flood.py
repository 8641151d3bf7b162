"""Measure how long escalations take while slow clients hold as many connections as they can get.

python -m benchmarks.flood [--sockets 1500] [--descriptors 1024] [--requests 300]

The server is `ilis-guard serve` in a process with few file descriptors; every request is escalated into a SQLite
queue. The slow clients are another process: in turn, they drip a head, drip a body, keep a connection open, read
nothing of what they asked for, or send nothing, and connect again a second after they were closed. Good requests come
one after the other, each on a connection of its own. Every line is written to `benchmarks/results/flood.csv`.
"""

import csv
import http.client
import itertools
import json
import multiprocessing
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from benchmarks.common import machine, show
from ilis_guard.review import ReviewQueue

RESULTS: Final = Path(__file__).parent / "results" / "flood.csv"
START_SECONDS: Final = 120
TURNS: Final = 20
"""A second."""
COLUMNS: Final = (*("machine", "descriptors", "slow_sockets", "requests"), *("p50_ms", "p95_ms", "max_ms", "tickets"))
POLICY: Final = """
version: 1
name: everything
rules: [{id: person, do: escalate, to: support, say: A person will look at it.}]
"""
GUARD: Final = """
version: 1
policy: policy.yaml
tiers:
  - name: small
    remote: {chat_model: "langchain_core.language_models:FakeListChatModel", arguments: {responses: [Oslo]}}
review: {storage: "sqlite:///tickets.db"}
server: {}
"""
HEAD: Final = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
KINDS: Final = {
    "half a head": (HEAD, True),
    "half a body": (HEAD + b'content-length: 10000\r\n\r\n{"model": ', True),
    "keep-alive": (b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", False),
    "reads nothing": (b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 50, False),
    "nothing": (b"", False),
}
"""What slow clients send, and whether they then go on, byte by byte."""


@dataclass(slots=True, kw_only=True)
class SlowClients:
    """Sockets that keep a server waiting."""

    address: tuple[str, int]
    number: int
    open: dict[int, socket.socket] = field(default_factory=dict)
    closed_at: dict[int, float] = field(default_factory=dict)

    def run(self, are_open: "multiprocessing.synchronize.Event") -> None:
        """Keep all of them open, for ever."""
        selector = selectors.DefaultSelector()
        drips = [sends_on for _, sends_on in KINDS.values()]
        for index in range(self.number):
            self._connect(selector, index)
        are_open.set()
        for turn in itertools.count():
            # Each drips once a second, and none at the same time as all others.
            for index in range(turn % TURNS, self.number, TURNS):
                if drips[index % len(drips)] and index in self.open:
                    with suppress(OSError):
                        self.open[index].send(b"x")
            ends_at = time.monotonic() + 1 / TURNS
            while (left := ends_at - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    self._read(selector, key.data)
            for index, at in list(self.closed_at.items()):
                if time.monotonic() - at >= 1:
                    self._connect(selector, index)

    def _connect(self, selector: selectors.BaseSelector, index: int) -> None:
        self.closed_at.pop(index, None)
        sent, _ = list(KINDS.values())[index % len(KINDS)]
        try:
            one = socket.create_connection(self.address, timeout=5)
            one.setblocking(False)
            one.send(sent) if sent else None
        except OSError:
            self.closed_at[index] = time.monotonic()
            return
        self.open[index] = one
        # Of those that read nothing, only the end is noticed.
        reads = list(KINDS)[index % len(KINDS)] != "reads nothing"
        if reads:
            selector.register(one, selectors.EVENT_READ, index)

    def _read(self, selector: selectors.BaseSelector, index: int) -> None:
        one = self.open[index]
        try:
            if one.recv(65536):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        selector.unregister(one)
        one.close()
        del self.open[index]
        self.closed_at[index] = time.monotonic()


def flood(address: tuple[str, int], number: int, are_open: "multiprocessing.synchronize.Event") -> None:
    """Be so many slow clients."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, number + 256), most))
    SlowClients(address=address, number=number).run(are_open)


@contextmanager
def serving(folder: Path, descriptors: int) -> Iterator[tuple[str, int]]:
    """A server with so many file descriptors; its address, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ("127.0.0.1", int(free.getsockname()[1]))
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
    (folder / "guard.yaml").write_text(GUARD, encoding="utf-8")
    program = str(Path(sys.executable).with_name("ilis-guard"))
    command = [program, "serve", "-c", str(folder / "guard.yaml"), "--port", str(address[1])]
    limited = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *command]
    server = subprocess.Popen(limited, stderr=subprocess.DEVNULL)
    try:
        _wait(server, address)
        yield address
    finally:
        server.terminate()
        server.wait()


@contextmanager
def flooding(address: tuple[str, int], number: int) -> Iterator[None]:
    """Slow clients, once they have all connected."""
    processes = multiprocessing.get_context("fork")
    are_open = processes.Event()
    slow = processes.Process(target=flood, args=(address, number, are_open), daemon=True)
    slow.start()
    try:
        if not are_open.wait(START_SECONDS):
            raise SystemExit("the slow clients couldn't connect")
        yield
    finally:
        slow.kill()
        slow.join()


def measure(address: tuple[str, int], requests: int) -> list[float]:
    """Seconds that each of so many requests takes; each must end with a ticket."""
    found = []
    body = json.dumps({"model": "ilis-guard", "messages": [{"role": "user", "content": "Is it safe?"}]})
    for _ in range(requests):
        started = time.monotonic()
        client = http.client.HTTPConnection(*address, timeout=60)
        client.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        decision = json.load(client.getresponse())
        client.close()
        found.append(time.monotonic() - started)
        if decision["ilis_guard"]["ticket"] is None:
            raise SystemExit(f"an escalation was lost: {decision['ilis_guard']['ticket_error']}")
    return found


def main(
    sockets: Annotated[int, typer.Option(min=1, help="Slow clients.")] = 1500,
    descriptors: Annotated[int, typer.Option(min=64, help="The server's file descriptors.")] = 1024,
    requests: Annotated[int, typer.Option(min=1, help="Good requests in each of the two measurements.")] = 300,
    to: Annotated[Path, typer.Option(help="The CSV file to write.")] = RESULTS,
) -> None:
    """Measure, print a table, and write the CSV."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder, descriptors) as address:
            measure(address, 20)
            quiet = measure(address, requests)
            with flooding(address, sockets):
                flooded = measure(address, requests)
        with ReviewQueue(f"sqlite:///{folder}/tickets.db") as queue:
            stored = sum(each.open for each in queue.counts()) - 20
    rows = [(0, quiet), (sockets, flooded)]
    figures = [(number, *(np.percentile(found, (50, 95, 100)) * 1000)) for number, found in rows]
    show(
        f"escalations, {machine()}, {descriptors} file descriptors",
        ("slow sockets", "p50, ms", "p95, ms", "longest, ms", "to quiet"),
        [
            [str(number), *(f"{value:.1f}" for value in values), f"{values[0] / figures[0][1]:.2f}"]
            for number, *values in figures
        ],
    )
    typer.echo(f"{2 * requests} escalations were promised, {stored} are stored: {2 * requests - stored} lost")
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for number, *values in figures:
            table.writerow([machine(), descriptors, number, requests, *(f"{value:.2f}" for value in values), stored])


def _wait(server: "subprocess.Popen[bytes]", address: tuple[str, int]) -> None:
    given_up = time.monotonic() + START_SECONDS
    while time.monotonic() < given_up and server.poll() is None:
        with suppress(OSError):
            client = http.client.HTTPConnection(*address, timeout=5)
            client.request("GET", "/readyz")
            if client.getresponse().status == http.client.OK:
                return
        time.sleep(0.2)
    raise SystemExit(f"the server wasn't ready after {START_SECONDS} s, or ended ({server.poll()!r})")


if __name__ == "__main__":
    typer.run(main)
