"""The reviewers' page in process, a real queue behind it, and three users who may sign in."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI

from ilis_guard import Guard, Policy, Tier
from ilis_guard.config.review import PageSettings, QueueSettings, ReviewerSettings
from ilis_guard.config.secrets import hash_token
from ilis_guard.review import ReviewQueue
from ilis_guard.scoring import TypicalMaps
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard.types import Generation, Score, Ticket
from ilis_guard_server import create_app
from tests.server.servers import in_process
from tests.server.website import SECRET, TOKENS, Clock, Site, lifelike


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "tickets.db"


@pytest.fixture
def review(database: Path, clock: Clock) -> Iterator[ReviewQueue]:
    queues = [QueueSettings(name="urgent", priority=10, due=600.0), QueueSettings(name="default", lease=900.0)]
    with ReviewQueue(f"sqlite:///{database}", queues=queues, clock=clock) as queue:
        yield queue


@pytest.fixture(scope="session")
def policy() -> Policy:
    return Policy.load("default")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> PageSettings:
    monkeypatch.setenv("VERDICT_SECRET", SECRET)
    return PageSettings(
        url="http://127.0.0.1:8000",
        reviewers=tuple(
            ReviewerSettings(name=name, role="viewer" if name == "vera" else "reviewer", token=hash_token(token))
            for name, token in TOKENS.items()
        ),
        verdict_secret="${VERDICT_SECRET}",
    )


Start = Callable[..., AbstractContextManager[Site]]


@pytest.fixture
def build(review: ReviewQueue, policy: Policy, clock: Clock) -> Callable[..., FastAPI]:
    """Builds an application with these settings."""
    typical_maps = {"large": TypicalMaps(right=_nats(lifelike(3)), wrong=_nats(1.6 * lifelike(4)))}

    def build_one(settings: PageSettings, **changes: Any) -> FastAPI:
        return create_app(settings, review=review, policy=policy, typical_maps=typical_maps, clock=clock, **changes)

    return build_one


@pytest.fixture
def start(build: Callable[..., FastAPI]) -> Start:
    """Starts a server with these settings."""

    @contextmanager
    def start_one(settings: PageSettings, **changes: Any) -> Iterator[Site]:
        with in_process(build(settings, **changes)) as connect:
            site = Site("http://127.0.0.1:8000", connect)
            try:
                yield site
            finally:
                site.close()

    return start_one


@pytest.fixture
def site(start: Start, settings: PageSettings) -> Iterator[Site]:
    with start(settings) as running:
        yield running


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What was logged, from all threads."""
    with structlog.testing.capture_logs() as events:
        yield events


Ask = Callable[..., Ticket]


@pytest.fixture
def ask(review: ReviewQueue, policy: Policy) -> Ask:
    """Asks a guard that is in two minds about everything, so that its real policy escalates."""

    def ask_one(question: str, answer: str = "2400 °C", *, uncertainty: float = 0.62, **labels: Any) -> Ticket:
        guard = Guard(
            tiers=[
                _tier("small", f"{answer}?", Score(uncertainty=0.71, typicality=0.31), seed=1),
                _tier("large", answer, Score(uncertainty=uncertainty, typicality=0.44), seed=2),
            ],
            policy=policy,
            review=review,
        )
        ticket = guard.decide(question, labels=labels).ticket
        assert ticket is not None
        return ticket

    return ask_one


def _nats(signature: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, signature.tolist()))


def _tier(name: str, answer: str, score: Score, *, seed: int) -> Tier:
    generation = Generation(
        text=answer,
        tokens=len(answer.split()),
        prompt_tokens=9,
        finish_reason="stop",
        seconds=0.2,
        signatures={"prompt": lifelike(seed), "mean": lifelike(seed + 10), "last": lifelike(seed + 20)},
    )
    return Tier(name=name, model=FakeModel([generation]), scorer=FixedScorer(score))
