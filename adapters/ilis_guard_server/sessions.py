"""Who is signed in, and how often somebody may try.

Both live in this process: a restart signs everybody out, and a session that is ended is gone. Times are those of a
clock that can't be set.
"""

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

SESSION_SECONDS: Final = 12 * 3600.0
MOST_SESSIONS: Final = 10_000
"""The oldest end where there would be more."""

FAILURES: Final = 10
FAILURE_SECONDS: Final = 300.0
"""After so many wrong tokens within so many seconds, an address has to wait."""
MOST_ADDRESSES: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody's, from signing in until it ends."""

    name: str
    token_hash: str
    """Of the token they signed in with; empty where the proxy vouched for them."""
    ends_at: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """What forms must carry, so that no other site's form does anything here."""


class Sessions:
    """All sessions, by the key that stands in the cookie."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self, name: str, token_hash: str) -> str:
        """Begin a session; its key."""
        key = secrets.token_urlsafe(32)
        session = Session(name=name, token_hash=token_hash, ends_at=self._clock() + SESSION_SECONDS)
        with self._lock:
            self._sessions[key] = session
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return key

    def get(self, key: str) -> Session | None:
        """The session; None where it never was or has ended."""
        with self._lock:
            session = self._sessions.get(key)
            if session is not None and session.ends_at <= self._clock():
                del self._sessions[key]
                return None
            return session

    def end(self, key: str) -> None:
        """End it."""
        with self._lock:
            self._sessions.pop(key, None)


class SignInLimit:
    """Counts wrong tokens by the address they came from."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> float:
        """Seconds until an address may try again; 0 where it may now."""
        with self._lock:
            failures = self._failures.get(address, ())
            recent = [at for at in failures if at > self._clock() - FAILURE_SECONDS]
            return recent[0] + FAILURE_SECONDS - self._clock() if len(recent) >= FAILURES else 0.0

    def failed(self, address: str) -> None:
        """Note that a token from this address was wrong."""
        with self._lock:
            self._failures.setdefault(address, deque(maxlen=FAILURES)).append(self._clock())
            self._failures.move_to_end(address)
            while len(self._failures) > MOST_ADDRESSES:
                self._failures.popitem(last=False)
