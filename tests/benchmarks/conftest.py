import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.neighbours.roster import Environment, Neighbour
from benchmarks.neighbours.rounds import Outcome
from benchmarks.neighbours.worker import Worker

Entered = Callable[[str], tuple[Outcome, Worker]]


@pytest.fixture
def made_up() -> Callable[[str], Neighbour]:
    def neighbour(name: str) -> Neighbour:
        environment = Environment(name=name, requirements=Path("none"))
        return Neighbour(name=name, title=name.upper(), environment=environment, worker=(), note="made up")

    return neighbour


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


@pytest.fixture
def start(log: Path) -> Iterator[Callable[[str], Worker]]:
    """Starts a real process of the fake worker; it's ended after the test."""
    with ExitStack() as workers:
        # As a module: a script would find its own folder first, and not the benchmarks.
        yield lambda behaviour: workers.enter_context(
            Worker([sys.executable, "-m", "tests.benchmarks.fake_worker", behaviour], log)
        )


@pytest.fixture
def enter(start: Callable[[str], Worker], made_up: Callable[[str], Neighbour], tmp_path: Path) -> Entered:
    """A neighbour that has loaded, and its worker; its answers have four tokens."""

    def entered(behaviour: str) -> tuple[Outcome, Worker]:
        worker = start(behaviour)
        return Outcome(neighbour=made_up(behaviour), about=worker.load(tmp_path, 4)), worker

    return entered
