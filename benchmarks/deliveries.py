"""Measure how fast a relay delivers pending webhooks to a local https endpoint, from SQLite and PostgreSQL.

python -m benchmarks.deliveries [--deliveries 10000] [--workers 1]
"""

import csv
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, event, func, select

from ilis_guard.config.review import EndpointSettings
from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import deliveries as table
from ilis_guard.types import Attempt, Request
from tests.endpoint import HOST, listening
from tests.postgresql import SETTINGS, binaries, server

RESULTS: Final = Path(__file__).parent / "results" / "deliveries.csv"
SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - the specification's example
HEADINGS: Final = ("database", "workers", "deliveries", "seconds", "deliveries/s", "lost", "duplicates", "commits")
DURABLE: Final = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
TARGET: Final = 200.0
"""Deliveries a second."""


def main(
    deliveries: Annotated[int, typer.Option(min=1)] = 10_000,
    workers: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Print a table, and write it to benchmarks/results/deliveries.csv."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows.append(measure("SQLite", f"sqlite:///{folder}/tickets.db", deliveries, workers, folder))
        programs = binaries()
        if programs is None:
            sys.stderr.write("no PostgreSQL here: only SQLite is measured\n")
        else:
            # As safe as in production: the tests' server, which never loses power, doesn't wait for the disk.
            with server(programs, SETTINGS | DURABLE) as running:
                rows.append(measure("PostgreSQL", running.new_queue(), deliveries, workers, folder))
    _show(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        csv.writer(file).writerows([HEADINGS, *rows])


def measure(database: str, url: str, count: int, workers: int, folder: Path) -> list[str]:
    """One row: so many pending deliveries, until the endpoint has heard them all."""
    with receiving(folder) as (port, authority, pipe):
        where = "${BENCHMARK_SECRET}"
        endpoint = EndpointSettings(name="local", url=f"https://{HOST}:{port}/", secret=where, per_second=10_000.0)
        os.environ |= {"SSL_CERT_FILE": authority, "BENCHMARK_SECRET": SECRET}
        fill(url, endpoint, count)
        context = multiprocessing.get_context("spawn")
        results: Any = context.Queue()
        started = time.perf_counter()
        running = [context.Process(target=drain, args=(url, endpoint, results)) for _ in range(workers)]
        for process in running:
            process.start()
        commits = sum(results.get() for _ in running)
        for process in running:
            process.join()
        seconds = time.perf_counter() - started
        pipe.send(None)
        heard: Counter[str] = Counter(pipe.recv())
    with ReviewQueue(url) as queue, queue.store.database.reading() as connection:
        delivered = connection.scalar(select(func.count()).where(table.c.state == "delivered"))
    if delivered != count or len(heard) != count:
        raise SystemExit(f"{database}: {count} pending, {delivered} delivered, {len(heard)} heard")
    duplicates = heard.total() - len(heard)
    rate = count / seconds
    return [
        database,
        str(workers),
        str(count),
        f"{seconds:.1f}",
        f"{rate:.0f}",
        str(count - len(heard)),
        str(duplicates),
        str(commits),
    ]


def fill(url: str, endpoint: EndpointSettings, count: int) -> None:
    """Tickets, each with a pending delivery: in large transactions, for this isn't what is measured."""
    with ReviewQueue(url, endpoints=[endpoint]) as queue:
        ticket = queue.escalate(
            decision="d",
            request=Request.of("What is the boiling point of gallium?"),
            attempts=[Attempt(tier="small", text="2400 °C", uncertainty=0.4, typicality=0.2)],
            queue="chemists",
            policy="sha256:abc",
            rule="unsure",
        )
        with queue.store.database.writing() as connection:
            row = connection.execute(select(table).where(table.c.ticket == ticket.id)).one()
            more = [{**row._mapping, "id": f"{number:032x}"} for number in range(1, count)]  # noqa: SLF001 - public
            connection.execute(table.insert(), more)


def drain(url: str, endpoint: EndpointSettings, results: Any) -> None:
    """A worker, in a process of its own; it tells how often it committed."""
    import asyncio

    from ilis_guard.review.relay import OutboxRelay

    commits = Counter[str]()
    event.listen(Engine, "commit", lambda _: commits.update(["commit"]))
    with ReviewQueue(url, endpoints=[endpoint]) as queue:
        asyncio.run(OutboxRelay(queue, internal_hosts=[HOST]).drain())
    results.put(commits["commit"])


@contextmanager
def receiving(folder: Path) -> Iterator[tuple[int, str, Connection]]:
    """An endpoint in a process of its own: its port, its authority, and a pipe that tells which ids it heard."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=receive, args=(folder, theirs))
    process.start()
    port, authority = ours.recv()
    try:
        yield port, authority, ours
    finally:
        process.join()


def receive(folder: Path, pipe: Connection) -> None:
    """Hear webhooks until asked which."""
    with listening(folder) as endpoint:
        pipe.send((endpoint.port, str(endpoint.authority)))
        pipe.recv()
        pipe.send(endpoint.ids)


def _show(rows: list[list[str]]) -> None:
    shown = Table(title=f"pending webhooks drained (target {TARGET:g}/s)", title_justify="left")
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
