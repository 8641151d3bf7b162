"""Who may sign in: people with a token, and people that a trusted reverse proxy vouches for."""

import ipaddress
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from ilis_guard import events
from ilis_guard.config.review import PageSettings, ReviewerSettings, Role
from ilis_guard.config.secrets import hash_token, matches_token_hash, read_token_hashes
from ilis_guard.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who signed in."""

    name: str
    role: Role

    @property
    def is_reviewer(self) -> bool:
        """Whether they may claim tickets and give verdicts, and not only look on."""
        return self.role == "reviewer"


class People:
    """Everybody in guard.yaml. Hashes that it refers to are read anew each time, so tokens change under way.

    Args:
        settings: of the page.

    Raises:
        ConfigError: somebody's token hash isn't where guard.yaml says it is.
    """

    def __init__(self, settings: PageSettings) -> None:
        self._reviewers = {reviewer.name: reviewer for reviewer in settings.reviewers}
        self._proxy = settings.proxy
        self._networks = [ipaddress.ip_network(address) for address in (self._proxy.addresses if self._proxy else ())]
        for reviewer in settings.reviewers:
            if reviewer.token is not None:
                read_token_hashes(reviewer.token)

    def with_token(self, token: str) -> tuple[Person, str] | None:
        """Whose token this is, and its hash; None where it is nobody's."""
        given = hash_token(token.strip())
        found = None
        for reviewer in self._reviewers.values():  # all of them, so that the time taken tells nothing
            if self._has(reviewer, given):
                found = _person(reviewer), given
        return found

    def still_with_token(self, name: str, given: str) -> Person | None:
        """The person, if a token with this hash is still theirs."""
        reviewer = self._reviewers.get(name)
        return _person(reviewer) if reviewer is not None and self._has(reviewer, given) else None

    def vouched_for(self, connection: HTTPConnection) -> Person | None:
        """Who a trusted proxy says it is; None where there is no such proxy, or guard.yaml doesn't know them."""
        if self._proxy is None or connection.client is None:
            return None
        try:
            peer = ipaddress.ip_address(connection.client.host)
        except ValueError:
            return None
        # Twice the header is once too often: one of them may be the client's own.
        names = connection.headers.getlist(self._proxy.header)
        if len(names) != 1 or not any(peer in network for network in self._networks):
            return None
        reviewer = self._reviewers.get(names[0])
        return None if reviewer is None else _person(reviewer)

    def _has(self, reviewer: ReviewerSettings, given: str) -> bool:
        if reviewer.token is None:
            return False
        try:
            return matches_token_hash(given, read_token_hashes(reviewer.token))
        except ConfigError as error:
            # Whose hash can't be read can't sign in; everybody else still can.
            events.log().error(events.REVIEWER_UNREADABLE, name=reviewer.name, error=str(error))
            return False


def _person(reviewer: ReviewerSettings) -> Person:
    return Person(name=reviewer.name, role=reviewer.role)
