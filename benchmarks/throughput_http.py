"""Measure requests per second of OpenAI clients on `ilis-guard serve`, with and without guard.yaml's `batch`.

python -m benchmarks.throughput_http [--precision nf4] [--callers 8] [--each 3]

The server is a separate process with one torch thread, and runs in the mode `hold`. The clients are threads of this
process, each with its own connection. Every line is written to `benchmarks/results/throughput_http.csv`.
"""

import csv
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import httpx
import numpy as np
import typer
from openai import OpenAI

from benchmarks.common import machine, show
from benchmarks.throughput import POLICY, PRECISIONS, Driven, drive
from ilis_guard.lab.demo import QUESTIONS
from ilis_guard.types import Precision

RESULTS: Final = Path(__file__).parent / "results" / "throughput_http.csv"
CALLERS: Final = (1, 8)
BATCHES: Final = (1, 16)
START_SECONDS: Final = 120
COLUMNS: Final = (
    *("machine", "precision", "batch", "clients", "requests", "seconds"),
    *("requests_per_second", "median_seconds", "longest_seconds"),
)
GUARD: Final = """
version: 1
policy: policy.yaml
tiers:
  - name: small
    model: packaged:smollm2-135m-instruct
    precision: {precision}
    prompt: "{{question}} Answer in a few words only."
    max_new_tokens: 16
    bundle: packaged:smollm2-135m-instruct-{precision}
    batch: {batch}
server: {{max_concurrent: 64}}
"""


@contextmanager
def serving(precision: Precision, batch: int) -> Iterator[str]:
    """A server with this tier; its address, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "policy.yaml").write_text(POLICY, encoding="utf-8")
        config = Path(folder) / "guard.yaml"
        config.write_text(GUARD.format(precision=precision, batch=batch), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("ilis-guard")), "serve", "-c", str(config), "--port", str(port)]
        server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(server, address)
            yield address
        finally:
            server.terminate()
            server.wait()


def measure(address: str, clients: int, each: int) -> Driven:
    """Let so many clients ask, about so many requests each."""
    prompts = QUESTIONS * max(1, round(each * clients / len(QUESTIONS)))
    client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

    def ask(prompt: str) -> None:
        client.chat.completions.create(model="ilis-guard", messages=[{"role": "user", "content": prompt}])

    with client:
        return drive(ask, prompts, clients)


def main(
    precision: Annotated[list[str] | None, typer.Option(help="full, nf4; default both.")] = None,
    callers: Annotated[list[int] | None, typer.Option(min=1, help="Clients; default 1 and 8.")] = None,
    each: Annotated[int, typer.Option(min=1, help="About so many requests each client makes.")] = 3,
    to: Annotated[Path, typer.Option(help="The CSV file to write.")] = RESULTS,
) -> None:
    """Measure, print a table, and write the CSV."""
    found: list[tuple[Precision, int, int, Driven]] = []
    for chosen in PRECISIONS:
        if precision and chosen not in precision:
            continue
        for batch in BATCHES:
            with serving(chosen, batch) as address:
                measure(address, 8, 1)  # the first pass of a shape is slower
                found += [(chosen, batch, clients, measure(address, clients, each)) for clients in callers or CALLERS]
    one = {chosen: driven.per_second for chosen, batch, clients, driven in found if (batch, clients) == (1, 1)}
    show(
        f"requests over HTTP, SmolLM2, {machine()}, 1 thread",
        ("precision", "batch", "clients", "a second", "median, s", "longest, s", "to one"),
        [
            [
                *(chosen, str(batch), str(clients), f"{driven.per_second:.2f}"),
                *(f"{value:.2f}" for value in np.percentile(driven.latencies, (50, 100))),
                f"{driven.per_second / one[chosen]:.2f}" if chosen in one else "",
            ]
            for chosen, batch, clients, driven in found
        ],
    )
    _write(to, found)


def _wait(server: "subprocess.Popen[bytes]", address: str) -> None:
    given_up = time.monotonic() + START_SECONDS
    while time.monotonic() < given_up and server.poll() is None:
        try:
            if httpx.get(f"{address}/readyz", trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"the server wasn't ready after {START_SECONDS} s, or ended ({server.poll()!r})")


def _write(path: Path, found: Sequence[tuple[Precision, int, int, Driven]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for chosen, batch, clients, driven in found:
            numbers = (driven.seconds, driven.per_second, *np.percentile(driven.latencies, (50, 100)))
            table.writerow(
                [machine(), chosen, batch, clients, len(driven.latencies), *(f"{number:.3f}" for number in numbers)]
            )


if __name__ == "__main__":
    typer.run(main)
