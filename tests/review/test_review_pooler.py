"""A queue behind a pooler that hands out PostgreSQL's sessions by the transaction: whole flows, two clients at once."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ilis_guard.guard import Guard
from ilis_guard.review import ReviewQueue, migrate
from ilis_guard.review.relay import OutboxRelay
from ilis_guard.testing import fake_guard
from ilis_guard.types import Action, Verdict
from tests.endpoint import HOST, Endpoint
from tests.review.support import NEW, states, to
from tests.reviewing import put
from tests.skips import NO_PGBOUNCER, skip

if TYPE_CHECKING:
    from tests.postgresql import Server


@pytest.fixture(scope="module")
def port(postgresql: "Server") -> Iterator[int]:
    from tests.postgresql import pgbouncer, pooler

    program = pgbouncer()
    if program is None:
        skip(NO_PGBOUNCER)
    with pooler(program, postgresql) as port:
        yield port


@pytest.fixture
def url(port: int, postgresql: "Server") -> str:
    """The URL of a database with nothing in it, behind the pooler."""
    return postgresql.new_database().replace(f":{postgresql.port}/", f":{port}/")


@pytest.fixture
def two(url: str) -> Iterator[tuple[ReviewQueue, ReviewQueue]]:
    """Two clients of one queue, whose tables were created through the pooler, too."""
    assert migrate(url)[0] is None
    with ReviewQueue(url) as one, ReviewQueue(url) as other:
        yield one, other


def test_migrations_run_through_the_pooler(url: str) -> None:
    assert migrate(url)[0] is None
    before, after = migrate(url)
    assert before == after


def test_tickets_of_two_clients_are_claimed_and_resolved_once(two: tuple[ReviewQueue, ReviewQueue]) -> None:
    with ThreadPoolExecutor(8) as threads:
        # Often enough that a driver would prepare the statements.
        made = list(threads.map(lambda number: put(two[number % 2], f"d{number // 2}").id, range(80)))
        assert len(set(made)) == 40
        claimed = list(threads.map(lambda number: two[number % 2].claim_next(reviewer=f"r{number}"), range(40)))
        taken = {ticket.id: number for number, ticket in enumerate(claimed) if ticket is not None}
        assert set(taken) == set(made)
        assert two[0].claim_next(reviewer="late") is None

        def resolve(item: tuple[str, int]) -> str:
            id_, number = item
            return two[(number + 1) % 2].resolve(id_, Verdict.REJECT, reviewer=f"r{number}").state

        assert set(threads.map(resolve, taken.items())) == {"resolved"}
    (counts,) = two[0].counts()
    assert (counts.open, counts.claimed, counts.resolved) == (0, 0, 40)
    for id_ in set(made):
        assert [entry.type for entry in two[1].get(id_).history] == ["created", "claimed", "resolved"]


def test_reads_renewals_releases_and_sweeps_work(two: tuple[ReviewQueue, ReviewQueue]) -> None:
    for number in range(12):
        for review in two:
            ticket = put(review, f"d{number}-{id(review)}", due=0.000001)
            assert review.claim(ticket.id, reviewer="ana").claimed_by == "ana"
            assert review.renew(ticket.id, reviewer="ana").claimed_by == "ana"
            assert review.release(ticket.id, reviewer="ana").claimed_by == ""
            assert review.prompts([ticket.id])
            review.probe()
    assert two[0].sweep() == 24
    assert two[1].list(state="open") == []


def test_a_guard_escalates_once_for_each_id(url: str) -> None:
    migrate(url)
    with ReviewQueue(url) as review, fake_guard("clinical", {"small": 0.9}, review=review) as guard:
        decided = [guard.decide(f"Is it safe? {number}") for number in range(12)]
        assert {decision.action for decision in decided} == {Action.ESCALATE}
        assert len(review.list(limit=100)) == 12
        assert isinstance(guard, Guard)


async def test_webhooks_are_relayed_once(url: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", NEW)
    migrate(url)
    from ilis_guard.config.review import EndpointSettings

    settings = [EndpointSettings(**to(endpoint))]
    with ReviewQueue(url, endpoints=settings) as one, ReviewQueue(url, endpoints=settings) as other:
        for number in range(20):
            put(one, f"d{number}")
        await asyncio.gather(*(OutboxRelay(queue, internal_hosts=[HOST]).drain() for queue in (one, other)))
        assert states(one) == ["delivered"] * 20
    assert len({heard.id for heard in endpoint.heard}) == len(endpoint.heard) == 20


def test_retention_and_exports_read_with_cursors(two: tuple[ReviewQueue, ReviewQueue], tmp_path: Path) -> None:
    for number in range(10):
        two[number % 2].resolve(put(two[0], f"d{number}").id, Verdict.CORRECT, text="Oslo")
    rows: dict[str, Any] = {}
    assert two[0].export(tmp_path / "rows.jsonl", **rows) == 10
    assert two[1].redact(older_than=0) == 10
    assert two[0].purge(older_than=0, export_to=tmp_path / "all.jsonl") == 10
    assert two[1].counts() == []
