"""The worker: leases deliveries, sends them, writes down what became of them, and sweeps overdue tickets."""

import asyncio
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from ilis_guard import events
from ilis_guard.errors import ReviewError
from ilis_guard.review import deliveries
from ilis_guard.review.deliveries import Delivery, Outcome, Settled, Tried
from ilis_guard.review.posting import Post
from ilis_guard.review.queue import ReviewQueue
from ilis_guard.review.sending import TRY_SECONDS, Sender

AT_ONCE: Final = 16
"""Tries to one endpoint that a worker has under way at most: one that hangs keeps no other from hearing."""
_IN_HAND: Final = 2 * AT_ONCE
"""Deliveries of one endpoint that a worker has leased at most. Two rounds of the longest tries fit into a lease."""
_LOOK_SECONDS: Final = 1.0
"""Between two looks into an outbox that was empty."""
_SWEEP_SECONDS: Final = 5.0
_LONGEST_PAUSE: Final = 30.0
"""Seconds between two looks while the database fails."""
_LAST_TRIES: Final = 3
"""Times that a worker which is to stop tries to write down what it knows, while the database fails."""


class OutboxRelay:
    """Delivers what the outbox of a queue holds. Any number may run at once, in any number of processes.

    Args:
        queue: whose outbox; its endpoints are those that are sent to.
        internal_hosts: see ``review.internal_hosts`` in guard.yaml.
        page: address of the reviewers' page, which messages link to; None where there is none.

    Raises:
        ConfigError: a template can't be used, or an internal host is none.
    """

    def __init__(self, queue: ReviewQueue, *, internal_hosts: Sequence[str] = (), page: str | None = None) -> None:
        self._queue = queue
        self._post = Post(queue, internal_hosts=internal_hosts, page=page)
        self._counts: Counter[Outcome] = Counter()

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """What became of all tries so far."""
        return dict(self._counts)

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until told to stop; then finish what is under way, within some 20 seconds, and leave the rest.

        A database that fails is waited for. Wherever this is killed or cancelled, nothing is lost: what was under way
        is sent again when its lease has run out, with the same id.
        """
        async with Sender(self._post.internal_hosts) as sender:
            await _Shift(self._queue, self._post, sender, self._counts, stop).work()

    async def drain(self) -> None:
        """Deliver all that is due now, and return when none of it is left.

        Raises:
            ReviewError: the database failed.
        """
        async with Sender(self._post.internal_hosts) as sender:
            await _Shift(self._queue, self._post, sender, self._counts, asyncio.Event()).drain()


class _Shift:
    """What a worker has in hand while it runs."""

    def __init__(
        self, queue: ReviewQueue, post: Post, sender: Sender, counts: Counter[Outcome], stop: asyncio.Event
    ) -> None:
        self._queue = queue
        self._ledger = queue._ledger  # noqa: SLF001 - the review room's own
        self._post = post
        self._sender = sender
        self._counts = counts
        self._stop = stop
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lanes = {endpoint: asyncio.Semaphore(AT_ONCE) for endpoint in post.endpoints}
        self._under_way: set[asyncio.Task[None]] = set()
        self._tried: list[Tried] = []
        self._unsent: list[Delivery] = []
        self._changed = asyncio.Event()
        self._next_sweep = 0.0
        self._has_warned = False

    async def work(self) -> None:
        """Until told to stop, and nothing is in hand any more."""
        watch = asyncio.create_task(self._wake_to_stop())
        failures = 0
        try:
            while not (self._stop.is_set() and self._has_nothing()):
                try:
                    await self._look_after()
                    was_busy = await self._turn()
                except ReviewError as error:
                    failures += 1
                    events.log().warning(events.RELAY_DELAYED, error=str(error), unrecorded=len(self._tried))
                    if self._stop.is_set() and failures >= _LAST_TRIES and not self._under_way:
                        return
                    await self._pause(failures)
                else:
                    failures = 0
                    if not was_busy:
                        await self._rest()
        finally:
            await _cancelled({watch, *self._under_way})

    async def drain(self) -> None:
        """Until nothing is due and nothing in hand."""
        try:
            while (was_busy := await self._turn()) or not self._has_nothing():
                if not was_busy:
                    await self._rest()
        finally:
            await _cancelled(self._under_way)

    async def _look_after(self) -> None:
        """Sweep overdue tickets every few seconds; once, tell of deliveries that nobody sends."""
        if self._stop.is_set() or time.monotonic() < self._next_sweep:
            return
        await asyncio.to_thread(self._queue.sweep)
        if not self._has_warned:
            for endpoint, count in (await asyncio.to_thread(deliveries.orphaned, self._ledger)).items():
                events.log().warning(events.DELIVERIES_ORPHANED, endpoint=endpoint, deliveries=count)
            self._has_warned = True
        self._next_sweep = time.monotonic() + _SWEEP_SECONDS

    async def _turn(self) -> bool:
        """Write down what is known, and take what is due; whether there was any of either."""
        tried, unsent = tuple(self._tried), tuple(self._unsent)
        done = await asyncio.to_thread(
            deliveries.turn, self._ledger, self._name, tried=tried, unsent=unsent, room=self._room()
        )
        # What came meanwhile stands behind these.
        del self._tried[: len(tried)], self._unsent[: len(unsent)]
        for settled in done.settled:
            self._counts[settled.outcome] += 1
            _tell(settled)
        for delivery in done.leased:
            task = asyncio.create_task(self._deliver(delivery), name=delivery.endpoint)
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return bool(done.settled or done.leased)

    def _room(self) -> dict[str, int]:
        """How many deliveries are wanted, by endpoint: many at once, so that there are few commits."""
        if self._stop.is_set():
            return {}
        # What was tried is settled in the turn that takes new ones.
        held = Counter(task.get_name() for task in self._under_way)
        return {name: _IN_HAND - held[name] for name in self._post.endpoints if held[name] <= AT_ONCE}

    def _has_nothing(self) -> bool:
        return not (self._under_way or self._tried or self._unsent)

    async def _deliver(self, delivery: Delivery) -> None:
        """Send it when the endpoint's rate allows it, unless the worker is to stop by then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(delivery.send_at - self._ledger.clock()):
                await self._stop.wait()
        async with self._lanes[delivery.endpoint]:
            has_time = self._ledger.clock() + TRY_SECONDS <= delivery.leased_until
            is_wanted = has_time and not self._stop.is_set()
            tried = await self._post.send(self._sender, delivery) if is_wanted else None
        if tried is None:
            self._unsent.append(delivery)
        else:
            self._tried.append(tried)
        self._changed.set()

    async def _rest(self) -> None:
        """Until something has changed, or it is time to look again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._changed.wait()
        self._changed.clear()

    async def _pause(self, failures: int) -> None:
        """Longer with each failure; the worker that is to stop has no time for that."""
        if self._stop.is_set():
            await asyncio.sleep(_LOOK_SECONDS)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(min(2.0**failures / 2, _LONGEST_PAUSE)):
                await self._stop.wait()

    async def _wake_to_stop(self) -> None:
        await self._stop.wait()
        self._changed.set()


def _tell(settled: Settled) -> None:
    delivery, answer = settled.tried.delivery, settled.tried.answer
    fields = {
        "delivery": delivery.id,
        "endpoint": delivery.endpoint,
        "type": delivery.event,
        "tries": delivery.tries + 1,
        "status": answer.status,
    }
    match settled.outcome:
        case "delivered":
            events.log().info(events.DELIVERY_DELIVERED, **fields)
        case "failed" | "taken over":
            events.log().warning(events.DELIVERY_FAILED, **fields, error=answer.error, next_try_at=settled.next_try_at)
        case "exhausted":
            events.log().error(events.DELIVERY_EXHAUSTED, **fields, error=answer.error)
        case "disabled":
            events.log().error(events.ENDPOINT_DISABLED, **fields)


async def _cancelled(tasks: set[asyncio.Task[None]]) -> None:
    for task in tuple(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
