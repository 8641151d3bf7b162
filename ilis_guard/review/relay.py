"""The outbox relay: leases deliveries, sends them, settles the results, and sweeps overdue tickets."""

import asyncio
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from ilis_guard import events
from ilis_guard.concurrency.portal import run_in_thread
from ilis_guard.config import addresses
from ilis_guard.errors import ConfigError, ReviewError
from ilis_guard.review.outbox import Delivery, DeliveryTry, Outcome, SendResult, Settlement
from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.transport import TRY_SECONDS, WebhookTransport
from ilis_guard.review.webhooks import WebhookBuilder

CONCURRENCY: Final = 16
"""Sends to one endpoint that a relay has in flight at most: an endpoint that hangs delays no other."""
_MAX_LEASED: Final = 2 * CONCURRENCY
"""Deliveries of one endpoint that a relay has leased at most. Two rounds of the longest sends fit into a lease."""
_IDLE_SECONDS: Final = 1.0
"""Between two looks into an empty outbox."""
_SWEEP_SECONDS: Final = 5.0
_MAX_BACKOFF_SECONDS: Final = 30.0
"""Between two tries while the database fails."""
_MAX_LAST_TRIES: Final = 3
"""How often a stopping relay tries to settle its results while the database fails."""


class OutboxRelay:
    """Sends the deliveries in a queue's outbox. Any number may run at once, in any number of processes.

    Args:
        queue: whose outbox and endpoints.
        internal_hosts: see ``review.internal_hosts`` in guard.yaml.
        page: address of the reviewers' page, which messages link to; None where there is none.

    Raises:
        ConfigError: a template can't be used, or an internal host is none.
    """

    def __init__(self, queue: ReviewQueue, *, internal_hosts: Sequence[str] = (), page: str | None = None) -> None:
        self._queue = queue
        self._builder = WebhookBuilder(queue, page=page)
        self._internal_hosts = frozenset(addresses.normalize_host(name) for name in internal_hosts)
        self._counts: Counter[Outcome] = Counter()

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """The outcomes of all tries so far."""
        return dict(self._counts)

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set; then finish the sends in flight, within some 20 seconds, and leave the rest.

        It waits for a database that fails. Killed or cancelled anywhere, it loses nothing: what was in flight is sent
        again when its lease has run out, with the same id.
        """
        async with WebhookTransport(self._internal_hosts) as transport:
            await _RelayRun(self._queue, self._builder, transport, self._counts, stop).run()

    async def drain(self) -> None:
        """Send everything that is due now; return when nothing of it is left.

        Raises:
            ReviewError: the database failed.
        """
        async with WebhookTransport(self._internal_hosts) as transport:
            await _RelayRun(self._queue, self._builder, transport, self._counts, asyncio.Event()).drain()


class _RelayRun:
    """The state of a running relay."""

    def __init__(
        self,
        queue: ReviewQueue,
        builder: WebhookBuilder,
        transport: WebhookTransport,
        counts: Counter[Outcome],
        stop: asyncio.Event,
    ) -> None:
        self._queue = queue
        self._clock = queue.store.clock
        self._outbox = queue.store.outbox
        self._builder = builder
        self._transport = transport
        self._counts = counts
        self._stop = stop
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._limits = {endpoint: asyncio.Semaphore(CONCURRENCY) for endpoint in self._outbox.endpoints}
        self._in_flight: set[asyncio.Task[None]] = set()
        self._tries: list[DeliveryTry] = []
        self._unsent: list[Delivery] = []
        self._changed = asyncio.Event()
        self._next_sweep = 0.0
        self._has_warned = False

    async def run(self) -> None:
        """Relay until stopped and nothing is left to settle."""
        watch = asyncio.create_task(self._wake_to_stop())
        failures = 0
        try:
            while not (self._stop.is_set() and self._is_idle()):
                try:
                    await self._maintain()
                    was_busy = await self._relay_batch()
                except ReviewError as error:
                    failures += 1
                    events.log().warning(events.RELAY_DELAYED, error=str(error), unrecorded=len(self._tries))
                    if self._stop.is_set() and failures >= _MAX_LAST_TRIES and not self._in_flight:
                        return
                    await self._back_off(failures)
                else:
                    failures = 0
                    if not was_busy:
                        await self._wait_for_change()
        finally:
            await _cancel({watch, *self._in_flight})

    async def drain(self) -> None:
        """Relay until nothing is due and nothing is left to settle."""
        try:
            while (was_busy := await self._relay_batch()) or not self._is_idle():
                if not was_busy:
                    await self._wait_for_change()
        finally:
            await _cancel(self._in_flight)

    async def _maintain(self) -> None:
        """Sweep overdue tickets every few seconds; once, warn of deliveries that no endpoint will get."""
        if self._stop.is_set() or time.monotonic() < self._next_sweep:
            return
        await run_in_thread(self._queue.sweep)
        if not self._has_warned:
            for endpoint, count in (await run_in_thread(self._outbox.orphans)).items():
                events.log().warning(events.DELIVERIES_ORPHANED, endpoint=endpoint, deliveries=count)
            self._has_warned = True
        self._next_sweep = time.monotonic() + _SWEEP_SECONDS

    async def _relay_batch(self) -> bool:
        """Settle results and start sends; return whether there was any of either."""
        tries, unsent = tuple(self._tries), tuple(self._unsent)
        capacity = self._capacity()
        batch = await run_in_thread(
            partial(self._outbox.relay_batch, self._name, tries=tries, unsent=unsent, capacity=capacity)
        )
        # Later results stand behind these.
        del self._tries[: len(tries)], self._unsent[: len(unsent)]
        for settlement in batch.settled:
            self._counts[settlement.outcome] += 1
            _log(settlement)
        for delivery in batch.leased:
            task = asyncio.create_task(self._deliver(delivery), name=delivery.endpoint)
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
        return bool(batch.settled or batch.leased)

    def _capacity(self) -> dict[str, int]:
        """Return how many deliveries to lease, by endpoint: many at once, so that there are few commits."""
        if self._stop.is_set():
            return {}
        in_flight = Counter(task.get_name() for task in self._in_flight)
        return {name: _MAX_LEASED - in_flight[name] for name in self._limits if in_flight[name] <= CONCURRENCY}

    def _is_idle(self) -> bool:
        return not (self._in_flight or self._tries or self._unsent)

    async def _deliver(self, delivery: Delivery) -> None:
        """Send when the endpoint's rate allows it, unless the relay is stopping by then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(delivery.send_at - self._clock()):
                await self._stop.wait()
        async with self._limits[delivery.endpoint]:
            has_time = self._clock() + TRY_SECONDS <= delivery.leased_until
            result = await self._send(delivery) if has_time and not self._stop.is_set() else None
        if result is None:
            self._unsent.append(delivery)
        else:
            self._tries.append(DeliveryTry(delivery=delivery, result=result, at=self._clock()))
        self._changed.set()

    async def _send(self, delivery: Delivery) -> SendResult | None:
        """Try once; None where the ticket couldn't be read, for which the endpoint isn't to blame."""
        try:
            message = await self._builder.message(delivery)
        except ReviewError:
            return None
        now = self._clock()
        try:
            webhook = await self._builder.build(message, delivery.endpoint, now=now)
            return await self._transport.send(
                webhook.url, webhook.headers, webhook.body, now=now, may_quote=webhook.may_quote
            )
        except ConfigError as error:
            return SendResult(error=str(error))
        except Exception as error:  # noqa: BLE001 - no delivery may stop the others; the text may quote the prompt
            return SendResult(error=f"{type(error).__name__} while the message was made or sent")

    async def _wait_for_change(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_SECONDS):
                await self._changed.wait()
        self._changed.clear()

    async def _back_off(self, failures: int) -> None:
        """Pause longer with each failure, but never long in a relay that is stopping."""
        if self._stop.is_set():
            await asyncio.sleep(_IDLE_SECONDS)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(min(2.0**failures / 2, _MAX_BACKOFF_SECONDS)):
                await self._stop.wait()

    async def _wake_to_stop(self) -> None:
        await self._stop.wait()
        self._changed.set()


def _log(settlement: Settlement) -> None:
    delivery, result = settlement.of.delivery, settlement.of.result
    fields = {
        "delivery": delivery.id,
        "endpoint": delivery.endpoint,
        "type": delivery.event,
        "tries": delivery.tries + 1,
        "status": result.status,
    }
    match settlement.outcome:
        case "delivered":
            events.log().info(events.DELIVERY_DELIVERED, **fields)
        case "failed" | "taken over":
            error, next_try_at = result.error, settlement.next_try_at
            events.log().warning(events.DELIVERY_FAILED, **fields, error=error, next_try_at=next_try_at)
        case "exhausted":
            events.log().error(events.DELIVERY_EXHAUSTED, **fields, error=result.error)
        case "disabled":
            events.log().error(events.ENDPOINT_DISABLED, **fields)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tuple(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
