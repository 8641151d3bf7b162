"""The line in front of a tier: at most so many calls at once, the others wait."""

import threading

from ilis_guard.calling.deadline import Deadline


class Line:
    """Lets so many in at a time. Threads may share it.

    Args:
        max_concurrent: None lets everybody in.
    """

    def __init__(self, max_concurrent: int | None) -> None:
        self._places = None if max_concurrent is None else threading.BoundedSemaphore(max_concurrent)

    def enter(self, deadline: Deadline | None) -> None:
        """Wait for a place; whoever has it calls `leave`, once.

        Raises:
            BudgetError: there was none until the deadline.
        """
        if self._places is None:
            return
        if not self._places.acquire(timeout=None if deadline is None else deadline.left):
            assert deadline is not None, "without a deadline, acquire waits"
            raise deadline.passed("; it waited in line for the tier (max_concurrent)")

    def leave(self) -> None:
        """Give the place back."""
        if self._places is not None:
            self._places.release()
