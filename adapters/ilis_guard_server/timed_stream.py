"""Streams that end in time: a request whose time is over is given up, unless its decision is made.

No storage is waited for beyond that: a ticket that isn't stored soon is stored later, and the decision promises none.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from ilis_guard import Guard, Retraction, StreamEvent, TextDelta
from ilis_guard.cascade.settlement import Settlement
from ilis_guard.concurrency.portal import run_in_thread
from ilis_guard.concurrency.race import cancel
from ilis_guard.types import Action, Decision, Request, StreamMode
from ilis_guard_server.limits import DeadlinePassed, Deadlines, PendingWork
from ilis_guard_server.problem_details import ApiError

STORE_SECONDS: Final = 0.5
"""How long a ticket may take before its request is answered without it; a request's time includes it."""
_STORE_SHARE: Final = 0.25
"""Of a request's time, at most, where that is short."""


@dataclass(slots=True)
class _ShownText:
    """The text that a stream has shown."""

    text: str = ""
    is_retracted: bool = False

    def follow(self, event: StreamEvent) -> None:
        """Read an event of the stream."""
        if isinstance(event, TextDelta):
            self.text += event.text
        elif isinstance(event, Retraction):
            self.is_retracted = True

    def missing(self, decision: Decision) -> StreamEvent | None:
        """What the stream lacks before this decision; None where that is nothing."""
        is_answer = decision.action is Action.ANSWER
        if self.is_retracted or (is_answer and decision.text == self.text):
            return None
        if is_answer and decision.text.startswith(self.text):
            return TextDelta(text=decision.text[len(self.text) :])
        return Retraction(reason="answer_differs" if is_answer else "out_of_time") if self.text else None


class TimedStream:
    """The stream of one request, which ends in time.

    Args:
        guard: decides; nothing runs before the first event is awaited.
        request: the request.
        id: the decision's, where its caller gave one.
        mode: when text is shown.
        seconds: the request's time.
        deadlines: of the requests in flight.
        pending_work: holds what goes on after the stream's end.

    Raises:
        RequestError: the guard's tiers can't take the request.
    """

    def __init__(
        self,
        guard: Guard,
        request: Request,
        *,
        id: str | None,  # noqa: A002 - a decision's word
        mode: StreamMode,
        seconds: float,
        deadlines: Deadlines,
        pending_work: PendingWork,
    ) -> None:
        self._guard = guard
        self._request = request
        self._id = id
        self._seconds = seconds - min(STORE_SECONDS, seconds * _STORE_SHARE)
        self._deadlines = deadlines
        self._pending_work = pending_work
        self._settlement = Settlement()
        self._events = guard.astream(request, id=id, mode=mode, settlement=self._settlement)
        self._coming: asyncio.Future[StreamEvent] | None = None
        self._is_decided = False
        """Whether the decision stands, whatever becomes of the stream: its time was over when its ticket was stored."""

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events; the last is the decision.

        Given up, a request has the decision that the policy makes where every tier fails: it is escalated, if the
        policy escalates that.

        Raises:
            ApiError: there is no decision in time, and there won't be one.
            RequestConflictError: the id was given to another request.
        """
        shown = _ShownText()
        try:
            with self._deadlines.open(self._seconds) as deadline:
                while (event := await self._next(deadline)) is not None:
                    shown.follow(event)
                    yield event
                    if isinstance(event, Decision):
                        return
                passed = deadline.result()
            decision = self._settlement.expire()
            if decision is None:
                assert isinstance(passed, DeadlinePassed), "nothing else passes a deadline"
                decision = await self._without_models(passed)
            else:
                self._is_decided = True
                limit = time.monotonic() + STORE_SECONDS
                while (event := await self._next(timeout=limit - time.monotonic())) is not None:
                    shown.follow(event)
                    yield event
                    if isinstance(event, Decision):
                        return
            if (missing := shown.missing(decision)) is not None:
                yield missing
            yield decision
        finally:
            if self._is_decided:
                self._pending_work.add(self._drain())
            else:
                await self._close()

    async def check_id(self) -> None:
        """Check the id before the stream begins; what takes longer than a ticket shows in the stream.

        Raises:
            RequestConflictError: it was given to another request.
        """
        if self._id is not None:
            checking = asyncio.ensure_future(run_in_thread(partial(self._guard.check_id, self._request, self._id)))
            await asyncio.wait({checking}, timeout=STORE_SECONDS)
            if checking.done():
                checking.result()

    async def _next(
        self,
        deadline: "asyncio.Future[Exception] | None" = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> StreamEvent | None:
        """The next event; None where none comes in time. It may still come, and isn't lost."""
        coming = self._coming or asyncio.ensure_future(anext(self._events))
        self._coming = coming
        awaited: set[asyncio.Future[object]] = {coming} if deadline is None else {coming, deadline}  # type: ignore[arg-type]
        await asyncio.wait(awaited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            return None
        self._coming = None
        return coming.result()

    async def _without_models(self, passed: DeadlinePassed) -> Decision:
        """The decision that the policy makes where every tier fails."""
        await self._close()
        guard, settlement = self._guard.without_models(passed.description), Settlement()
        decide = partial(guard.decide, self._request, id=self._id, settlement=settlement)
        deciding = asyncio.ensure_future(run_in_thread(decide))
        try:
            await asyncio.wait({deciding}, timeout=STORE_SECONDS)
            if deciding.done():
                return deciding.result()
            if (decision := settlement.expire()) is not None:
                self._pending_work.add(deciding)
                return decision
        finally:
            settlement.cancel()
        # It waits for another request with its id.
        raise ApiError(
            503, "There is no decision yet; try again later.", code="undecided", headers={"retry-after": "1"}
        )

    async def _drain(self) -> None:
        """Let the guard store what it decided, if it hasn't yet."""
        with suppress(Exception):
            while not isinstance(await self._next(), Decision):
                pass
        await self._close()

    async def _close(self) -> None:
        """End the generation, unless its decision counts."""
        if self._coming is not None:
            await cancel(self._coming)
            self._coming = None
        await self._events.aclose()
