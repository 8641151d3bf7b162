"""PostgreSQL servers that fail over to a standby while a queue has connections to the old primary."""

import time
from collections.abc import Iterator
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import Connection, select, text

from ilis_guard.errors import QueueStorageError
from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import probes
from ilis_guard.types import Verdict
from tests.reviewing import put
from tests.skips import NO_POSTGRESQL, skip

if TYPE_CHECKING:
    from tests.postgresql import Server


@pytest.fixture
def primary() -> "Iterator[Server]":
    """A server of this test's own, because it doesn't survive it as it was."""
    from tests.postgresql import SETTINGS, binaries, server

    programs = binaries()
    if programs is None:
        skip(NO_POSTGRESQL)
    with server(programs, SETTINGS) as running:
        yield running


def of_both(primary: "Server", standby: "Server", url: str) -> str:
    """The URL of a queue on whichever of the two is the primary, as libpq writes it."""
    return url.replace(f"127.0.0.1:{primary.port}", f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}")


def fill_pool(review: ReviewQueue) -> None:
    """Let the queue have several connections."""
    together = Barrier(4)

    def connect() -> None:
        with review.store.database.reading() as connection:
            connection.execute(text("SELECT 1"))
            together.wait()

    threads = [Thread(target=connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until_replayed(standby: "Server", primary: "Server") -> None:
    while not standby.has_replayed(primary):
        time.sleep(0.02)


def test_tickets_go_to_the_standby_that_is_promoted_when_the_primary_dies(primary: "Server") -> None:
    url = primary.new_queue()
    with primary.standby() as standby, ReviewQueue(of_both(primary, standby, url)) as review:
        before = [put(review, f"before{number}") for number in range(3)]
        fill_pool(review)
        until_replayed(standby, primary)
        primary.stop()
        promotion = Thread(target=standby.promote)
        promotion.start()
        # Those that come meanwhile wait for it.
        during = [put(review, f"during{number}") for number in range(3)]
        promotion.join()
        assert [put(review, f"during{number}").id for number in range(3)] == [ticket.id for ticket in during]
        claimed = review.claim(before[0].id, reviewer="ana")
        assert review.resolve(claimed.id, Verdict.REJECT, reviewer="ana").state == "resolved"
        assert {ticket.id for ticket in review.list(limit=100)} == {ticket.id for ticket in (*before, *during)}
        for ticket in during:
            assert [entry.type for entry in review.get(ticket.id).history] == ["created"]
        primary.start()


def test_connections_to_a_primary_that_became_read_only_are_dropped(primary: "Server") -> None:
    """It lives on, so no connection breaks: only a write shows that another server is the primary."""
    url = primary.new_queue()
    with primary.standby() as standby, ReviewQueue(of_both(primary, standby, url)) as review:
        fill_pool(review)
        until_replayed(standby, primary)
        primary.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        primary.execute("SELECT pg_reload_conf()")
        standby.promote()
        until_read_only(review)
        ticket = put(review, "d")
        assert review.list() == [ticket]
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM tickets").fetchone() == (0,)
        fill_pool(review)
        assert ports(review) == {standby.port}


def until_read_only(review: ReviewQueue) -> None:
    """Wait until the queue's connections have heard of the server's new settings."""
    while True:
        with review.store.database.engine.connect() as connection:
            if connection.execute(text("SHOW default_transaction_read_only")).scalar_one() == "on":
                return
        time.sleep(0.02)


def ports(review: ReviewQueue) -> set[int]:
    """The ports of the servers that the queue's connections lead to."""
    found = set()
    for _ in range(8):
        with review.store.database.reading() as connection:
            found.add(connection.execute(text("SELECT current_setting('port')::int")).scalar_one())
    return found


def test_a_primary_that_comes_back_as_a_standby_takes_no_ticket_until_it_is_promoted(primary: "Server") -> None:
    url = primary.new_queue()
    with ReviewQueue(url) as review:
        kept = put(review, "kept")
        fill_pool(review)
        primary.demote()
        with pytest.raises(QueueStorageError, match="read-only") as caught:
            put(review, "d")
        assert caught.value.may_pass
        with pytest.raises(QueueStorageError, match="read-only"):
            review.probe()
        primary.promote()
        review.probe()
        ticket = put(review, "d")
        assert {one.id for one in review.list()} == {kept.id, ticket.id}


def test_whoever_wants_any_session_may_read_and_is_told_that_it_can_not_write(primary: "Server") -> None:
    url = primary.new_queue()
    with ReviewQueue(url) as review:
        kept = put(review, "kept")
    primary.demote()
    with ReviewQueue(f"{url}?target_session_attrs=any") as review:
        assert review.list() == [kept]
        with pytest.raises(QueueStorageError, match="read-only; the server is a standby"):
            put(review, "d")


# A commit whose outcome is unknown.


@pytest.fixture
def url(postgresql: "Server") -> str:
    return postgresql.new_queue()


@pytest.fixture
def cut(review: ReviewQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks once, when the server has committed and the client doesn't know it."""
    dialect = review.store.database.engine.dialect
    commit, left = dialect.do_commit, [True]

    def commit_and_break(connection: Any) -> None:
        commit(connection)
        if left:
            left.clear()
            connection.dbapi_connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(dialect, "do_commit", commit_and_break)


@pytest.mark.usefixtures("cut")
def test_a_ticket_whose_commit_was_not_confirmed_is_found_again(review: ReviewQueue) -> None:
    ticket = put(review, "d")
    assert review.list() == [ticket]
    assert [entry.type for entry in review.get(ticket.id).history] == ["created"]


def test_no_second_ticket_is_claimed_after_a_claim_that_was_not_confirmed(
    review: ReviewQueue, request: pytest.FixtureRequest
) -> None:
    for number in range(3):
        put(review, f"d{number}")
    request.getfixturevalue("cut")
    with pytest.raises(QueueStorageError) as caught:
        review.claim_next(reviewer="ana")
    assert caught.value.may_be_stored
    assert len(review.list(claimed_by="ana")) == 1


def test_a_verdict_whose_commit_was_not_confirmed_counts_once(
    review: ReviewQueue, request: pytest.FixtureRequest
) -> None:
    ticket = put(review, "d")
    request.getfixturevalue("cut")
    assert review.resolve(ticket.id, Verdict.REJECT).state == "resolved"
    assert [entry.type for entry in review.get(ticket.id).history] == ["created", "resolved"]


# Probes.


def test_probes_write_and_never_grow(review: ReviewQueue) -> None:
    for _ in range(3):
        review.probe()
    with review.store.database.reading() as connection:
        assert connection.execute(select(probes)).all() == [(1, 3)]


def test_errors_of_lost_connections_empty_the_pool(review: ReviewQueue, url: str) -> None:
    fill_pool(review)
    before = backends(review)
    with psycopg.connect(url, autocommit=True) as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = "
        connection.execute(f"{others} current_database()")
    put(review, "d")
    assert not before & backends(review)


def backends(review: ReviewQueue) -> set[int]:
    """Server processes of the pool's connections."""

    def backend(connection: Connection) -> int:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    found = set()
    for _ in range(8):
        with review.store.database.reading() as connection:
            found.add(backend(connection))
    return found
