"""Errors of providers' libraries: whether another call may succeed, by what the error says, its type and its causes.

None of these libraries is imported: a class is known by its name and by the package that it comes from.
"""

import errno
import http.client
import socket
import ssl
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from ilis_guard.errors import ModelError, TransientModelError

RETRYABLE_STATUSES: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
        *range(500, 600),
    }
)
GRPC_CODES: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("ABORTED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"), True),
    **dict.fromkeys(
        ("ALREADY_EXISTS", "CANCELLED", "DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND"), False
    ),
    **dict.fromkeys(("OUT_OF_RANGE", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"), False),
}
"""gRPC's status codes, and whether the same call may succeed later; as the HTTP statuses that Google gives them."""
RETRYABLE_CODES: Final = frozenset(
    {
        # AWS, in capitals or not; in the middle of a stream they come with a status that says nothing.
        *("internalfailure", "internalserverexception", "modelnotreadyexception", "modelstreamerrorexception"),
        *("modeltimeoutexception", "provisionedthroughputexceededexception", "requestlimitexceeded"),
        *("requesttimeout", "requesttimeoutexception", "serviceunavailable", "serviceunavailableexception", "slowdown"),
        *("throttledexception", "throttling", "throttlingexception", "toomanyrequestsexception"),
        # Anthropic, then OpenAI: an error in the middle of a stream has the status 200, or none.
        *("api_error", "overloaded_error", "rate_limit_error", "timeout_error"),
        *("rate_limit_exceeded", "server_error"),
    }
)
"""Words of providers, lower case, for what passes by itself."""
STATUS_NAMES: Final = ("status_code", "status", "http_status", "code")
"""The attributes in which libraries keep an HTTP status: OpenAI and most others; aiohttp; some; Google."""
TRANSIENT_CLASSES: Final[Mapping[str, frozenset[str]]] = {
    "aiohttp": frozenset({"ClientConnectionError", "ClientPayloadError"}),
    "anyio": frozenset({"BrokenResourceError", "ClosedResourceError", "EndOfStream"}),
    "azure": frozenset({"IncompleteReadError", "ServiceRequestError", "ServiceResponseError"}),
    "botocore": frozenset({"HTTPClientError", "IncompleteReadError", "ResponseStreamingError"}),
    "google": frozenset({"RetryError", "TransportError"}),
    "httpcore": frozenset({"NetworkError", "RemoteProtocolError"}),
    "httpx": frozenset({"NetworkError", "RemoteProtocolError"}),
    "requests": frozenset({"ChunkedEncodingError", "ConnectionError"}),
    "urllib": frozenset({"NewConnectionError", "ProtocolError"}),
    "websockets": frozenset({"ConnectionClosedError"}),
}
"""By package, without the number of its generation (httpx2): base classes of errors on the way to the provider, besides
time-outs, whose names say so."""
TRANSIENT_NAMES: Final = frozenset({"APIConnectionError"})
"""What the clients that are generated for OpenAI, Anthropic, Groq and others call an error on the way."""
TIMEOUT_NAMES: Final = ("timeout", "timedout")
LASTING_NAMES: Final = frozenset(
    {"LocalProtocolError", "ProxyConnectionError", "SSLError", "ClientConnectorCertificateError", "UnsupportedProtocol"}
)
"""Errors on the way that stay: of the caller's own making, or a certificate that isn't trusted."""
UNSENT_NAMES: Final = frozenset(
    {"ClientConnectorError", "ConnectError", "ConnectTimeout", "ConnectTimeoutError", "ConnectionTimeoutError"}
    | {"EndpointConnectionError", "NewConnectionError", "PoolTimeout"}
)
"""Errors on the way before anything was sent: no provider has read, written or billed a thing."""
TRANSIENT_ERRNOS: Final = frozenset(
    {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EPIPE}
)
LONGEST_CHAIN: Final = 50
"""Errors of one chain that are looked at, and groups in one another."""


def as_model_error(error: Exception, model: str) -> ModelError:
    """Convert the error of a chat model's integration.

    Args:
        error: its message may quote the prompt, so it is dropped.
        model: the integration's class.
    """
    status = next((found for each in _chain(error) if (found := _status(each)) is not None), None)
    of_status = "" if status is None else f" (status {status})"
    message = f"{model} didn't answer: {type(error).__name__}{of_status}"
    if is_transient(error):
        return TransientModelError(message, is_reply_lost=_is_reply_lost(error))
    return ModelError(message)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed if it is made again.

    What an error, or else one of its causes, says in so many words counts: LangChain's flag, a code, a status. Where
    none does, their types count: an error on the way to the provider passes, unless it is one of the caller's own
    making. Of a group of errors, each must pass.
    """
    return _passes(error, depth=0)


def _is_reply_lost(error: BaseException) -> bool:
    """Whether a call was made whose reply never came whole, so that nobody knows what it took.

    A reply with the status of a failure did come.
    """
    chain = list(_chain(error))
    if any(_status(each) is not None or _is_unsent(each) for each in chain):
        return False
    return any(map(_is_on_the_way, chain))


def _is_unsent(error: BaseException) -> bool:
    if isinstance(error, ConnectionRefusedError | socket.gaierror):
        return True
    return any(kind.__name__ in UNSENT_NAMES for kind in type(error).__mro__)


def _passes(error: BaseException, *, depth: int) -> bool:
    if depth == LONGEST_CHAIN:
        return False
    chain = list(_chain(error))
    said = next((found for each in chain if (found := _said(each)) is not None), None)
    if said is not None:
        return said
    if isinstance(group := chain[-1], BaseExceptionGroup):
        return all(_passes(each, depth=depth + 1) for each in group.exceptions)
    return not any(map(_is_lasting, chain)) and any(map(_is_on_the_way, chain))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it, the outermost first, up to the first group, whose members have chains of their own.

    Libraries raise errors from another, while handling another, even `from None`, or with another as their `reason`.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen and len(seen) < LONGEST_CHAIN:
        seen.add(id(found))
        yield found
        if isinstance(found, BaseExceptionGroup):
            return
        reason = _attribute(found, "reason")
        found = found.__cause__ or found.__context__ or (reason if isinstance(reason, BaseException) else None)


def _said(error: BaseException) -> bool | None:
    """Whether the error itself says that it passes; None where it doesn't say."""
    if isinstance(flag := _attribute(error, "is_retryable"), bool):  # LangChain's
        return flag
    if _attribute(error, "retryable") is True:  # Google's, where false is only the default
        return True
    for code in _codes(error):
        if code.lower() in RETRYABLE_CODES:
            return True
        if code in GRPC_CODES:
            return GRPC_CODES[code]
    status = _status(error)
    return None if status is None else status in RETRYABLE_STATUSES


def _status(error: BaseException) -> int | None:
    """The HTTP status of a failure that the error tells of, by itself or by its response; None where there is none."""
    response = _attribute(error, "response")
    metadata = response.get("ResponseMetadata") if isinstance(response, Mapping) else None  # botocore
    of_metadata = metadata.get("HTTPStatusCode") if isinstance(metadata, Mapping) else None
    found = [*(_attribute(each, name) for each in (error, response) for name in STATUS_NAMES), of_metadata]
    return next((int(each) for each in found if type(each) in (int, HTTPStatus) and 400 <= each < 600), None)


def _codes(error: BaseException) -> Iterator[str]:
    """What providers call the failure: gRPC's code, AWS's, and the type in a body of JSON."""
    code = _attribute(error, "code")
    if callable(code) and any(_package(kind) == "grpc" for kind in type(error).__mro__):
        code = _called(code)
    body, response = _attribute(error, "body"), _attribute(error, "response")
    named = [code, *(_attribute(error, name) for name in ("status", "grpc_status_code", "type"))]
    for holder in (body, response):
        inner = holder.get("error", holder.get("Error")) if isinstance(holder, Mapping) else None
        for each in (holder, inner):
            named += [each.get(name) for name in ("type", "code", "Code")] if isinstance(each, Mapping) else []
    for each in named:
        name = _attribute(each, "name") if not isinstance(each, str) else each
        if isinstance(name, str):
            yield name


def _is_on_the_way(error: BaseException) -> bool:
    """Whether the error's type says that no reply came: a time-out, a connection that broke or never was."""
    if isinstance(error, ConnectionError | TimeoutError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return True
    if isinstance(error, http.client.IncompleteRead | http.client.BadStatusLine):
        return True
    if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
        return True
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return any(
        kind.__name__ in TRANSIENT_NAMES
        or kind.__name__ in TRANSIENT_CLASSES.get(_package(kind), ())
        or any(name in kind.__name__.lower() for name in TIMEOUT_NAMES)
        for kind in type(error).__mro__
    )


def _is_lasting(error: BaseException) -> bool:
    if isinstance(error, ssl.SSLCertVerificationError):
        return True
    kinds = type(error).__mro__
    return any(kind.__name__ in LASTING_NAMES and _package(kind) in TRANSIENT_CLASSES for kind in kinds)


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0].rstrip("0123456789")


def _attribute(error: object, name: str) -> Any:
    """An attribute of a stranger's object, whose properties may raise anything; None where there is none."""
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - httpx raises for a response that there isn't, others for their own reasons
        return None


def _called(method: Any) -> Any:
    try:
        return method()
    except Exception:  # noqa: BLE001 - as in `_attribute`
        return None
