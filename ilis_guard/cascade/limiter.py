"""The line in front of a tier: at most so many calls at once, the others wait."""

import threading

from ilis_guard.concurrency.deadline import Deadline, wait_until
from ilis_guard.errors import ClientDisconnected


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
        with self._changed:
            try:
                has_place = wait_until(self._changed, lambda: self._free != 0, deadline)
            except ClientDisconnected:
                # This thread may have been notified of a place that another one waits for.
                self._changed.notify()
                raise
            if not has_place:
                assert deadline is not None, "without a deadline, the wait ends with a place"
                raise deadline.error("; it waited in line for the tier (max_concurrent)")
            self._free -= 1

    def leave(self) -> None:
        """Give the place back."""
        if self._free is None:
            return
        with self._changed:
            self._free += 1
            self._changed.notify()
