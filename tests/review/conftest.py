from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ilis_guard.review import ReviewQueue
from ilis_guard.types import Ticket
from tests.reviewing import Clock, put

if TYPE_CHECKING:
    from tests.endpoint import Endpoint
    from tests.postgresql import Server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a queue is or can be: every test that uses one runs on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queue/tickets.db"
    server: Server = request.getfixturevalue("postgresql")
    return server.new_queue()


@pytest.fixture
def review(url: str) -> Iterator[ReviewQueue]:
    with ReviewQueue(url) as queue:
        yield queue


@pytest.fixture
def timed(url: str, clock: Clock) -> Iterator[ReviewQueue]:
    """A queue that takes the time from `clock`."""
    with ReviewQueue(url, clock=clock) as queue:
        yield queue


@pytest.fixture
def escalate(review: ReviewQueue) -> Callable[..., Ticket]:
    """As `put`, into `review`."""
    return lambda decision, **changes: put(review, decision, **changes)


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Endpoint]":
    """An https server on this machine that hears webhooks; whoever trusts this process's authorities trusts it."""
    from tests.endpoint import listening

    with listening(tmp_path) as heard:
        monkeypatch.setenv("SSL_CERT_FILE", str(heard.authority))
        yield heard


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """The URL of a queue that isn't there yet, for what SQLite alone is tested for."""
    return f"sqlite:///{tmp_path}/tickets.db"
