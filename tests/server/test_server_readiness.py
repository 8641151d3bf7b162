"""Readiness of the queue's database: a probe writes, however many ask."""

import asyncio
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import event

from ilis_guard.review import ReviewQueue
from ilis_guard_server.dependencies import QueueProbe
from tests.server.servers import ServedGuard, serve, shop, until

if TYPE_CHECKING:
    from tests.postgresql import Server


def is_ready(served: ServedGuard) -> bool:
    with served.http(key=None) as client:
        response = client.get("/readyz")
    assert (response.status_code == 200) == response.json()["queue"]
    return response.json()["queue"] is True


def test_a_sqlite_file_that_can_only_be_read_is_not_ready(review: ReviewQueue) -> None:
    mode = ["ON"]
    engine = review.store.database.engine
    event.listen(engine, "connect", lambda connection, _: connection.execute(f"PRAGMA query_only = {mode[0]}"))
    with serve(shop(review), review=review) as served:
        assert review.list() == []  # it can be read
        assert not is_ready(served)
        mode[0] = "OFF"
        until(lambda: is_ready(served))


def test_a_postgresql_server_that_can_only_be_read_is_not_ready(postgresql: "Server") -> None:
    url = postgresql.new_queue()
    name = url.rpartition("/")[2]

    def alter(setting: str) -> None:
        """Change what sessions that begin from now on may do, and end the others, as a failover does."""
        postgresql.execute(f"ALTER DATABASE {name} {setting}")
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
        postgresql.execute(f"{others} '{name}'")

    with ReviewQueue(url) as review, serve(shop(review), review=review) as served:
        assert is_ready(served)
        alter("SET default_transaction_read_only = on")
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM tickets").fetchone() == (0,)
        until(lambda: not is_ready(served))
        alter("RESET default_transaction_read_only")
        until(lambda: is_ready(served))


async def test_many_who_ask_share_a_probe(review: ReviewQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    probes: list[None] = []

    def probe() -> None:
        probes.append(None)
        assert go_on.wait(20)

    monkeypatch.setattr(review, "probe", probe)
    monkeypatch.setattr("ilis_guard_server.dependencies.PROBE_SECONDS", 0.0)
    asked = QueueProbe(review)
    waiting = [asyncio.ensure_future(asked.is_writable()) for _ in range(50)]
    await asyncio.sleep(0)
    waiting.pop().cancel()  # who leaves takes nothing from the others
    go_on.set()
    assert await asyncio.gather(*waiting) == [True] * 49
    assert len(probes) == 1
    assert await asked.is_writable()
    assert len(probes) == 2


async def test_a_fresh_answer_is_given_again(review: ReviewQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[None] = []
    monkeypatch.setattr(review, "probe", lambda: probes.append(None))
    monkeypatch.setattr("ilis_guard_server.dependencies.PROBE_SECONDS", 3600.0)
    asked = QueueProbe(review)
    assert [await asked.is_writable() for _ in range(50)] == [True] * 50
    assert len(probes) == 1
