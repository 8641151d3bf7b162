"""Kill -9 during any change leaves all of it or nothing; repeating it ends as if nothing had happened."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import select

from ilis_guard.config.review import EndpointSettings, QueueSettings
from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import deliveries
from ilis_guard.types import Verdict
from tests.processes import die_after_commit, die_after_write, die_before_commit, ended, forked
from tests.reviewing import Clock, put

pytestmark = pytest.mark.usefixtures("process")

QUEUES: Final = [QueueSettings(name="escalating", due=60.0, overdue="seniors"), QueueSettings(name="ending", due=60.0)]
ENDPOINTS: Final = [
    EndpointSettings(name="all", url="https://all.example"),
    EndpointSettings(name="verdicts", url="https://verdicts.example", events=("ticket.resolved",)),
]
HEARD_AS: Final = {
    "created": "ticket.created",
    "claimed": "ticket.claimed",
    "moved": "ticket.overdue",
    "expired": "ticket.overdue",
    "resolved": "ticket.resolved",
}
MOMENTS: Final[dict[str, Callable[[], None]]] = {
    "after the first write": partial(die_after_write, 1),
    "after the second write": partial(die_after_write, 2),
    "after the third write": partial(die_after_write, 3),
    "before the commit": die_before_commit,
    "after the commit": die_after_commit,
}
STEPS: Final[dict[str, Callable[[ReviewQueue, str], Any]]] = {
    "escalate": lambda queue, _: put(queue, "new"),
    "claim": lambda queue, ticket: queue.claim(ticket, reviewer="ada"),
    "claim the next": lambda queue, _: queue.claim_next(reviewer="ada", queue="chemists"),
    "release": lambda queue, ticket: queue.release(ticket, reviewer="bob"),
    "resolve": lambda queue, ticket: queue.resolve(ticket, Verdict.CORRECT, text="2403 °C", reviewer="bob"),
    "expire": lambda queue, _: queue.sweep(),
    "move": lambda queue, _: queue.sweep(),
    "redact": lambda queue, _: queue.redact(older_than=0),
    "purge": lambda queue, _: queue.purge(older_than=0),
}
QUEUE_OF: Final = {"expire": "ending", "move": "escalating"}
ENDS_AS: Final = {
    "claim": ("claimed", "chemists", ["created", "claimed"]),
    "claim the next": ("claimed", "chemists", ["created", "claimed"]),
    "release": ("open", "chemists", ["created", "claimed", "released"]),
    "resolve": ("resolved", "chemists", ["created", "resolved"]),
    "expire": ("expired", "ending", ["created", "expired"]),
    "move": ("open", "seniors", ["created", "moved"]),
    "redact": ("resolved", "chemists", ["created", "resolved", "redacted"]),
}


def opened(url: str, clock: Callable[[], float] = time.time) -> ReviewQueue:
    return ReviewQueue(url, queues=QUEUES, endpoints=ENDPOINTS, clock=clock)


def check_whole(queue: ReviewQueue) -> None:
    """See that each ticket, its history and what endpoints are to hear tell the same story."""
    with queue.store.database.reading() as connection:
        told = Counter((row.ticket, row.endpoint, row.event) for row in connection.execute(select(deliveries)))
    expected: Counter[tuple[str, str, str]] = Counter()
    for ticket in queue.list(limit=10_000):
        record = queue.get(ticket.id)
        assert [entry.version for entry in record.history] == [*range(1, ticket.version + 1)]
        happened = [entry.type for entry in record.history]
        assert happened[0] == "created"
        assert ("resolved" in happened) == (ticket.state == "resolved")
        assert ("expired" in happened) == (ticket.state == "expired")
        expected.update((ticket.id, "all", HEARD_AS[what]) for what in happened if what in HEARD_AS)
        expected.update((ticket.id, "verdicts", "ticket.resolved") for what in happened if what == "resolved")
    assert told == expected


def _ready_for(step: str, url: str, clock: Clock) -> str:
    """The id of a ticket that the step can be taken with."""
    with opened(url, clock) as queue:
        ticket = put(queue, "old", queue=QUEUE_OF.get(step, "chemists")).id
        if step == "release":
            queue.claim(ticket, reviewer="bob")
        if step in ("redact", "purge"):
            queue.resolve(ticket, Verdict.ACCEPT)
        if step == "purge":  # nobody is to hear of it any more
            with queue.store.database.writing() as connection:
                connection.execute(deliveries.update().values(state="delivered"))
        if step in QUEUE_OF:
            clock.now += 60
    return ticket


@pytest.mark.parametrize(
    ("step", "moment"),
    [
        (step, moment)
        for step in STEPS
        for moment in MOMENTS
        # Nobody hears of these: they write into two tables only.
        if step not in ("release", "redact") or moment != "after the third write"
    ],
)
def test_a_killed_step_is_taken_wholly_or_not_at_all(url: str, clock: Clock, step: str, moment: str) -> None:
    ticket = _ready_for(step, url, clock)

    def take_and_die() -> None:
        with opened(url, clock) as queue:
            MOMENTS[moment]()
            STEPS[step](queue, ticket)

    assert ended(forked(take_and_die)) == -signal.SIGKILL
    with opened(url, clock) as queue:
        check_whole(queue)
        STEPS[step](queue, ticket)
        check_whole(queue)
        if step == "purge":
            assert queue.list() == []
        elif step == "escalate":
            assert sorted(queue.get(found.id).decision for found in queue.list()) == ["new", "old"]
        else:
            record = queue.get(ticket)
            state, where, happened = ENDS_AS[step]
            assert (record.ticket.state, record.ticket.queue) == (state, where)
            assert [entry.type for entry in record.history] == happened


def test_confirmed_changes_survive_a_kill_at_any_time(url: str, tmp_path: Path) -> None:
    """Workers that do everything all the time are killed at random; what they were told had happened, has."""
    when = random.Random(7)
    for round_ in range(8):
        told = tmp_path / f"told{round_}"

        def work(told: Path = told, round_: int = round_) -> None:
            with opened(url) as queue, told.open("w", buffering=1) as file:
                for number in range(10_000):
                    ticket = put(queue, f"{round_}-{number}")
                    file.write(f"{ticket.id} open\n")
                    queue.claim(ticket.id, reviewer="ada")
                    file.write(f"{ticket.id} claimed\n")
                    queue.resolve(ticket.id, Verdict.ACCEPT, reviewer="ada")
                    file.write(f"{ticket.id} resolved\n")

        child = forked(work)
        while not told.exists() or not told.stat().st_size:
            time.sleep(0.005)
        time.sleep(when.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        with opened(url) as queue:
            order = ["open", "claimed", "resolved"]
            lines = [line.split() for line in told.read_text().splitlines()]
            for id_, state in [line for line in lines if len(line) == 2]:
                assert order.index(queue.get(id_).ticket.state) >= order.index(state)
            check_whole(queue)
