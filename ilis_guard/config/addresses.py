"""Addresses of webhooks: https to public hosts, and also http to internal hosts that guard.yaml lists.

These functions check the text of an address. A host's name doesn't say which IP address it has, so `sending` checks
the resolved address when it connects.
"""

import ipaddress
from collections.abc import Collection
from typing import Final

from ilis_guard.errors import ConfigError

_EXAMPLE: Final = "write for instance https://hooks.example.org/tickets"


def parse_host(url: str) -> str:
    """Return the host of an address as it is looked up: lower case, ASCII, no brackets.

    Raises:
        ConfigError: the address can't be used. The message doesn't quote it: it may be a secret.
    """
    return _parse(url)[1]


def check_address(url: str, internal_hosts: Collection[str]) -> str:
    """Check an endpoint's address, and return its host as `parse_host` does.

    Args:
        url: the endpoint's.
        internal_hosts: hosts that may have private IP addresses and plain http, as `normalize_host` returns them.

    Raises:
        ConfigError: no webhook may go there. The message doesn't quote the address: it may be a secret.
    """
    scheme, host = _parse(url)
    if scheme != "https" and not (scheme == "http" and host in internal_hosts):
        raise ConfigError(
            f"the endpoint's address must start with https://; {_EXAMPLE}. A host inside your own network may have "
            "http:// where `review.internal_hosts` lists it"
        )
    return host


def normalize_host(name: str) -> str:
    """Return an entry of `review.internal_hosts` as `parse_host` returns hosts.

    Raises:
        ConfigError: the entry isn't a bare name or IP address.
    """
    try:
        host = parse_host(f"https://[{name}]" if ":" in name else f"https://{name}")
    except ConfigError:
        host = ""
    if not host or any(mark in name for mark in "/?#@[]\\ "):
        raise ConfigError(
            f"an internal host is a bare name or address, such as hooks.internal or 10.0.0.7, got {name!r}"
        )
    return host


def is_loopback(host: str) -> bool:
    """Whether a host's name or IP address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(url: str) -> tuple[str, str]:
    """The scheme and the host."""
    import httpx  # takes 0.1 s, and files without endpoints don't need it

    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, ValueError):
        raise ConfigError(f"the endpoint's address can't be read; {_EXAMPLE}") from None
    if not host:
        raise ConfigError(f"the endpoint's address has no host; {_EXAMPLE}")
    if parsed.userinfo:
        raise ConfigError("the endpoint's address has a user or a password, which webhooks don't send; take it out")
    return parsed.scheme, host
