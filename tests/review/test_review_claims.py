"""Claims: one reviewer at most holds a ticket, for as long as the claim lasts."""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from structlog.testing import capture_logs

from ilis_guard.config.review import QueueSettings
from ilis_guard.errors import (
    ReviewError,
    TicketChangedError,
    TicketClaimedError,
    TicketConflictError,
    TicketExpiredError,
    TicketNotFoundError,
    TicketResolvedError,
)
from ilis_guard.review import ReviewQueue
from ilis_guard.types import Ticket, Verdict
from tests.processes import ended, forked
from tests.reviewing import Clock, put

CLAIMERS = 20
LEASE = 900.0


def test_a_claim_keeps_a_ticket_for_one_reviewer(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d")
    claimed = timed.claim(ticket.id[:6], reviewer="ada")

    assert (claimed.state, claimed.claimed_by, claimed.claimed_until) == ("claimed", "ada", clock.now + LEASE)
    assert claimed.version == ticket.version + 1
    assert timed.list(state="open") == []
    assert timed.list(state="claimed") == timed.list(claimed_by="ada") == [claimed]
    assert timed.list(claimed_by="bob") == []
    for change in (timed.claim, timed.renew, timed.release, partial(timed.resolve, verdict=Verdict.ACCEPT)):
        with pytest.raises(TicketClaimedError, match="claimed by 'ada'"):
            change(ticket.id, reviewer="bob")
    with pytest.raises(TicketClaimedError, match="claimed by 'ada'"):
        timed.resolve(ticket.id, Verdict.ACCEPT)
    assert timed.claim_next(reviewer="bob") is None
    assert timed.get(ticket.id).ticket == claimed


def test_a_claim_ends_by_itself(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d")
    timed.claim(ticket.id, reviewer="ada")
    clock.now += LEASE

    (open_again,) = timed.list(state="open")
    assert (open_again.state, open_again.claimed_by, open_again.claimed_until) == ("open", "", None)
    assert timed.list(claimed_by="ada") == []
    assert timed.claim(ticket.id, reviewer="bob").claimed_by == "bob"
    with pytest.raises(TicketClaimedError, match="claimed by 'bob'"):
        timed.resolve(ticket.id, Verdict.ACCEPT, reviewer="ada")


def test_a_claim_is_renewed_and_never_shortened(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d")
    claimed = timed.claim(ticket.id, reviewer="ada")
    clock.now += 600
    renewed = timed.renew(ticket.id, reviewer="ada")
    again = timed.claim(ticket.id, reviewer="ada", lease=1)

    assert renewed.claimed_until == again.claimed_until == clock.now + LEASE
    # Nothing changed that anybody has to know.
    assert claimed.version == renewed.version == again.version
    assert [entry.type for entry in timed.get(ticket.id).history] == ["created", "claimed"]


def test_a_claim_that_ran_out_is_renewed_unless_somebody_took_over(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d")
    timed.claim(ticket.id, reviewer="ada")
    clock.now += 2 * LEASE
    assert timed.renew(ticket.id, reviewer="ada").state == "claimed"
    clock.now += 2 * LEASE
    timed.claim(ticket.id, reviewer="bob")
    with pytest.raises(TicketClaimedError, match="claimed by 'bob', not by 'ada'"):
        timed.renew(ticket.id, reviewer="ada")


def test_a_released_ticket_can_be_claimed_by_anybody(timed: ReviewQueue) -> None:
    ticket = put(timed, "d")
    timed.claim(ticket.id, reviewer="ada")
    released = timed.release(ticket.id, reviewer="ada")

    assert (released.state, released.claimed_by, released.version) == ("open", "", 3)
    assert timed.release(ticket.id, reviewer="ada") == released
    with pytest.raises(TicketClaimedError, match="is not claimed, not by 'ada'"):
        timed.renew(ticket.id, reviewer="ada")
    assert timed.claim(ticket.id, reviewer="bob").claimed_by == "bob"
    assert timed.release(ticket.id, reviewer="head", force=True).state == "open"
    assert [(entry.type, entry.by) for entry in timed.get(ticket.id).history] == [
        ("created", ""),
        ("claimed", "ada"),
        ("released", "ada"),
        ("claimed", "bob"),
        ("released", "head"),
    ]


def test_a_claim_holder_resolves_the_ticket(timed: ReviewQueue) -> None:
    ticket = put(timed, "d")
    claimed = timed.claim(ticket.id, reviewer="ada")
    resolved = timed.resolve(ticket.id, Verdict.ACCEPT, reviewer="ada", version=claimed.version)

    assert (resolved.state, resolved.claimed_by, resolved.claimed_until) == ("resolved", "", None)
    for change in (timed.claim, timed.renew, timed.release):
        with pytest.raises(TicketResolvedError, match="already ended with the verdict 'accept'"):
            change(ticket.id, reviewer="ada")


def test_a_verdict_on_an_old_version_is_refused(timed: ReviewQueue) -> None:
    seen = put(timed, "d")
    timed.claim(seen.id, reviewer="ada")
    now = timed.release(seen.id, reviewer="ada")

    with pytest.raises(TicketChangedError, match="has version 3, and the verdict is on version 1; look at it again"):
        timed.resolve(seen.id, Verdict.ACCEPT, version=seen.version)
    first = timed.resolve(seen.id, Verdict.ACCEPT, version=now.version)
    # The same verdict again is the same, whatever it was on.
    assert timed.resolve(seen.id, Verdict.ACCEPT, version=now.version) == first


def test_the_next_ticket_is_the_most_urgent_one_that_is_free(timed: ReviewQueue, clock: Clock) -> None:
    names = {}
    urgencies: dict[str, dict[str, Any]] = {
        "late": {},
        "later": {},
        "due": {"due": 7200.0},
        "due sooner": {"due": 3600.0},
        "urgent": {"priority": 5},
        "idle": {"priority": -5, "due": 60.0},
        "elsewhere": {"priority": 100, "queue": "others"},
    }
    for decision, urgency in urgencies.items():
        names[put(timed, decision, **urgency).id] = decision
        clock.now += 1
    listed = [names[ticket.id] for ticket in timed.list(queue="chemists")]
    claimed = []
    while (ticket := timed.claim_next(reviewer="ada", queue="chemists")) is not None:
        claimed.append(names[ticket.id])

    assert claimed == listed == ["urgent", "due sooner", "due", "late", "later", "idle"]
    taken = timed.claim_next(reviewer="ada")
    assert taken is not None
    assert names[taken.id] == "elsewhere"


def test_a_queues_lease_applies_to_its_claims(url: str, clock: Clock) -> None:
    with ReviewQueue(url, clock=clock, queues=[QueueSettings(name="slow", lease=7200.0)]) as queue:
        assert queue.claim(put(queue, "d", queue="slow").id, reviewer="ada").claimed_until == clock.now + 7200
        assert queue.claim(put(queue, "e").id, reviewer="ada", lease=5).claimed_until == clock.now + 5


@pytest.mark.parametrize("reviewer", ["", "  "])
def test_a_claim_needs_a_name(timed: ReviewQueue, reviewer: str) -> None:
    ticket = put(timed, "d")
    with pytest.raises(ReviewError, match="needs a reviewer's name"):
        timed.claim(ticket.id, reviewer=reviewer)
    with pytest.raises(ReviewError, match="needs a reviewer's name"):
        timed.claim_next(reviewer=reviewer)


@pytest.mark.parametrize("lease", [0, -1, float("nan"), float("inf"), 1e12])
def test_a_claim_needs_time(timed: ReviewQueue, lease: float) -> None:
    with pytest.raises(ReviewError, match="more than 0 seconds"):
        timed.claim(put(timed, "d").id, reviewer="ada", lease=lease)


def test_an_unknown_ticket_is_not_claimed(timed: ReviewQueue) -> None:
    for change in (timed.claim, timed.renew, timed.release):
        with pytest.raises(TicketNotFoundError):
            change("0" * 32, reviewer="ada")


def test_an_expired_ticket_can_not_be_claimed(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d", due=10.0)
    clock.now += 10
    timed.sweep()
    for change in (timed.claim, timed.renew, timed.release):
        with pytest.raises(TicketExpiredError, match="was overdue and expired"):
            change(ticket.id, reviewer="ada")
    with pytest.raises(TicketConflictError, match="takes no verdict any more"):
        timed.resolve(ticket.id, Verdict.REJECT)


def test_a_clock_that_goes_back_only_extends_claims(timed: ReviewQueue, clock: Clock) -> None:
    ticket = put(timed, "d")
    until = timed.claim(ticket.id, reviewer="ada").claimed_until
    clock.now -= 86_400

    assert timed.claim_next(reviewer="bob") is None
    with pytest.raises(TicketClaimedError):
        timed.claim(ticket.id, reviewer="bob")
    assert timed.renew(ticket.id, reviewer="ada").claimed_until == until
    assert timed.resolve(ticket.id, Verdict.ACCEPT, reviewer="ada").state == "resolved"
    assert [entry.type for entry in timed.get(ticket.id).history] == ["created", "claimed", "resolved"]


def test_claims_are_logged_by_name(timed: ReviewQueue) -> None:
    ticket = put(timed, "d")
    with capture_logs() as logged:
        timed.claim(ticket.id, reviewer="ada")
        timed.claim(ticket.id, reviewer="ada")
        timed.release(ticket.id, reviewer="ada")
        timed.release(ticket.id, reviewer="ada")
    assert [(entry["event"], entry["by"]) for entry in logged] == [
        ("ilis_guard.ticket.claimed", "ada"),
        ("ilis_guard.ticket.released", "ada"),
    ]


def _all_of(queue: ReviewQueue, reviewer: str) -> list[str]:
    """Ids of all tickets that a reviewer gets."""
    got = []
    while (ticket := queue.claim_next(reviewer=reviewer)) is not None:
        got.append(ticket.id)
    return got


def _at_once(calls: list[Callable[[], list[str]]]) -> list[list[str]]:
    start = Barrier(len(calls))

    def call(this: Callable[[], list[str]]) -> list[str]:
        start.wait()
        return this()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


def _check_each_went_to_one(queue: ReviewQueue, got: dict[str, list[str]], tickets: list[Ticket]) -> None:
    counted = Counter(id_ for ids in got.values() for id_ in ids)
    assert counted == Counter(ticket.id for ticket in tickets)
    for reviewer, ids in got.items():
        for id_ in ids:
            record = queue.get(id_)
            assert record.ticket.claimed_by == reviewer
            assert [entry.type for entry in record.history] == ["created", "claimed"]


def test_twenty_threads_that_claim_share_no_ticket(review: ReviewQueue) -> None:
    tickets = [put(review, f"d{number}") for number in range(3 * CLAIMERS)]
    names = [f"reviewer{number}" for number in range(CLAIMERS)]
    got = _at_once([partial(_all_of, review, name) for name in names])
    _check_each_went_to_one(review, dict(zip(names, got, strict=True)), tickets)


@pytest.mark.usefixtures("process")
def test_twenty_processes_that_claim_share_no_ticket(url: str, tmp_path: Path) -> None:
    with ReviewQueue(url) as queue:
        tickets = [put(queue, f"d{number}") for number in range(3 * CLAIMERS)]

    def claim(name: str) -> None:
        with ReviewQueue(url) as queue:
            (tmp_path / f"{name}.json").write_text(json.dumps(_all_of(queue, name)))

    names = [f"reviewer{number}" for number in range(CLAIMERS)]
    children = [forked(partial(claim, name)) for name in names]
    assert [ended(child) for child in children] == [0] * CLAIMERS
    got = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    with ReviewQueue(url) as queue:
        _check_each_went_to_one(queue, got, tickets)


def test_one_of_twenty_concurrent_claims_wins(review: ReviewQueue) -> None:
    ticket = put(review, "d")

    def claim(name: str) -> list[str]:
        try:
            return [review.claim(ticket.id, reviewer=name).claimed_by]
        except TicketClaimedError:
            return []

    got = _at_once([partial(claim, f"reviewer{number}") for number in range(CLAIMERS)])
    ((winner,),) = [names for names in got if names]
    record = review.get(ticket.id)
    assert record.ticket.claimed_by == winner
    assert [(entry.type, entry.by) for entry in record.history] == [("created", ""), ("claimed", winner)]
