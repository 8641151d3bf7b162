"""Concurrency and crashes: threads, processes, and processes that are killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from structlog.testing import capture_logs

from ilis_guard.errors import TicketResolvedError
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Ticket, Verdict

THREADS = 20
PRELUDE = """
import os, signal, sys
from sqlalchemy import Engine, event
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Attempt, Request, Verdict

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def escalate(queue, decision):
    attempts = [Attempt(tier="small", text="x" * 100_000)]
    return queue.escalate(
        decision=decision, request=Request.of("?"), attempts=attempts, queue="q", policy="p", rule="r"
    )

url, name = sys.argv[1:]
"""


def _start(script: str, url: str, name: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), url, name],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _dies_of(script: str, url: str) -> str:
    """What the script wrote before it was killed."""
    child = _start(script, url)
    written, _ = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    return written


def _all_at_once(calls: list[Callable[[], Ticket]]) -> list[Ticket | TicketResolvedError]:
    start = Barrier(len(calls))

    def call(this: Callable[[], Ticket]) -> Ticket | TicketResolvedError:
        start.wait()
        try:
            return this()
        except TicketResolvedError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


def _is_sound(url: str) -> bool:
    """Whether the file is whole; a PostgreSQL server, which nobody killed, sees to that itself."""
    if not url.startswith("sqlite"):
        return True
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",))


def test_threads_that_escalate_different_decisions_get_a_ticket_each(
    review: ReviewQueue, escalate: Callable[..., Ticket]
) -> None:
    made = _all_at_once([partial(escalate, f"d{number}") for number in range(THREADS)])

    assert {ticket.id for ticket in made if isinstance(ticket, Ticket)} == {ticket.id for ticket in review.list()}
    assert len(review.list()) == THREADS


def test_threads_that_escalate_one_decision_share_its_ticket(
    review: ReviewQueue, escalate: Callable[..., Ticket]
) -> None:
    made = _all_at_once([partial(escalate, "d") for _ in range(THREADS)])

    assert review.list() * THREADS == made


def test_of_many_reviewers_one_wins(review: ReviewQueue, escalate: Callable[..., Ticket]) -> None:
    opened = escalate("d")
    texts = [f"answer {number}" for number in range(THREADS)]

    with capture_logs() as logged:
        results = _all_at_once([partial(review.resolve, opened.id, Verdict.CORRECT, text=text) for text in texts])

    (winner,) = [result for result in results if isinstance(result, Ticket)]
    assert winner.text == texts[results.index(winner)]
    assert review.list() == [winner]
    assert [event["event"] for event in logged] == ["ilis_guard.ticket.resolved"]


@pytest.mark.usefixtures("process")
def test_processes_share_a_queue_that_none_of_them_found_made(url: str) -> None:
    script = """
        with ReviewQueue(url) as queue:
            for number in range(10):
                escalate(queue, f"{name}-{number}")
                escalate(queue, f"shared-{number}")
            for ticket in queue.list(limit=1000):
                queue.resolve(ticket.id, Verdict.ACCEPT)
    """
    children = [_start(script, url, name=f"child{number}") for number in range(6)]
    for child in children:
        child.communicate(timeout=120)

    assert [child.returncode for child in children] == [0] * 6
    with ReviewQueue(url) as queue:
        assert len(queue.list(limit=1000)) == 10 + 6 * 10
    assert _is_sound(url)


@pytest.mark.usefixtures("process")
def test_a_forked_child_and_its_parent_both_write(
    review: ReviewQueue, escalate: Callable[..., Ticket], url: str
) -> None:
    before = escalate("before")
    child = os.fork()
    if child == 0:
        # Nothing of pytest may run in the child: it leaves by _exit, with 0 only where all went well.
        try:
            escalate("child")
            os._exit(0)
        finally:
            os._exit(1)
    after = escalate("parent")
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert len(review.list()) == 3
    assert {before.id, after.id} < {ticket.id for ticket in review.list()}
    assert _is_sound(url)


@pytest.mark.usefixtures("process")
def test_a_ticket_survives_a_kill_the_moment_escalate_returns(url: str) -> None:
    _dies_of("ticket = escalate(ReviewQueue(url), 'd'); die()", url)

    with ReviewQueue(url) as queue:
        (ticket,) = queue.list()
        assert queue.get(ticket.id).decision == "d"
    assert _is_sound(url)


@pytest.mark.usefixtures("process")
def test_a_verdict_survives_a_kill_the_moment_resolve_returns(url: str) -> None:
    script = """
        queue = ReviewQueue(url)
        queue.resolve(escalate(queue, "d").id, Verdict.CORRECT, text="y")
        die()
    """
    _dies_of(script, url)

    with ReviewQueue(url) as queue:
        (ticket,) = queue.list(state="resolved")
        assert (ticket.verdict, ticket.text) == (Verdict.CORRECT, "y")


@pytest.mark.usefixtures("process")
def test_a_kill_before_the_commit_leaves_no_half_ticket(url: str) -> None:
    script = """
        queue = ReviewQueue(url)
        escalate(queue, "kept")
        event.listen(Engine, "commit", lambda connection: (print("ticket written"), sys.stdout.flush(), die()))
        escalate(queue, "lost")
    """
    assert _dies_of(script, url) == "ticket written\n"

    with ReviewQueue(url) as queue:
        (kept,) = queue.list()
        assert queue.get(kept.id).decision == "kept"
        assert queue.resolve(kept.id, Verdict.REJECT).state == "resolved"
    assert _is_sound(url)


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param('event.listen(Engine, "commit", die)', id="before the tables are committed"),
        pytest.param("SQLite._configure = die", id="before the write-ahead log is switched on"),
    ],
)
def test_a_kill_while_the_queue_is_made_leaves_one_that_can_be_used(tmp_path: Path, moment: str) -> None:
    # PostgreSQL's tables are made by a migration: see test_review_migrations.
    url = f"sqlite:///{tmp_path}/tickets.db"
    _dies_of(f"from ilis_guard.review.sqlite import SQLite\n{moment}\nReviewQueue(url)", url)

    with ReviewQueue(url) as queue, queue.store.database.reading() as connection:
        assert queue.list() == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
