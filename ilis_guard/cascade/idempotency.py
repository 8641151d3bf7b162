"""Idempotency: under an id that its caller gave, a decision is made once, however often it is asked for."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Final

from ilis_guard import events
from ilis_guard.cascade.escalation import Review, TransactionalReview
from ilis_guard.cascade.settlement import Settlement
from ilis_guard.errors import RequestConflictError, RequestError, ReviewError
from ilis_guard.text import has_half_characters
from ilis_guard.types import Decision

MAX_ID: Final = 255
"""Characters of an id."""
MAX_REMEMBERED: Final = 1_000
"""Decisions that a guard without a database remembers."""
_POLL_SECONDS: Final = 0.05
"""How often a request that waits for another one looks whether that was given up."""


class DecisionMemory:
    """Decisions by the ids that their callers gave them. Threads may share it.

    Args:
        review: keeps the decisions, if it does that for tickets in transactions; otherwise the newest are in memory.
    """

    def __init__(self, review: Review | None) -> None:
        self._store = review if isinstance(review, TransactionalReview) else None
        self._reads = True
        """Whether decisions are looked up in the store before they are made."""
        self._remembered: OrderedDict[str, tuple[str, Decision]] = OrderedDict()
        """Each with the digest of its request."""
        self._held: dict[str, tuple[str, Settlement | None]] = {}
        """Requests that are being decided: each one's digest and its settlement."""
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, id: str, digest: str, settlement: Settlement | None) -> Iterator[Decision | None]:  # noqa: A002 - a decision's word
        """Yield the decision that was made under an id; None where the caller is to make it, before the block ends.

        Waits while another thread makes it, unless that one's request was given up.

        Args:
            id: the caller's.
            digest: of the caller's request.
            settlement: of the caller's request.

        Raises:
            RequestConflictError: the id belongs to another request.
            ClientDisconnected: the caller's request was given up.
        """
        mine = (digest, settlement)
        self._take(id, mine)
        try:
            yield self._find(id, digest)
        finally:
            with self._changed:
                if self._held.get(id) is mine:
                    del self._held[id]
                    self._changed.notify_all()

    def check(self, id: str, digest: str) -> None:  # noqa: A002 - a decision's word
        """Check that an id wasn't given to another request.

        Raises:
            RequestConflictError: it was.
        """
        with self._changed:
            held = self._held.get(id)
        if held is not None:
            _check_same(id, digest, held[0])
        self._find(id, digest)

    def without_reading(self) -> "DecisionMemory":
        """Copy this memory for callers that can't wait for a database: they find nothing that only that keeps."""
        other = copy(self)
        other._reads = False  # noqa: SLF001 - it is another self
        return other

    def recorded(self, id: str, digest: str) -> Decision:  # noqa: A002 - a decision's word
        """The decision that another process recorded under an id.

        Raises:
            RequestConflictError: it was made on another request.
            ReviewError: it can't be read.
        """
        assert self._store is not None, "only a store records decisions"
        record = self._store.find_decision(id)
        if record is None:
            raise ReviewError(f"the decision {id!r} was recorded, and is gone; send the request again")
        _check_same(id, digest, record.digest)
        return record.decision()

    def _find(self, id: str, digest: str) -> Decision | None:  # noqa: A002 - a decision's word
        if self._store is None:
            with self._changed:
                found = self._remembered.get(id)
            if found is None:
                return None
            _check_same(id, digest, found[0])
            return found[1]
        try:
            record = self._store.find_decision(id) if self._reads else None
        except ReviewError as error:
            # If there is one, it's found when this one is recorded.
            events.log().warning(events.DECISION_NOT_FOUND, decision=id, error=type(error).__name__)
            return None
        if record is None:
            return None
        _check_same(id, digest, record.digest)
        return record.decision()

    def add(self, decision: Decision, digest: str) -> None:
        """Remember a decision, unless it lacks a ticket that it should have, or a database keeps it."""
        if self._store is not None or decision.ticket_error is not None:
            return
        with self._changed:
            self._remembered[decision.id] = (digest, decision)
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)

    def _take(self, id: str, mine: tuple[str, Settlement | None]) -> None:  # noqa: A002 - a decision's word
        digest, settlement = mine
        with self._changed:
            while (other := self._held.get(id)) is not None:
                if other[1] is not None and other[1].cancel_token.is_cancelled:
                    break  # it ends without a decision, whenever its model does
                _check_same(id, digest, other[0])
                if settlement is not None:
                    settlement.cancel_token.raise_if_cancelled()
                self._changed.wait(_POLL_SECONDS)
            self._held[id] = mine


def check_id(id: object) -> None:  # noqa: A002 - a decision's word
    """Check an id that a caller gives.

    Raises:
        RequestError: it is no id.
    """
    if not isinstance(id, str) or not 0 < len(id) <= MAX_ID or "\0" in id or has_half_characters(id):
        what = f"{len(id)} characters" if isinstance(id, str) else f"a {type(id).__name__}"
        raise RequestError(
            f"a decision's id has 1 to {MAX_ID} characters, without NUL and lone surrogates, got {what}", "id"
        )


def _check_same(id: str, digest: str, other: str) -> None:  # noqa: A002 - a decision's word
    if digest != other:
        raise RequestConflictError(f"the id {id!r} belongs to another request; give each request an id of its own")
