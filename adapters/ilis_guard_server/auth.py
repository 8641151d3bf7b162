"""Authentication: API keys, users who sign in by token or by a trusted proxy, and their sessions.

Sessions and the count of failed sign-ins live in this process: a restart signs everybody out. Their times are those of
a monotonic clock.
"""

import ipaddress
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import HTTPConnection

from ilis_guard import events
from ilis_guard.config.review import PageSettings, Role
from ilis_guard.config.secrets import hash_token, matches_token_hash, read_token_hashes
from ilis_guard.errors import ConfigError

SESSION_SECONDS: Final = 12 * 3600.0
MAX_SESSIONS: Final = 10_000
"""The oldest end where there would be more."""
MAX_FAILURES: Final = 10
FAILURE_SECONDS: Final = 300.0
"""After so many wrong tokens within so many seconds, an address has to wait."""
MAX_ADDRESSES: Final = 10_000


class Credentials:
    """Owners of tokens, by the hashes of these tokens.

    Hashes that guard.yaml refers to are read at each check, so tokens can be changed while the server runs. An owner
    whose hash can't be read is shut out; the others are not.

    Args:
        settings: by owner: the hashes of one or two tokens, or where they stand; None where the owner has no token.
        command: makes a token and its hash, such as ``ilis-guard api-key``.
        shut_out: the event to log where an owner's hash can't be read.

    Raises:
        ConfigError: a hash isn't where guard.yaml says it is.
    """

    def __init__(self, settings: Mapping[str, str | None] | Mapping[str, str], *, command: str, shut_out: str) -> None:
        self._settings = dict(settings)
        self._command = command
        self._shut_out = shut_out
        for setting in self._settings.values():
            self._read(setting)

    def __bool__(self) -> bool:
        """Whether anybody is known."""
        return bool(self._settings)

    def find(self, token: str) -> tuple[str, str] | None:
        """The owner of a token and the token's hash; None where nobody has it."""
        given, found = hash_token(token), None
        for name in self._settings:  # all of them, so that the time taken tells nothing
            if self.matches(name, given):
                found = name, given
        return found

    def matches(self, name: str, given: str) -> bool:
        """Whether a hash is that of one of the owner's tokens."""
        try:
            return matches_token_hash(given, self._read(self._settings.get(name)))
        except ConfigError as error:
            events.log().error(self._shut_out, name=name, error=str(error))
            return False

    def _read(self, setting: str | None) -> Sequence[str]:
        """The hashes: none, one, or two while tokens are changed."""
        return () if setting is None else read_token_hashes(setting, command=self._command)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who may use the reviewers' page."""

    name: str
    role: Role

    @property
    def is_reviewer(self) -> bool:
        """Whether they may claim tickets and give verdicts."""
        return self.role == "reviewer"


class Users:
    """Everybody in guard.yaml who may use the reviewers' page.

    Args:
        settings: of the page.

    Raises:
        ConfigError: a token's hash isn't where guard.yaml says it is.
    """

    def __init__(self, settings: PageSettings) -> None:
        self._users = {each.name: User(name=each.name, role=each.role) for each in settings.reviewers}
        tokens = {each.name: each.token for each in settings.reviewers}
        self._credentials = Credentials(
            tokens, command="ilis-guard reviewer-token", shut_out=events.REVIEWER_UNREADABLE
        )
        self._proxy = settings.proxy
        self._networks = [ipaddress.ip_network(address) for address in (self._proxy.addresses if self._proxy else ())]

    def find_by_token(self, token: str) -> tuple[User, str] | None:
        """The user whose token this is, and its hash; None where it is nobody's."""
        found = self._credentials.find(token.strip())
        return None if found is None else (self._users[found[0]], found[1])

    def find_by_hash(self, name: str, given: str) -> User | None:
        """The user of this name, if a token with this hash is still theirs."""
        return self._users.get(name) if self._credentials.matches(name, given) else None

    def find_by_proxy(self, connection: HTTPConnection) -> User | None:
        """The user whom a trusted proxy names; None without such a proxy, and for names that guard.yaml lacks."""
        if self._proxy is None or connection.client is None:
            return None
        try:
            peer = ipaddress.ip_address(connection.client.host)
        except ValueError:
            return None
        # Of two such headers, one may be the client's own.
        names = connection.headers.getlist(self._proxy.header)
        if len(names) != 1 or not any(peer in network for network in self._networks):
            return None
        return self._users.get(names[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One user's, from signing in until it ends."""

    name: str
    token_hash: str
    """Of the token they signed in with; empty where the proxy named them."""
    ends_at: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """Forms must carry it, so that no other site's form does anything here."""


class Sessions:
    """All sessions, by the key that stands in the cookie."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self, name: str, token_hash: str) -> str:
        """Open a session, and return its key."""
        key = secrets.token_urlsafe(32)
        session = Session(name=name, token_hash=token_hash, ends_at=self._clock() + SESSION_SECONDS)
        with self._lock:
            self._sessions[key] = session
            while len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return key

    def get(self, key: str) -> Session | None:
        """The session; None where there was none or it has ended."""
        with self._lock:
            session = self._sessions.get(key)
            if session is not None and session.ends_at <= self._clock():
                del self._sessions[key]
                return None
            return session

    def end(self, key: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(key, None)


class SignInLimit:
    """Counts wrong tokens by the address that they came from."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def seconds_to_wait(self, address: str) -> float:
        """Seconds until an address may try again; 0 where it may now."""
        with self._lock:
            failures = self._failures.get(address, ())
            recent = [at for at in failures if at > self._clock() - FAILURE_SECONDS]
            return recent[0] + FAILURE_SECONDS - self._clock() if len(recent) >= MAX_FAILURES else 0.0

    def add_failure(self, address: str) -> None:
        """Count a wrong token."""
        with self._lock:
            self._failures.setdefault(address, deque(maxlen=MAX_FAILURES)).append(self._clock())
            self._failures.move_to_end(address)
            while len(self._failures) > MAX_ADDRESSES:
                self._failures.popitem(last=False)
