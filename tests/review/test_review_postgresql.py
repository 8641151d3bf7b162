"""PostgreSQL alone: a server that goes away, passwords, other transactions' locks, forks."""

import signal
from collections.abc import Iterator
from contextlib import closing
from threading import Thread
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import event, text

from ilis_guard.errors import MissingDependencyError, ReviewError
from ilis_guard.guard import Guard
from ilis_guard.review import ReviewQueue, postgresql as postgresql_module
from ilis_guard.testing import fake_guard
from ilis_guard.types import Action, Request, Verdict
from tests.processes import die, ended, forked
from tests.reviewing import put

if TYPE_CHECKING:
    from tests.postgresql import Server


@pytest.fixture
def url(postgresql: "Server") -> str:
    """These tests are about PostgreSQL alone."""
    return postgresql.new_queue()


@pytest.fixture
def guard(review: ReviewQueue) -> Iterator[Guard]:
    """One that escalates."""
    with fake_guard("clinical", {"small": 0.9}, review=review) as made:
        yield made


def test_commits_are_durable_on_a_server_with_asynchronous_commits(review: ReviewQueue, postgresql: "Server") -> None:
    """The server's default is to commit before anything is on disk, and it writes only every 10 seconds."""
    with review.store.database.reading() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "off"
    with review.store.database.writing() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on"
    tickets = [put(review, f"d{number}") for number in range(20)]
    postgresql.stop(signal.SIGQUIT)
    postgresql.start()
    assert review.list() == tickets


def test_a_stronger_promise_of_the_servers_stays(review: ReviewQueue, url: str) -> None:
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = remote_apply")
    review.store.database.close()
    with review.store.database.writing() as connection_:
        assert connection_.execute(text("SHOW synchronous_commit")).scalar_one() == "remote_apply"


def test_a_server_that_is_down_turns_an_escalation_into_an_abstention(guard: Guard, postgresql: "Server") -> None:
    assert guard.decide("Is it safe?").action is Action.ESCALATE
    postgresql.stop()
    try:
        made = guard.decide("Is it safe?")
    finally:
        postgresql.start()
    assert made.action is Action.ABSTAIN
    assert made.ticket_error is not None
    assert made.ticket_error.kind == "QueueStorageError"
    assert "and that the server runs" in made.ticket_error.detail
    # The pool's connections died with the server.
    assert guard.decide("Is it safe?").action is Action.ESCALATE


def test_a_ticket_is_stored_once_by_a_server_that_restarts_in_the_middle(
    review: ReviewQueue, postgresql: "Server"
) -> None:
    kept = put(review, "kept")

    def restart(_: object) -> None:
        postgresql.stop(signal.SIGQUIT)
        postgresql.start()

    event.listen(review.store.database.engine, "commit", restart, once=True)
    again = put(review, "again")
    assert {ticket.id for ticket in review.list()} == {kept.id, again.id}
    assert [entry.type for entry in review.get(again.id).history] == ["created"]


@pytest.mark.usefixtures("process")
def test_a_client_that_was_killed_holds_no_lock(review: ReviewQueue, url: str) -> None:
    ticket = put(review, "d")

    def lock_and_die() -> None:
        with ReviewQueue(url) as queue, queue.store.database.writing() as connection:
            connection.execute(text("SELECT * FROM tickets FOR UPDATE"))
            die()

    assert ended(forked(lock_and_die)) == -signal.SIGKILL
    assert review.resolve(ticket.id, Verdict.ACCEPT).state == "resolved"


def test_a_lock_that_is_never_released_is_an_error_after_a_while(
    review: ReviewQueue, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = put(review, "d")
    short = postgresql_module._DURABLE.replace(f"'{postgresql_module.WAIT_SECONDS}s'", "'50ms'")
    monkeypatch.setattr(postgresql_module, "_DURABLE", short)
    with closing(psycopg.connect(url)) as hog:
        hog.execute("SELECT * FROM tickets FOR UPDATE")
        with pytest.raises(ReviewError, match="lock timeout; another transaction kept its lock"):
            review.resolve(ticket.id, Verdict.ACCEPT)
        # Whoever only looks, and whoever wants any ticket, doesn't wait.
        assert review.list() == [ticket]
        assert review.claim_next(reviewer="ada") is None
    assert review.resolve(ticket.id, Verdict.ACCEPT).state == "resolved"


@pytest.mark.usefixtures("process")
def test_a_queue_that_a_fork_shares_with_its_parent_works_in_both(review: ReviewQueue) -> None:
    put(review, "before")  # the pool holds a connection
    children = [forked(lambda number=number: put(review, f"child{number}")) for number in range(3)]  # type: ignore[misc]
    threads = [Thread(target=put, args=(review, f"parent{number}")) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ended(child) for child in children] == [0] * 3
    assert len(review.list()) == 7


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (":{port}/", ":1/", "Connection refused; check host, database, user and password"),
        ("ada@", "nobody:s3cret@", "role .nobody. does not exist"),
        ("/queue", "/nowhere", "database .nowhere[0-9]*. does not exist; check host, database"),
    ],
)
def test_an_unusable_server_is_reported_without_the_password(
    url: str, postgresql: "Server", old: str, new: str, words: str
) -> None:
    wrong = url.replace("ada@", "ada:s3cret@").replace("ada:s3cret@", new) if old == "ada@" else url
    wrong = wrong.replace("ada@", "ada:s3cret@").replace(old.format(port=postgresql.port), new)
    with pytest.raises(ReviewError, match=words) as caught:
        ReviewQueue(wrong)
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"


def test_a_row_that_is_refused_is_not_quoted(review: ReviewQueue) -> None:
    """The server itself does quote it, in the detail of its error."""
    with pytest.raises(ReviewError, match=r"null value in column .policy.") as caught:
        put(review, "d", policy=None, request=Request.of("secret"), say="secret")
    assert "secret" in str(caught.value.__context__)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ilis-guard\[postgresql\]'"):
        ReviewQueue("postgresql://ada@localhost/queue")
