"""One try to send a webhook: what may be reached, how long it may take, and how little of the answer is believed."""

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Collection, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import version
from types import TracebackType
from typing import Final, Self

import certifi
import httpx
from httpx_secure import httpx_ssrf_protection

from ilis_guard.config import addresses

TRY_SECONDS: Final = 20.0
"""A try takes no longer, whatever the endpoint does."""
_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 15.0
"""Between two packets."""
_BODY_SECONDS: Final = 2.0
"""The status has decided when the body comes: it is read only so that the connection can be used again."""
_MOST_BYTES: Final = 64 * 1024
_QUOTED_BYTES: Final = 200
_LONGEST_WAIT: Final = 86_400.0
"""Seconds: no endpoint puts us off for more than a day."""
_NAME_SECONDS: Final = 60.0
"""How long a name's address is believed."""

_IPV6_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All that is routed in public; what lies outside is reserved, or was for sites (fec0::/10) or transitions."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

_is_sending: Final = ContextVar("_is_sending", default=False)


def _may_be_logged(_: logging.LogRecord) -> bool:
    """Whether it is none of ours: httpx logs every address, and an endpoint's may be a secret."""
    return not _is_sending.get()


logging.getLogger("httpx").addFilter(_may_be_logged)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How an endpoint took a try."""

    status: int | None = None
    """None where no answer came."""
    error: str = ""
    """What went wrong, in printable characters; empty where the endpoint took it."""
    retry_after: float | None = None
    """Seconds that the endpoint asked us to wait."""

    @property
    def is_taken(self) -> bool:
        """Whether the endpoint has it now."""
        return not self.error


class Sender:
    """Connections to endpoints, kept open between tries. Use it as an async context manager.

    Args:
        internal_hosts: may have any address, and plain http, as `addresses.normalize_host` writes them.
    """

    def __init__(self, internal_hosts: Collection[str]) -> None:
        self._internal_hosts = frozenset(internal_hosts)
        trusted = _trusted()
        self._public = httpx_ssrf_protection(
            _client(trusted), custom_validator=_is_no_detour, dns_cache_ttl=_NAME_SECONDS
        )
        self._internal = httpx_ssrf_protection(
            _client(trusted),
            check_globally_reachable=False,
            custom_validator=lambda host, _address, _port: host in self._internal_hosts,
            dns_cache_ttl=_NAME_SECONDS,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._public.aclose()
        await self._internal.aclose()

    async def send(self, url: str, headers: Mapping[str, str], body: str, *, now: float, may_quote: bool) -> Answer:
        """Post a body once. Whatever the endpoint does becomes an answer; nothing it says is followed or run.

        Args:
            url: where the endpoint is.
            headers: beside those that every post has.
            body: JSON.
            now: seconds since the epoch, for a ``Retry-After`` that is a date.
            may_quote: whether the error may quote the beginning of what the endpoint says. It may say again what it
                was told.

        Raises:
            ConfigError: nothing may be sent to this address.
        """
        host = addresses.check_address(url, self._internal_hosts)
        client = self._internal if host in self._internal_hosts else self._public
        answer: Answer | None = None
        _is_sending.set(True)
        try:
            async with asyncio.timeout(TRY_SECONDS):
                async with client.stream("POST", url, content=body.encode(), headers=dict(headers)) as response:
                    beginning = await _beginning(response)
                    answer = _answer(response, beginning if may_quote else b"", now=now)
        except TimeoutError:
            answer = answer or Answer(error=f"no answer within {TRY_SECONDS:g} s")
        except httpx.HTTPError as error:
            answer = answer or Answer(error=_printable(f"{type(error).__name__}: {error}"))
        finally:
            _is_sending.set(False)
        return answer


def _client(trusted: ssl.SSLContext) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=trusted,
        # No proxy, no .netrc: the environment of the process says nothing of endpoints.
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={
            "user-agent": f"ilis_guard/{version('ilis-guard')}",
            "content-type": "application/json",
            # A compressed body could be a bomb; it isn't unpacked either.
            "accept-encoding": "identity",
        },
        timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30.0),
    )


def _trusted() -> ssl.SSLContext:
    """The public authorities, and those that this machine trusts (or SSL_CERT_FILE names): hosts inside have others."""
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    return context


def _is_no_detour(_host: str, address: _Address, _port: int) -> bool:
    """Whether an address that counts as public doesn't lead elsewhere: to many hosts, or through a tunnel."""
    if isinstance(address, ipaddress.IPv4Address):
        return not address.is_multicast
    # What a NAT64 address leads to was looked at before.
    is_tunnel = address.sixtofour is not None or address.teredo is not None
    return address in _NAT64 or (address in _IPV6_UNICAST and not is_tunnel)


async def _beginning(response: httpx.Response) -> bytes:
    """What comes of the body in time, up to a limit, as it was sent. The rest is left unread."""
    read = bytearray()
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(_BODY_SECONDS):
            async for some in response.aiter_raw():
                read += some[: _MOST_BYTES - len(read)]
                if len(read) >= _MOST_BYTES:
                    break
    return bytes(read[:_QUOTED_BYTES])


def _answer(response: httpx.Response, beginning: bytes, *, now: float) -> Answer:
    status = response.status_code
    if response.is_success:
        return Answer(status=status)
    what = f"answered {status}"
    if response.is_redirect or response.has_redirect_location:
        what += ", a redirect, which isn't followed"
    if said := _printable(beginning.decode(errors="replace").strip()):
        what += f": {said}"
    return Answer(status=status, error=what, retry_after=_retry_after(response.headers.get("retry-after", ""), now))


def _retry_after(text: str, now: float) -> float | None:
    """Seconds in a header that holds seconds or a date; None where it holds neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
            # A date without a zone is meant as GMT, which is the only one the header knows.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT)


def _printable(text: str) -> str:
    """A short text in which nothing steers a terminal or a page."""
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text[:_QUOTED_BYTES]
    )
