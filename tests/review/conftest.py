from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ilis_guard.review import ReviewQueue
from ilis_guard.types import Attempt, Request, Ticket

if TYPE_CHECKING:
    from tests.postgresql import Server
    from tests.receiver import Receiver


class Clock:
    """A clock that goes where a test puts it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


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


def put(review: ReviewQueue, decision: str, **changes: Any) -> Ticket:
    """Escalate a plain request, of which a test changes what it is about."""
    plain: dict[str, Any] = {
        "request": Request.of("What is the boiling point of gallium?"),
        "attempts": [Attempt(tier="small", text="2400 °C", uncertainty=0.4, shift=0.2)],
        "queue": "chemists",
        "policy": "sha256:abc",
        "rule": "unsure",
        "reasons": ["uncertainty 0.40 is above 0.25"],
    }
    return review.escalate(decision=decision, **plain | changes)


@pytest.fixture
def escalate(review: ReviewQueue) -> Callable[..., Ticket]:
    """As `put`, into `review`."""
    return lambda decision, **changes: put(review, decision, **changes)


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Receiver]":
    """An https server on this machine that hears webhooks; whoever trusts this process's authorities trusts it."""
    from tests.receiver import listening

    with listening(tmp_path) as heard:
        monkeypatch.setenv("SSL_CERT_FILE", str(heard.authority))
        yield heard
