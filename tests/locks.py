"""Locks that keep a review queue's writers, or readers too, waiting; and a queue that says when one begins."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg

from ilis_guard.review import ReviewQueue
from ilis_guard.types import Ticket


@contextmanager
def locked(url: str, *, mode: str = "EXCLUSIVE") -> Iterator[None]:
    """Hold a lock that every writer of a queue waits for.

    Args:
        url: of the queue.
        mode: of PostgreSQL's LOCK TABLE; in the mode ACCESS EXCLUSIVE readers wait as well.
    """
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
        return
    with psycopg.connect(url) as server:
        server.execute(f"LOCK TABLE tickets, decisions IN {mode} MODE")
        yield
        server.rollback()


class WatchedQueue(ReviewQueue):
    """A queue that says when a ticket begins to be stored."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.began = threading.Semaphore(0)

    def escalate(self, **values: Any) -> Ticket:
        self.began.release()
        return super().escalate(**values)
