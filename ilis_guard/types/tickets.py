"""Tickets: requests that wait for a person, and the verdicts that end them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Literal

from ilis_guard.errors import ReviewError

TicketState = Literal["open", "claimed", "resolved", "expired"]
TicketKind = Literal["escalated", "audited"]
"""`escalated`: the caller got no answer, and a person decides. `audited`: the answer was given, and a person checks."""
TicketWaiter = Callable[[str, float | None], "Awaitable[Ticket]"]
"""Waits for the ticket of this id for so many seconds, and returns it when it has ended."""


class Verdict(StrEnum):
    """What a person says of an escalated answer."""

    ACCEPT = "accept"
    CORRECT = "correct"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One escalated request in the review queue; it ends with a verdict."""

    id: str
    queue: str
    state: TicketState
    """`open` or `claimed` while it waits; `resolved` by a verdict or `expired` without one when it ended."""
    created_at: float
    """Seconds since the epoch, UTC, as all times here."""
    kind: TicketKind = "escalated"
    priority: int = 0
    """Higher is reviewed earlier."""
    due_at: float | None = None
    """When it is overdue; None for never."""
    version: int = 1
    """Grows with every change: who decides on what they saw says which version that was."""
    claimed_by: str = ""
    """Who has it in hand; empty unless it is claimed."""
    claimed_until: float | None = None
    """When it is open again for others, unless the claim is renewed."""
    verdict: Verdict | None = None
    text: str = ""
    """The corrected answer, where the verdict is `correct`."""
    reason: str = ""
    """Why the reviewer decided so."""
    ended_at: float | None = None
    waiter: TicketWaiter | None = field(default=None, repr=False, compare=False)
    """How `wait` waits: given by the queue that escalated it, and lost when the ticket is pickled or copied."""

    async def wait(self, timeout: float | None = None) -> "Ticket":  # noqa: ASYNC109 - what callers look for
        """Wait until the ticket has ended, and return it as it then is, with its verdict and text.

        Args:
            timeout: seconds to wait at most; None waits for as long as it takes.

        Raises:
            TimeoutError: it hasn't ended in time.
            ReviewError: the queue failed, or this ticket didn't come from `escalate` in this process.
        """
        if self.waiter is None:
            raise ReviewError(
                f"this copy of ticket {self.id} doesn't know its queue; wait with ReviewQueue.wait({self.id!r})"
            )
        return await self.waiter(self.id, timeout)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "waiter"}

    def __reduce__(self) -> "tuple[Callable[[], Ticket], tuple[()]]":
        return partial(Ticket, **self.to_dict()), ()
