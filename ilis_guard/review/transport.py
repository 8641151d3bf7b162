"""Send one webhook: to public hosts only, within a time limit, trusting little of the response."""

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Collection, Mapping
from contextlib import suppress
from contextvars import ContextVar
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
from ilis_guard.errors import error_text
from ilis_guard.review.outbox import SendResult

TRY_SECONDS: Final = 20.0
"""Time limit of a try, whatever the endpoint does."""
_CONNECT_SECONDS: Final = 5.0
_READ_SECONDS: Final = 15.0
"""Between two packets."""
_BODY_SECONDS: Final = 2.0
"""The status has decided before the body comes: reading the body only lets the connection be used again."""
_MAX_BODY_BYTES: Final = 64 * 1024
_MAX_QUOTE: Final = 200
"""Bytes, or characters, of what an endpoint says."""
_MAX_RETRY_AFTER: Final = 86_400.0
"""Seconds: no endpoint may delay a retry by more than a day."""
_DNS_CACHE_SECONDS: Final = 60.0

_IPV6_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""All publicly routed addresses; others are reserved, or were for sites (fec0::/10) or transitions."""
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

_is_sending: Final = ContextVar("_is_sending", default=False)


def _is_not_ours(_: logging.LogRecord) -> bool:
    """Drop httpx's log of our requests: it logs every URL, and an endpoint's may be a secret."""
    return not _is_sending.get()


logging.getLogger("httpx").addFilter(_is_not_ours)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class WebhookTransport:
    """Connections to endpoints, kept open between tries. Use it as an async context manager.

    Args:
        internal_hosts: hosts that may have any address, and plain http, as `addresses.normalize_host` writes them.
    """

    def __init__(self, internal_hosts: Collection[str]) -> None:
        self._internal_hosts = frozenset(internal_hosts)
        context = _ssl_context()
        self._public = httpx_ssrf_protection(
            _client(context), custom_validator=_is_direct, dns_cache_ttl=_DNS_CACHE_SECONDS
        )
        self._internal = httpx_ssrf_protection(
            _client(context),
            check_globally_reachable=False,
            custom_validator=lambda host, _address, _port: host in self._internal_hosts,
            dns_cache_ttl=_DNS_CACHE_SECONDS,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._public.aclose()
        await self._internal.aclose()

    async def send(self, url: str, headers: Mapping[str, str], body: str, *, now: float, may_quote: bool) -> SendResult:
        """Post a body once. Whatever the endpoint does becomes a result; redirects aren't followed.

        Args:
            url: of the endpoint.
            headers: beside those of every request.
            body: JSON.
            now: seconds since the epoch, for a ``Retry-After`` that is a date.
            may_quote: whether the error may quote the beginning of the response, which may repeat the message.

        Raises:
            ConfigError: the URL isn't allowed.
        """
        host = addresses.check_address(url, self._internal_hosts)
        client = self._internal if host in self._internal_hosts else self._public
        result: SendResult | None = None
        _is_sending.set(True)
        try:
            async with asyncio.timeout(TRY_SECONDS):
                async with client.stream("POST", url, content=body.encode(), headers=dict(headers)) as response:
                    beginning = await _beginning(response)
                    result = _result(response, beginning if may_quote else b"", now=now)
        except TimeoutError:
            result = result or SendResult(error=f"no answer within {TRY_SECONDS:g} s")
        except httpx.HTTPError as error:
            result = result or SendResult(error=_printable(f"{type(error).__name__}: {error_text(error)}"))
        finally:
            _is_sending.set(False)
        return result


def _client(context: ssl.SSLContext) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=context,
        # No proxy and no .netrc from the environment.
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={
            "user-agent": f"ilis_guard/{version('ilis-guard')}",
            "content-type": "application/json",
            # A compressed body could be a bomb; nothing unpacks it either.
            "accept-encoding": "identity",
        },
        timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30.0),
    )


def _ssl_context() -> ssl.SSLContext:
    """Trust the public authorities, and those of this machine (or SSL_CERT_FILE), which internal hosts may need."""
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    return context


def _is_direct(_host: str, address: _Address, _port: int) -> bool:
    """Whether a public address is neither multicast nor a tunnel."""
    if isinstance(address, ipaddress.IPv4Address):
        return not address.is_multicast
    # The library has checked the IPv4 address inside a NAT64 address.
    is_tunnel = address.sixtofour is not None or address.teredo is not None
    return address in _NAT64 or (address in _IPV6_UNICAST and not is_tunnel)


async def _beginning(response: httpx.Response) -> bytes:
    """Read the raw body up to a time and a size limit; return its beginning."""
    read = bytearray()
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in response.aiter_raw():
                read += chunk[: _MAX_BODY_BYTES - len(read)]
                if len(read) >= _MAX_BODY_BYTES:
                    break
    return bytes(read[:_MAX_QUOTE])


def _result(response: httpx.Response, beginning: bytes, *, now: float) -> SendResult:
    status = response.status_code
    if response.is_success:
        return SendResult(status=status)
    error = f"answered {status}"
    if response.is_redirect or response.has_redirect_location:
        error += ", a redirect, which isn't followed"
    if quote := _printable(beginning.decode(errors="replace").strip()):
        error += f": {quote}"
    return SendResult(
        status=status, error=error, retry_after=_retry_after(response.headers.get("retry-after", ""), now)
    )


def _retry_after(text: str, now: float) -> float | None:
    """Return the seconds of a header that holds seconds or a date; None where it holds neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
            # The header's dates are in GMT, also where they don't say so.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER)


def _printable(text: str) -> str:
    """Shorten a text and escape what could control a terminal or a page."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:_MAX_QUOTE])
