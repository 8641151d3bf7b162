"""Where a webhook may go: https to public addresses, and to internal hosts that guard.yaml names one by one.

A name says nothing of where it leads, so what it resolves to is checked again when the connection is made (see
`sending`). Here is what the text of an address already tells.
"""

from collections.abc import Collection
from typing import Final

import httpx

from ilis_guard.errors import ConfigError

_EXAMPLE: Final = "write for instance https://hooks.example.org/tickets"


def host_in(url: str) -> str:
    """The host that an address leads to, as it is looked up: lower case, ASCII, no brackets.

    Raises:
        ConfigError: the address can't be used whatever its host is; it isn't shown, for it may be a secret.
    """
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii").lower()
    except (httpx.InvalidURL, ValueError):
        raise ConfigError(f"the endpoint's address can't be read; {_EXAMPLE}") from None
    if not host:
        raise ConfigError(f"the endpoint's address has no host; {_EXAMPLE}")
    if parsed.userinfo:
        raise ConfigError("the endpoint's address has a user or a password in it, which webhooks don't send; leave it")
    return host


def check(url: str, internal_hosts: Collection[str]) -> str:
    """Check an address, and return its host as `host_in` does.

    Args:
        url: where an endpoint is.
        internal_hosts: hosts that may have any address, and plain http, as `host_in` writes them.

    Raises:
        ConfigError: nothing may be sent there; the address isn't shown, for it may be a secret.
    """
    host = host_in(url)
    schemes = ("https", "http") if host in internal_hosts else ("https",)
    if httpx.URL(url).scheme not in schemes:
        raise ConfigError(
            f"the endpoint's address must start with https://; {_EXAMPLE}. A host inside your own network may have "
            "http:// where `review.internal_hosts` names it"
        )
    return host


def host(name: str) -> str:
    """One of `review.internal_hosts`, as `host_in` writes it.

    Raises:
        ConfigError: it isn't a host's bare name or address.
    """
    try:
        normal = host_in(f"https://[{name}]" if ":" in name else f"https://{name}")
    except ConfigError:
        normal = ""
    if not normal or any(mark in name for mark in "/?#@[]\\ "):
        what = "an internal host is a bare name or address, such as hooks.internal or 10.0.0.7"
        raise ConfigError(f"{what}, got {name!r}")
    return normal
