"""What guard.yaml says of the reviewers' page: where it is, who may sign in and how, and who may send verdicts."""

import hashlib
import ipaddress
import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ilis_guard.config.queues import Name

Role = Literal["reviewer", "viewer"]
"""A `viewer` looks on; a `reviewer` also claims tickets and gives verdicts."""
_TOKEN_HASHES: Final = re.compile(r"sha256:[0-9a-f]{64}(?:\s+sha256:[0-9a-f]{64})?")


def are_token_hashes(text: str) -> bool:
    """Whether a text is one sign-in token's hash, or two with white space between them while tokens are changed."""
    return _TOKEN_HASHES.fullmatch(text) is not None


def token_hash(token: str) -> str:
    """A sign-in token's hash, as guard.yaml holds it. Tokens are long and random: a slow hash would add nothing."""
    return f"sha256:{hashlib.sha256(token.encode(errors='replace')).hexdigest()}"


def _checked_url(url: str) -> str:
    """The address without a slash at its end."""
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("an address is a scheme, a host and perhaps a port: https://review.example.org")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ValueError("the page needs https, or http on this machine alone (127.0.0.1, ::1, localhost)")
    return url.rstrip("/")


def _checked_network(address: str) -> str:
    ipaddress.ip_network(address)
    return address


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ReviewerSettings(_Section):
    """Who may sign in."""

    name: Name
    """As tickets and their history show it."""
    role: Role = "reviewer"
    token: str | None = Field(default=None, min_length=1)
    """The hash of a sign-in token, as ``ilis-guard reviewer-token`` prints it, or where it stands: ``${NAME}`` in the
    environment, or ``file:PATH``. Without one, they sign in at the proxy only."""


class ProxySettings(_Section):
    """A reverse proxy that has signed reviewers in before it passes their requests on."""

    header: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")
    """The header in which it says who it is; the proxy must remove it from what it is sent."""
    addresses: tuple[Annotated[str, AfterValidator(_checked_network)], ...] = Field(min_length=1)
    """Where it connects from, such as ``10.0.0.7`` or ``10.0.0.0/24``; from elsewhere the header counts for nothing."""


class PageSettings(_Section):
    """The reviewers' page."""

    url: Annotated[str, AfterValidator(_checked_url)]
    """Where reviewers reach it, such as ``https://review.example.org``."""
    reviewers: tuple[ReviewerSettings, ...] = ()
    """Nobody else gets in, whether by token or by proxy."""
    proxy: ProxySettings | None = None
    verdict_secret: str | None = Field(default=None, min_length=1)
    """Where the secret stands with which other tools sign verdicts: ``${NAME}`` in the environment, or ``file:PATH``.
    Without one, verdicts come from the page only."""

    def ticket_url(self, id: str) -> str:  # noqa: A002 - the ticket's word for it
        """Where a ticket is looked at."""
        return f"{self.url}/tickets/{id}"
