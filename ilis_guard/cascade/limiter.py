"""The line in front of a tier: at most so many calls at once, the others wait."""

import threading
from contextlib import nullcontext

from ilis_guard.concurrency.deadline import Deadline


class Line:
    """Lets so many in at a time. Threads may share it.

    Args:
        max_concurrent: None lets everybody in.
    """

    def __init__(self, max_concurrent: int | None) -> None:
        self._free = max_concurrent
        """Places; None for any number."""
        self._changed = threading.Condition()

    def enter(self, deadline: Deadline | None) -> None:
        """Wait for a place; whoever has it calls `leave`, once.

        Raises:
            BudgetError: there was none until the deadline.
            ClientDisconnected: whoever asked has left.
        """
        if self._free is None:
            return
        cancel_token = None if deadline is None else deadline.cancel_token
        with nullcontext() if cancel_token is None else cancel_token.waking(self._changed), self._changed:

            def may_stop() -> bool:
                return self._free != 0 or (cancel_token is not None and cancel_token.is_cancelled)

            self._changed.wait_for(may_stop, timeout=None if deadline is None else deadline.left)
            if cancel_token is not None and cancel_token.is_cancelled:
                # It may have been woken for a place, which another one wants.
                self._changed.notify()
                cancel_token.check()
            if self._free == 0:
                assert deadline is not None, "without a deadline, the wait ends with a place"
                raise deadline.passed("; it waited in line for the tier (max_concurrent)")
            self._free -= 1

    def leave(self) -> None:
        """Give the place back."""
        if self._free is None:
            return
        with self._changed:
            self._free += 1
            self._changed.notify()
