"""SQLite alone: durability, locks, and errors."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from sqlalchemy import event

from ilis_guard.errors import ReviewError
from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import REVISION_TABLE
from ilis_guard.types import Attempt, Ticket


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "queue" / "tickets.db"


@pytest.fixture
def url(database: Path) -> str:
    """These tests are about SQLite alone."""
    return f"sqlite:///{database}"


def test_every_connection_has_a_write_ahead_log_and_syncs_every_commit(review: ReviewQueue) -> None:
    seen = []
    for use in (review.store.database.reading, review.store.database.writing, review.store.database.reading):
        with use() as connection:
            seen.append(
                tuple(
                    connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                    for name in ("journal_mode", "synchronous", "busy_timeout")
                )
            )
    assert seen == [("wal", 2, 30_000)] * 3


def test_a_write_holds_the_lock_from_its_start(review: ReviewQueue, database: Path) -> None:
    with review.store.database.writing(), closing(sqlite3.connect(database, timeout=0)) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT count(*) FROM tickets").fetchone() == (0,)


@pytest.mark.parametrize("busy_with", ["SELECT count(*) FROM tickets", "DELETE FROM tickets"])
def test_the_write_ahead_log_waits_for_other_connections(url: str, database: Path, busy_with: str) -> None:
    ReviewQueue(url).close()
    with closing(sqlite3.connect(database, check_same_thread=False, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = DELETE")  # as a process killed while it made the queue leaves it
        other.execute("BEGIN")
        other.execute(busy_with).fetchone()
        done = Timer(0.3, other.rollback)
        done.start()
        with ReviewQueue(url) as queue, queue.store.database.reading() as connection:
            assert not done.is_alive()
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"


def test_the_folder_is_created_and_a_relative_path_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ReviewQueue("sqlite:///var/lib/tickets.db") as queue:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        assert queue.list() == []
    assert (tmp_path / "var/lib/tickets.db").is_file()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql+pymysql://ada:s3cret@db/tickets", "'mysql.pymysql': this version knows SQLite and PostgreSQL"),
        ("postgresql+asyncpg://ada:s3cret@db/tickets", "knows SQLite and PostgreSQL"),
        ("sqlite+aiosqlite:///tickets.db", "knows SQLite and PostgreSQL"),
        ("sqlite://ada:s3cret@host/tickets.db", "host, a user, a password"),
        ("sqlite://folder/tickets.db", "three slashes"),
        ("sqlite:///tickets.db?password=s3cret", "options"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("ada:s3cret@nonsense", "can't be read"),
        ("postgresql://ada:s3cret@db:s3cret/x", "can't be read"),
        ("", "can't be read"),
    ],
)
def test_an_unusable_url_is_refused_without_showing_a_password(url: str, message: str) -> None:
    with pytest.raises(ReviewError, match=message) as caught:
        ReviewQueue(url)
    assert "sqlite:///path/tickets.db" in str(caught.value)
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReviewError, match=r"can't be made.*file.*may write to"):
        ReviewQueue(f"sqlite:///{tmp_path}/file/tickets.db")


def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ReviewError, match="unable to open database file; check that the path is a file"):
        ReviewQueue(f"sqlite:///{tmp_path}")


def test_a_file_that_is_no_database_is_named_and_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "diary.txt"
    file.write_text("Dear diary, " * 1000)
    with pytest.raises(ReviewError, match=f"{file}.*not a database; .*path of its own"):
        ReviewQueue("sqlite:///diary.txt")
    assert file.read_text() == "Dear diary, " * 1000


@pytest.mark.parametrize(
    "made_by", ["CREATE TABLE cookies (id)", "PRAGMA user_version = 1", "PRAGMA application_id = 7"]
)
def test_another_programs_database_is_unchanged(tmp_path: Path, made_by: str) -> None:
    file = tmp_path / "cookies.db"
    with closing(sqlite3.connect(file)) as theirs:
        theirs.execute(made_by)
        theirs.commit()
    before = file.read_bytes()
    with pytest.raises(ReviewError, match=r"cookies\.db.*belongs to another program"):
        ReviewQueue(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_a_later_revision_is_refused(url: str, database: Path) -> None:
    ReviewQueue(url).close()
    with closing(sqlite3.connect(database)) as later:
        later.execute(f"UPDATE {REVISION_TABLE} SET version_num = '9999'")
        later.commit()
    with pytest.raises(ReviewError, match=r"revision 9999, and this version of ilis_guard uses .*install the version"):
        ReviewQueue(url)


def test_a_database_that_was_damaged_meanwhile(
    review: ReviewQueue, escalate: Callable[..., Ticket], database: Path
) -> None:
    ticket = escalate("d")
    with closing(sqlite3.connect(database)) as vandal:
        vandal.execute("""UPDATE tickets SET attempts = '[{"text": "half'""")
        vandal.commit()
    with pytest.raises(ReviewError, match=r"tickets\.db"):
        review.get(ticket.id)

    database.write_bytes(b"scribble" * 4096)
    with pytest.raises(ReviewError, match="not a database"):
        review.list()


def test_a_lock_that_is_never_released_is_an_error_after_a_while(
    review: ReviewQueue, escalate: Callable[..., Ticket], database: Path
) -> None:
    _with_pragma(review, "busy_timeout = 50")
    with closing(sqlite3.connect(database)) as hog:
        hog.execute("BEGIN IMMEDIATE")
        with pytest.raises(ReviewError, match="database is locked; another process"):
            escalate("d")
        assert review.list() == []
    assert escalate("d").state == "open"


def test_a_full_disk_leaves_no_half_ticket(
    review: ReviewQueue, escalate: Callable[..., Ticket], database: Path
) -> None:
    kept = escalate("d1")
    with closing(sqlite3.connect(database)) as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    _with_pragma(review, f"max_page_count = {pages}")

    with pytest.raises(ReviewError, match="full; free some disk space"):
        escalate("d2", attempts=[Attempt(tier="small", text="x" * 1_000_000)])

    assert review.list() == [kept]
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    _with_pragma(review, "max_page_count = 1000000")
    assert escalate("d2").state == "open"


def _with_pragma(review: ReviewQueue, pragma: str) -> None:
    """Every connection from now on runs under this PRAGMA."""
    event.listen(review.store.database.engine, "connect", lambda connection, _: connection.execute(f"PRAGMA {pragma}"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Files are everybody's unless whoever makes them says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_nobody_else_may_read_the_tickets(database: Path, url: str) -> None:
    with ReviewQueue(url) as queue, queue.store.database.reading():
        modes = {file.name: file.stat().st_mode & 0o777 for file in database.parent.iterdir()}
    assert modes == {"tickets.db": 0o600, "tickets.db-wal": 0o600, "tickets.db-shm": 0o600}
    assert database.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("open_umask")
def test_a_file_that_is_deleted_meanwhile_is_nobody_elses_when_it_is_made_anew(
    review: ReviewQueue, escalate: Callable[..., Ticket], database: Path, url: str
) -> None:
    escalate("d1")
    for file in database.parent.iterdir():
        file.unlink()
    for use in (review.list, lambda: escalate("d2")):
        with pytest.raises(ReviewError, match=r"no such table.*deleted or replaced while it was in use; restore it"):
            use()
    assert {file.stat().st_mode & 0o777 for file in database.parent.iterdir()} == {0o600}
    with ReviewQueue(url) as restarted, restarted.store.database.writing():
        assert {file.stat().st_mode & 0o777 for file in database.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["100% déjà?#&=x.db", "a b;c.db"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    quoted = name.replace("%", "%25").replace("?", "%3F")
    with ReviewQueue(f"sqlite:///{tmp_path}/{quoted}") as queue:
        assert queue.list() == []
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(("-wal", "-shm"))] == [name]


def test_tickets_are_counted_without_reading_their_signatures(
    review: ReviewQueue, escalate: Callable[..., Ticket]
) -> None:
    """The reviewers' page counts every few seconds, and a ticket may be a megabyte."""
    escalate("d")
    asked = []

    def note(_connection: Any, _cursor: Any, text: str, values: Any, *_: Any) -> None:
        asked.append((text, values))

    event.listen(review.store.database.engine, "before_cursor_execute", note)
    assert review.counts()[0].open == 1
    ((text, values),) = [one for one in asked if "GROUP BY" in one[0]]
    with review.store.database.reading() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
    assert ["USING COVERING INDEX" in step.detail for step in plan] == [True]
