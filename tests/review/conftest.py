from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.review import ReviewQueue
from ilis_guard.types import Attempt, Request, Ticket


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "queue" / "tickets.db"


@pytest.fixture
def url(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def review(url: str) -> Iterator[ReviewQueue]:
    with ReviewQueue(url) as queue:
        yield queue


@pytest.fixture
def escalate(review: ReviewQueue) -> Callable[..., Ticket]:
    """Escalates a plain request, of which a test changes what it is about."""

    def escalate_one(decision: str, **changes: Any) -> Ticket:
        plain: dict[str, Any] = {
            "request": Request.of("What is the boiling point of gallium?"),
            "attempts": [Attempt(tier="small", text="2400 °C", uncertainty=0.4, shift=0.2)],
            "queue": "chemists",
            "policy": "sha256:abc",
            "rule": "unsure",
            "reasons": ["uncertainty 0.40 is above 0.25"],
        }
        return review.escalate(decision=decision, **plain | changes)

    return escalate_one
