"""The relay on both databases, with a real endpoint: delivery, retries, dead letters, rates."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from ilis_guard.config.review import EndpointSettings, QueueSettings
from ilis_guard.errors import DeliveryNotFoundError, ReviewError
from ilis_guard.review import ReviewQueue, dead_letters
from ilis_guard.review.outbox import SCHEDULE, retry_pause
from ilis_guard.review.relay import CONCURRENCY
from ilis_guard.review.signing import sign
from ilis_guard.types import Verdict
from tests.endpoint import Endpoint, Exchange, answering
from tests.review.support import NEW, OLD, relay, rows, states, to, until
from tests.reviewing import Clock, put

HOUR = 3600.0
WHOLE_SCHEDULE = sum(SCHEDULE) * 1.2

Hearing = Callable[..., ReviewQueue]


@pytest.fixture
def hearing(
    url: str, clock: Clock, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ReviewQueue]]:
    """Opens a queue whose events the endpoint hears, as `crm` unless a test says more."""
    monkeypatch.setenv("HOOK_SECRET", OLD)
    with ExitStack() as stack:

        def open_queue(*more: EndpointSettings, queues: tuple[QueueSettings, ...] = (), **settings: Any) -> ReviewQueue:
            crm = EndpointSettings(**to(endpoint) | settings)
            return stack.enter_context(ReviewQueue(url, endpoints=[crm, *more], queues=queues, clock=clock))

        yield open_queue


async def test_each_event_arrives_once_signed_with_its_link(hearing: Hearing, endpoint: Endpoint, clock: Clock) -> None:
    queue = hearing(events=("ticket.created", "ticket.claimed", "ticket.resolved"))
    ticket = put(queue, "d")
    queue.claim(ticket.id, reviewer="ada")
    queue.resolve(ticket.id, Verdict.ACCEPT, reviewer="ada")
    await relay(queue).drain()
    await relay(queue).drain()

    told = {json.loads(heard.body)["type"]: heard for heard in endpoint.heard}
    assert sorted(told) == ["ticket.claimed", "ticket.created", "ticket.resolved"]
    assert len(endpoint.heard) == 3
    for heard in endpoint.heard:
        signed = sign(OLD, id=heard.id, at=clock.now, body=heard.body.decode())
        assert signed.items() <= heard.headers.items()
        assert json.loads(heard.body)["data"]["link"] == f"https://review.example.org/tickets/{ticket.id}"
    assert json.loads(told["ticket.resolved"].body)["data"]["verdict"] == "accept"
    assert {row.id for row in rows(queue)} == set(endpoint.ids)
    assert states(queue) == ["delivered"] * 3


async def test_only_full_messages_hold_prompts(hearing: Hearing, endpoint: Endpoint) -> None:
    queue = hearing(EndpointSettings(**to(endpoint, name="full", full=True)))
    put(queue, "d")
    await relay(queue).drain()

    thin, full = sorted((heard.body.decode() for heard in endpoint.heard), key=len)
    assert "gallium" not in thin
    assert "2400" not in thin
    assert "What is the boiling point of gallium?" in full
    assert "2400 °C" in full


@pytest.mark.parametrize("more", [{"url": "${HOOK_URL}"}, {"template": "pagerduty", "routing_key": "${HOOK_KEY}"}])
async def test_a_secret_in_a_response_reaches_no_error_and_no_log(
    hearing: Hearing,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    more: dict[str, Any],
) -> None:
    caplog.set_level(logging.INFO)  # of all: httpx logs addresses
    monkeypatch.setenv("HOOK_URL", f"{endpoint.url}/s3cr3t")
    monkeypatch.setenv("HOOK_KEY", "s3cr3t")
    endpoint.answer = lambda exchange: exchange.reply(404, exchange.path.encode() + endpoint.heard[-1].body)
    queue = hearing(**more)
    put(queue, "d")
    await relay(queue).drain()

    assert "s3cr3t" in endpoint.heard[0].path + endpoint.heard[0].body.decode()
    assert rows(queue)[0].last_error == "answered 404"
    assert "s3cr3t" not in caplog.text


async def test_a_new_secret_signs_without_a_restart(
    hearing: Hearing, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    queue = hearing()
    outbox_relay = relay(queue)
    for secret in (OLD, f"{NEW} {OLD}", NEW):
        monkeypatch.setenv("HOOK_SECRET", secret)
        put(queue, secret)
        await outbox_relay.drain()
        heard = endpoint.heard[-1]
        signed = sign(secret, id=heard.id, at=clock.now, body=heard.body.decode())
        assert heard.headers["webhook-signature"] == signed["webhook-signature"]


async def test_a_failed_delivery_is_tried_on_schedule_with_one_id(
    hearing: Hearing, endpoint: Endpoint, clock: Clock
) -> None:
    endpoint.answer = answering(500)
    queue = hearing()
    put(queue, "d")
    for number, pause in enumerate([*SCHEDULE[1:], None], start=1):
        await relay(queue).drain()
        await relay(queue).drain()
        (row,) = rows(queue)
        assert (row.tries, row.last_status, row.last_try_at) == (number, 500, clock.now)
        assert len(endpoint.heard) == number
        if pause is not None:
            assert row.state == "pending"
            assert pause <= row.next_try_at - clock.now <= pause * 1.2
            clock.now = row.next_try_at

    assert states(queue) == ["exhausted"]
    assert len(set(endpoint.ids)) == 1
    clock.now += 10 * WHOLE_SCHEDULE
    await relay(queue).drain()
    assert len(endpoint.heard) == len(SCHEDULE) == 10


async def test_an_endpoint_that_failed_for_an_hour_gets_everything_later(
    hearing: Hearing, endpoint: Endpoint, clock: Clock
) -> None:
    endpoint.answer = answering(500)
    queue = hearing()
    made = [put(queue, f"d{number}").id for number in range(20)]
    start, outbox_relay = clock.now, relay(queue)
    while clock.now < start + HOUR:
        await outbox_relay.drain()
        clock.now = min(row.next_try_at for row in rows(queue))
    endpoint.answer = answering(200)
    failed = len(endpoint.heard)
    clock.now += HOUR
    await outbox_relay.drain()

    assert states(queue) == ["delivered"] * 20
    arrived = endpoint.heard[failed:]
    assert sorted(json.loads(heard.body)["data"]["ticket"] for heard in arrived) == sorted(made)
    assert {heard.id for heard in arrived} == set(endpoint.ids[:failed])


def test_pauses_are_jittered() -> None:
    pauses = {retry_pause(1, None) for _ in range(100)}
    assert len(pauses) > 90
    assert 5.0 <= min(pauses) <= max(pauses) <= 6.0


@pytest.mark.parametrize("is_date", [False, True])
async def test_retry_after_holds_all_that_waits_for_the_endpoint(
    hearing: Hearing, endpoint: Endpoint, clock: Clock, is_date: bool
) -> None:
    text = formatdate(clock.now + 900, usegmt=True) if is_date else "900"
    endpoint.answer = answering(429, 200, headers={"retry-after": text})
    queue = hearing(per_second=1.0)
    put(queue, "first")
    await relay(queue).drain()
    put(queue, "second")
    clock.now += 899
    await relay(queue).drain()
    assert len(endpoint.heard) == 1

    clock.now += 300
    await relay(queue).drain()
    clock.now += 2
    await relay(queue).drain()
    assert states(queue) == ["delivered"] * 2


async def test_an_endpoint_that_answers_410_is_disabled_until_enabled(
    hearing: Hearing, endpoint: Endpoint, clock: Clock
) -> None:
    endpoint.answer = answering(410)
    queue = hearing()
    put(queue, "first")
    outbox_relay = relay(queue)
    with capture_logs() as logged:
        await outbox_relay.drain()
    assert [entry["event"] for entry in logged] == ["ilis_guard.endpoint.disabled"]
    clock.now += 10
    put(queue, "second")
    await outbox_relay.drain()

    assert len(endpoint.heard) == 1
    assert states(queue) == ["disabled"] * 2
    assert dead_letters.disabled_endpoints(queue) == {"crm": clock.now - 10}
    letters = dead_letters.dead_letters(queue)
    assert [(letter.tries, letter.last_status) for letter in letters] == [(0, None), (1, 410)]
    with pytest.raises(ReviewError, match="disabled"):
        dead_letters.replay(queue, letters[0].id)
    assert dead_letters.replay_since(queue, 0.0) == dead_letters.ReplayCounts(pending=0, dead=2)

    dead_letters.enable(queue, "crm")
    endpoint.answer = answering(200)
    await outbox_relay.drain()
    assert len(endpoint.heard) == 1, "what was missed is replayed when somebody says so"
    assert dead_letters.replay_since(queue, letters[0].created_at) == dead_letters.ReplayCounts(pending=1, dead=0)
    await outbox_relay.drain()
    assert endpoint.ids[1:] == [letters[0].id]
    with pytest.raises(ReviewError, match="isn't disabled"):
        dead_letters.enable(queue, "crm")


async def test_a_dead_letter_is_announced_and_replayed_under_its_id(
    hearing: Hearing, endpoint: Endpoint, clock: Clock
) -> None:
    def dead_hook(exchange: Exchange) -> None:
        exchange.reply(503 if exchange.path == "/dead" else 200)

    endpoint.answer = dead_hook
    dead = EndpointSettings(**to(endpoint, name="dead", url=endpoint.url.replace("/hook", "/dead")))
    queue = hearing(dead)
    ticket = put(queue, "d")
    outbox_relay = relay(queue)
    for _ in SCHEDULE:
        await outbox_relay.drain()
        clock.now += 86_400 * 1.2
    await outbox_relay.drain()

    (letter,) = dead_letters.dead_letters(queue, endpoint="dead")
    assert (letter.state, letter.tries, letter.last_status) == ("exhausted", 10, 503)
    exhausted = [json.loads(heard.body) for heard in endpoint.heard if b"delivery.exhausted" in heard.body]
    assert [body["data"] for body in exhausted] == [
        {
            "ticket": ticket.id,
            "queue": "chemists",
            "delivery": letter.id,
            "endpoint": "dead",
            "event": "ticket.created",
            "state": "exhausted",
            "tries": 10,
            "status": 503,
            "link": f"https://review.example.org/tickets/{ticket.id}",
        }
    ]

    endpoint.answer = answering(200)
    assert dead_letters.replay(queue, letter.id[:6]) == letter.id
    await outbox_relay.drain()
    assert endpoint.ids[-1] == letter.id
    assert states(queue, endpoint="dead") == ["delivered"]


async def test_a_lost_announcement_of_a_dead_letter_is_not_announced(
    hearing: Hearing, endpoint: Endpoint, clock: Clock
) -> None:
    endpoint.answer = answering(500)
    queue = hearing(EndpointSettings(**to(endpoint, name="other", events=("delivery.exhausted",))))
    put(queue, "d")
    outbox_relay = relay(queue)
    for _ in range(3 * len(SCHEDULE)):
        await outbox_relay.drain()
        clock.now += 86_400 * 1.2

    assert [(row.event, row.state) for row in rows(queue)] == [("ticket.created", "exhausted")]
    assert [(row.event, row.state) for row in rows(queue, endpoint="other")] == [("delivery.exhausted", "exhausted")]


def test_only_dead_letters_are_replayed(hearing: Hearing) -> None:
    queue = hearing()
    put(queue, "d")
    (row,) = rows(queue)
    for unknown in (row.id, "ffff", "abc", "x' OR 1=1"):
        with pytest.raises(DeliveryNotFoundError):
            dead_letters.replay(queue, unknown)


async def test_an_endpoint_that_hangs_delays_no_other(hearing: Hearing, endpoint: Endpoint) -> None:
    def hang_some(exchange: Exchange) -> None:
        if exchange.path == "/slow":
            endpoint.hang(exchange)
        else:
            exchange.reply(200)

    endpoint.answer = hang_some
    slow = EndpointSettings(**to(endpoint, name="slow", url=endpoint.url.replace("/hook", "/slow")))
    queue = hearing(slow)
    for number in range(3 * CONCURRENCY):
        put(queue, f"d{number}")
    stop = asyncio.Event()
    running = asyncio.create_task(relay(queue).run(stop))
    await until(lambda: states(queue).count("delivered") == 3 * CONCURRENCY)

    assert states(queue, endpoint="slow") == ["pending"] * (3 * CONCURRENCY)
    assert sum(heard.path == "/slow" for heard in endpoint.heard) <= CONCURRENCY
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_stopped_relay_finishes_sends_in_flight_and_leaves_the_rest(
    hearing: Hearing, endpoint: Endpoint
) -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(exchange: Exchange) -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        exchange.reply(200)

    endpoint.answer = wait
    queue = hearing()
    for number in range(4 * CONCURRENCY):
        put(queue, f"d{number}")
    stop = asyncio.Event()
    outbox_relay = relay(queue)
    running = asyncio.create_task(outbox_relay.run(stop))
    await until(lambda: len(endpoint.heard) == CONCURRENCY)
    stop.set()
    release.set()
    await running

    assert len(endpoint.heard) == CONCURRENCY
    assert sorted(states(queue)) == ["delivered"] * CONCURRENCY + ["pending"] * (3 * CONCURRENCY)
    assert {row.leased_by for row in rows(queue)} == {""}, "the next worker needn't wait for leases to run out"
    assert outbox_relay.counts == {"delivered": CONCURRENCY}
    await relay(queue).drain()
    assert states(queue) == ["delivered"] * (4 * CONCURRENCY)
    assert len(set(endpoint.ids)) == len(endpoint.heard) == 4 * CONCURRENCY


async def test_several_relays_deliver_everything_once(hearing: Hearing, endpoint: Endpoint) -> None:
    queue = hearing()
    for number in range(200):
        put(queue, f"d{number}")
    await asyncio.gather(*(relay(queue).drain() for _ in range(4)))

    assert states(queue) == ["delivered"] * 200
    assert sorted(endpoint.ids) == sorted(row.id for row in rows(queue))


async def test_all_relays_together_keep_to_an_endpoints_rate(
    url: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", OLD)
    with ReviewQueue(url, endpoints=[EndpointSettings(**to(endpoint, per_second=20.0))]) as queue:
        for number in range(50):
            put(queue, f"d{number}")
        stop = asyncio.Event()
        start = time.monotonic()
        running = [asyncio.create_task(relay(queue).run(stop)) for _ in range(3)]
        await until(lambda: states(queue).count("delivered") == 50)
        stop.set()
        await asyncio.gather(*running)

    # The last of 50 starts 49 times 50 ms after the first: a busy machine makes it later, and nothing earlier.
    assert time.monotonic() - start >= 49 * 0.05
    assert len(endpoint.heard) == 50


def test_sends_are_spaced_evenly_and_reserved_a_second_ahead(hearing: Hearing, clock: Clock) -> None:
    queue = hearing(per_second=5.0)
    for number in range(20):
        put(queue, f"d{number}")

    def leased(name: str) -> list[float]:
        done = queue.store.outbox.relay_batch(name, tries=(), unsent=(), capacity={"crm": 100})
        return [delivery.send_at - clock.now for delivery in done.leased]

    assert leased("a") == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert leased("b") == []
    clock.now += 0.5
    assert leased("b") == pytest.approx([0.5, 0.7, 0.9])
    clock.now += 100
    assert all(later - earlier == pytest.approx(0.2) for earlier, later in pairwise(leased("c")))


async def test_a_relay_sweeps_overdue_tickets_and_announces_them(
    hearing: Hearing, endpoint: Endpoint, clock: Clock
) -> None:
    queue = hearing(queues=(QueueSettings(name="chemists", due=60.0),), events=("ticket.overdue",))
    put(queue, "d")
    clock.now += 61
    stop = asyncio.Event()
    running = asyncio.create_task(relay(queue).run(stop))
    await until(lambda: bool(endpoint.heard))
    stop.set()
    await running

    data = json.loads(endpoint.heard[0].body)["data"]
    assert (data["state"], data["was_due_at"]) == ("expired", clock.now - 1)
    assert states(queue) == ["delivered"]


async def test_deliveries_for_an_unconfigured_endpoint_are_kept_and_logged(
    hearing: Hearing, url: str, clock: Clock
) -> None:
    put(hearing(), "d")
    with ReviewQueue(url, clock=clock) as queue:
        stop = asyncio.Event()
        with capture_logs() as logged:
            running = asyncio.create_task(relay(queue).run(stop))
            await until(lambda: bool(logged))
            stop.set()
            await running
        assert logged == [
            {"event": "ilis_guard.deliveries.orphaned", "endpoint": "crm", "deliveries": 1, "log_level": "warning"}
        ]
        assert states(queue) == ["pending"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"secret": "${NOWHERE}"}, "the secret '${NOWHERE}' is empty or isn't there; set it, then try again"),
        ({"url": "${PLAIN_URL}"}, "the endpoint's address must start with https://"),
        ({"url": "${INSIDE_URL}"}, "SSRFProtectionError: access denied: IP address '10.0.0.7'"),
    ],
)
async def test_an_unsendable_message_is_a_failed_try_with_its_reason(
    hearing: Hearing, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], error: str
) -> None:
    monkeypatch.setenv("PLAIN_URL", "http://hooks.test/s3cret")
    monkeypatch.setenv("INSIDE_URL", "https://10.0.0.7/s3cret")
    queue = hearing(**changes)
    put(queue, "d")
    with capture_logs() as logged:
        await relay(queue).drain()

    (row,) = rows(queue)
    assert (row.state, row.tries, row.last_status) == ("pending", 1, None)
    assert row.last_error.startswith(error)
    assert "s3cret" not in str(logged) + row.last_error


async def test_a_template_that_fails_stops_no_other(hearing: Hearing, endpoint: Endpoint, tmp_path: Any) -> None:
    (tmp_path / "own.j2").write_text("{{ 1 / 0 }}")
    queue = hearing(EndpointSettings(**to(endpoint, name="own", template=str(tmp_path / "own.j2"))))
    put(queue, "d")
    await relay(queue).drain()

    assert states(queue) == ["delivered"]
    (row,) = rows(queue, endpoint="own")
    assert "ZeroDivisionError" in row.last_error


async def test_a_response_is_quoted_only_without_a_prompt_in_the_message(hearing: Hearing, endpoint: Endpoint) -> None:
    endpoint.answer = lambda exchange: exchange.reply(400, b"I didn't understand this")
    queue = hearing(EndpointSettings(**to(endpoint, name="full", full=True)))
    put(queue, "d")
    await relay(queue).drain()

    assert rows(queue)[0].last_error == "answered 400: I didn't understand this"
    assert rows(queue, endpoint="full")[0].last_error == "answered 400"
