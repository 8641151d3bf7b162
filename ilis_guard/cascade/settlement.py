"""How a request ends: it is given up, or it is decided; never both, and never half."""

import threading

from ilis_guard.concurrency.cancellation import CancelToken
from ilis_guard.types import Decision


class Settlement:
    """The end of one request. Threads may share it.

    A request may be given up until its decision is made. While the decision's ticket is being stored, its client may
    still leave, and then nothing is stored. Its time can't run out any more: the ticket is stored, with the answer
    that it proposes, and whoever can't wait for that gets the `pending` decision, which promises nothing.
    """

    def __init__(self) -> None:
        self.cancel_token = CancelToken()
        """Cancelled when the request is given up; committed when its decision counts."""
        self._pending: Decision | None = None
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Give the request up because its client has left; without effect once it is committed."""
        self.cancel_token.cancel()

    def expire(self) -> Decision | None:
        """Give the request up because its time is over, unless its decision is made, which then stands.

        Returns:
            None where it is given up. Otherwise the decision as it is while its ticket is being stored.
        """
        with self._lock:
            if self._pending is None or self.cancel_token.is_cancelled:
                self.cancel_token.cancel()
                return None
            self.cancel_token.commit()
            return self._pending

    def begin(self, pending: Decision) -> None:
        """Make the decision; what belongs to it may be stored now.

        Args:
            pending: the decision as it is while that isn't stored.

        Raises:
            ClientDisconnected: the request was given up.
        """
        with self._lock:
            self.cancel_token.raise_if_cancelled()
            self._pending = pending

    def commit(self) -> None:
        """Pass the point of no return, right before what belongs to the decision is committed.

        Raises:
            ClientDisconnected: the request was given up.
        """
        self.cancel_token.commit()
