"""Faults of the relay: kills, databases that fail, full disks, clocks that go back."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from ilis_guard.config.review import EndpointSettings
from ilis_guard.review import ReviewQueue, migrate
from ilis_guard.review.outbox import LEASE_SECONDS
from ilis_guard.review.relay import CONCURRENCY
from tests.endpoint import Endpoint, Exchange, answering
from tests.review.support import OLD, relay, rows, states, to, until
from tests.reviewing import Clock, put

PRELUDE = """
import asyncio, os, signal, sys, time
from sqlalchemy import Engine, event
from ilis_guard.config.review import EndpointSettings
from ilis_guard.review import ReviewQueue
from ilis_guard.review.outbox import Outbox
from ilis_guard.review.relay import OutboxRelay
from ilis_guard.review.transport import WebhookTransport

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

commits = 0

def die_at(number):
    def count(_):
        global commits
        commits += 1
        if commits == number:
            die()
    event.listen(Engine, "commit", count)

send, relay_batch = WebhookTransport.send, Outbox.relay_batch
url, hook, late = sys.argv[1:]
told = {"name": "crm", "url": hook, "secret": "${HOOK_SECRET}", "events": ("ticket.created",)}
endpoint = EndpointSettings(**told, per_second=10_000.0)
queue = ReviewQueue(url, endpoints=[endpoint], clock=lambda: time.time() + float(late))
outbox_relay = OutboxRelay(queue, internal_hosts=["127.0.0.1"])

async def run_until_sigterm():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await outbox_relay.run(stop)
"""

DIE_AFTER_THE_ANSWER = """
async def send_and_die(*arguments, **options):
    await send(*arguments, **options)
    die()
WebhookTransport.send = send_and_die
"""
DIE_WITH_THE_ANSWER_UNREAD = """
from httpcore._async.http11 import AsyncHTTP11Connection
AsyncHTTP11Connection._receive_response_headers = die
"""
DIE_AFTER_THE_OUTCOME = """
def relay_batch_and_die(*arguments, **options):
    batch = relay_batch(*arguments, **options)
    if batch.settled:
        die()
    return batch
Outbox.relay_batch = relay_batch_and_die
"""


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", OLD)


@pytest.fixture
def waiting(url: str, endpoint: Endpoint) -> Callable[[int], None]:
    """Fills an outbox, and leaves nothing open."""

    def fill(count: int) -> None:
        with _queue(url, endpoint) as queue:
            for number in range(count):
                put(queue, f"d{number}")

    return fill


def _queue(url: str, endpoint: Endpoint, *, late: float = 0.0) -> ReviewQueue:
    """The queue as the processes of this module see it, by a clock that is so many seconds ahead."""
    crm = EndpointSettings(**to(endpoint, events=("ticket.created",)))
    return ReviewQueue(url, endpoints=[crm], clock=lambda: time.time() + late)


@contextmanager
def _process(script: str, url: str, endpoint: Endpoint, *, late: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), url, endpoint.url, str(late)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def _dies_of(script: str, url: str, endpoint: Endpoint) -> None:
    with _process(script + "\nasyncio.run(outbox_relay.drain())", url, endpoint) as child:
        child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    ("moment", "has_sent"),
    [
        pytest.param("die_at(1)", False, id="before the lease is committed"),
        pytest.param("WebhookTransport.send = die", False, id="before anything is sent"),
        pytest.param(DIE_WITH_THE_ANSWER_UNREAD, True, id="when it is sent and the answer unread"),
        pytest.param(DIE_AFTER_THE_ANSWER, True, id="when the answer is read and not written down"),
        pytest.param("die_at(2)", True, id="before the outcome is committed"),
        pytest.param(DIE_AFTER_THE_OUTCOME, True, id="after the outcome is committed"),
    ],
)
async def test_a_killed_relay_loses_nothing_and_makes_no_new_id(
    waiting: Callable[[int], None], url: str, endpoint: Endpoint, moment: str, has_sent: bool
) -> None:
    waiting(5)
    await asyncio.to_thread(_dies_of, moment, url, endpoint)
    if has_sent:
        await asyncio.to_thread(endpoint.await_heard, 1)
    before = list(endpoint.ids)
    with _queue(url, endpoint, late=LEASE_SECONDS + 1) as queue:
        ids = {row.id for row in rows(queue)}
        await relay(queue).drain()
        assert states(queue) == ["delivered"] * 5

    assert bool(before) == has_sent
    assert set(endpoint.ids) == ids
    assert len(ids) == 5
    assert max(Counter(endpoint.ids).values()) <= 2, "what may have been taken is sent once more, under its id"


@pytest.mark.usefixtures("process")
async def test_the_lease_of_a_killed_relay_lasts_until_its_end(
    waiting: Callable[[int], None], url: str, endpoint: Endpoint
) -> None:
    waiting(1)
    await asyncio.to_thread(_dies_of, "WebhookTransport.send = die", url, endpoint)
    with _queue(url, endpoint) as queue:
        await relay(queue).drain()
        assert states(queue) == ["pending"]
    assert endpoint.heard == []


@pytest.mark.usefixtures("process")
async def test_relays_killed_repeatedly_deliver_everything_in_the_end(
    waiting: Callable[[int], None], url: str, endpoint: Endpoint
) -> None:
    waiting(150)
    kills = 4
    for number in range(kills):
        late = number * (LEASE_SECONDS + 1)
        with _process("asyncio.run(run_until_sigterm())", url, endpoint, late=late) as child:
            await asyncio.to_thread(endpoint.await_heard, len(endpoint.heard) + 20)
            child.send_signal(signal.SIGKILL)
    with _queue(url, endpoint, late=kills * (LEASE_SECONDS + 1)) as queue:
        await relay(queue).drain()
        assert states(queue) == ["delivered"] * 150
        ids = {row.id for row in rows(queue)}

    assert set(endpoint.ids) == ids
    assert len(endpoint.ids) - len(ids) <= kills * 2 * CONCURRENCY, "only what was in hand is sent twice"


def _breaks_off(exchange: Exchange) -> None:
    exchange.write(b"HTTP/1.1 2")
    exchange.end()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Exchange.reset, id="resets"),
        pytest.param(_breaks_off, id="breaks off"),
        pytest.param(answering(302, headers={"location": "https://127.0.0.1/"}), id="redirects"),
        pytest.param(answering(500), id="fails"),
        pytest.param(None, id="hangs"),
    ],
)
async def test_an_endpoint_that_was_broken_gets_the_message_later(
    url: str,
    clock: Clock,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[Exchange], None] | None,
) -> None:
    monkeypatch.setattr("ilis_guard.review.transport.TRY_SECONDS", 1.0)
    endpoint.answer = endpoint.hang if answer is None else answer
    crm = EndpointSettings(**to(endpoint))
    with ReviewQueue(url, endpoints=[crm], clock=clock) as queue:
        put(queue, "d")
        await relay(queue).drain()
        (row,) = rows(queue)
        assert (row.state, row.tries) == ("pending", 1)
        endpoint.answer = answering(200)
        clock.now = row.next_try_at
        await relay(queue).drain()
        assert states(queue) == ["delivered"]
    assert endpoint.ids == [row.id] * 2


@pytest.mark.parametrize("way", ["flood", "drip"])
async def test_an_endless_response_counts_as_delivered(
    waiting: Callable[[int], None], url: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("ilis_guard.review.transport._BODY_SECONDS", 0.2)
    endpoint.answer = getattr(endpoint, way)
    waiting(3)
    with _queue(url, endpoint) as queue:
        await relay(queue).drain()
        assert states(queue) == ["delivered"] * 3
    assert len(endpoint.heard) == 3


async def test_a_database_that_is_restarted_is_waited_for(endpoint: Endpoint) -> None:
    from tests.postgresql import binaries, server
    from tests.skips import NO_POSTGRESQL, skip

    programs = binaries()
    if programs is None:
        skip(NO_POSTGRESQL)
    with server(programs) as running:
        url = running.new_database("restarted")
        migrate(url)
        with _queue(url, endpoint) as queue:
            for number in range(50):
                put(queue, f"d{number}")
            gone = asyncio.Event()
            loop = asyncio.get_running_loop()

            def answer_when_gone(exchange: Exchange) -> None:
                asyncio.run_coroutine_threadsafe(gone.wait(), loop).result()
                exchange.reply(200)

            endpoint.answer = answer_when_gone
            stop = asyncio.Event()
            with capture_logs() as logged:
                working = asyncio.create_task(relay(queue).run(stop))
                await until(lambda: len(endpoint.heard) == CONCURRENCY)
                await asyncio.to_thread(running.stop, signal.SIGQUIT)
                gone.set()
                await until(lambda: any(entry["event"] == "ilis_guard.relay.delayed" for entry in logged))
                await asyncio.to_thread(running.start)
                await until(lambda: states(queue) == ["delivered"] * 50)
                stop.set()
                await working

            assert len(endpoint.heard) == 50, "the worker remembered what had been taken when the database went"
            assert {row.id for row in rows(queue)} == set(endpoint.ids)


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_disk_that_is_full_loses_nothing(sqlite: str, endpoint: Endpoint, is_killed: bool) -> None:
    with _queue(sqlite, endpoint) as queue:
        put(queue, "d")
        (row,) = rows(queue)
    script = "asyncio.run(run_until_sigterm())"
    with _process(script, sqlite, endpoint) as child:

        def fill_disk(exchange: Exchange) -> None:
            # From now on no file of the worker's grows, nor takes a byte: what it learns it can't write down.
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            exchange.reply(200)

        endpoint.answer = fill_disk
        assert child.stdout is not None
        line = await asyncio.to_thread(child.stdout.readline)
        assert "ilis_guard.relay.delayed" in line
        assert "check the disk" in line
        if is_killed:
            child.kill()
        else:
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with _queue(sqlite, endpoint) as queue:
                await until(lambda: states(queue) == ["delivered"])
            child.terminate()
            await asyncio.to_thread(child.wait, 60)
            assert child.returncode == 0
    endpoint.answer = answering(200)
    with _queue(sqlite, endpoint, late=LEASE_SECONDS + 1) as queue:
        await relay(queue).drain()
        assert states(queue) == ["delivered"]
    assert endpoint.ids == [row.id] * (2 if is_killed else 1)


async def test_a_clock_that_goes_back_delays_deliveries_and_loses_none(
    url: str, clock: Clock, endpoint: Endpoint
) -> None:
    crm = EndpointSettings(**to(endpoint, per_second=0.5))
    with ReviewQueue(url, endpoints=[crm], clock=clock) as queue:
        put(queue, "before")
        await relay(queue).drain()
        put(queue, "just before")
        start = clock.now
        clock.now -= 3600
        put(queue, "after")
        await relay(queue).drain()
        assert sorted(states(queue)) == ["delivered", "delivered", "pending"], "its rate doesn't wait for an hour"
        clock.now = start
        await relay(queue).drain()
        assert states(queue) == ["delivered"] * 3
    assert len(set(endpoint.ids)) == 3


@pytest.mark.parametrize("first", ["nothing", "retry", "hold", "lease"])
async def test_deliveries_postponed_by_a_clock_far_ahead_are_sent(
    url: str, clock: Clock, endpoint: Endpoint, first: str
) -> None:
    month = 30 * 86_400
    with ReviewQueue(url, endpoints=[EndpointSettings(**to(endpoint))], clock=clock) as queue:
        clock.now += month
        put(queue, "d")
        if first == "lease":
            queue.store.outbox.relay_batch("other", tries=(), unsent=(), capacity={"crm": 10})
        elif first != "nothing":
            endpoint.answer = answering(503, headers={"retry-after": "60"} if first == "hold" else {})
            await relay(queue).drain()
        clock.now -= month
        endpoint.answer = answering(204)
        await relay(queue).drain()
        assert states(queue) == ["delivered"]

        # And what it is asked to wait for now holds.
        endpoint.answer = answering(503, headers={"retry-after": "60"})
        put(queue, "e")
        await relay(queue).drain()
        put(queue, "f")
        await relay(queue).drain()
        assert len(endpoint.heard) == {"nothing": 2, "lease": 2}.get(first, 3)


async def test_a_lease_holds_when_the_clock_goes_back(url: str, clock: Clock, endpoint: Endpoint) -> None:
    crm = EndpointSettings(**to(endpoint))
    with ReviewQueue(url, endpoints=[crm], clock=clock) as queue:
        put(queue, "d")

        def leased() -> Any:
            return queue.store.outbox.relay_batch("other", tries=(), unsent=(), capacity={"crm": 10}).leased

        assert len(leased()) == 1
        clock.now += LEASE_SECONDS - 1
        assert leased() == ()
        clock.now -= 3600
        assert leased() == ()
        clock.now += 3601
        assert len(leased()) == 1
