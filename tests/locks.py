"""Locks that keep a review queue's writers, or readers too, waiting."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg


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
