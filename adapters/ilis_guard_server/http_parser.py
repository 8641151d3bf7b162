"""The HTTP/1.1 parser, which refuses what a proxy in front of us could read in another way (request smuggling)."""

import re
from http import HTTPStatus
from typing import Any, Final

import h11

MAX_HEAD_BYTES: Final = 32 * 1024
"""Of a request's head, and of a chunked body's trailer: proxies that sign people in set large cookies."""
MAX_HEADERS: Final = 100
_FREE_CHUNKS: Final = 1024
_BYTES_A_CHUNK: Final = 64
"""A chunked body has at most so many chunks, and one more for each so many bytes: a megabyte in chunks of one byte each
takes half a minute to parse, in which nobody else is answered."""

# As h11 finds a head's end.
_HEAD_END: Final = re.compile(rb"\n\r?\n")


class Parser(h11.Connection):
    """The server's side of a connection.

    h11 is lenient where the standard lets it be: it drops the second of two equal lengths, a length beside chunks, and
    the fold of a folded header. A proxy that keeps the other one forwards another request than the one that we read.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.status = HTTPStatus.BAD_REQUEST
        """With which what couldn't be parsed is to be refused."""
        self._chunks = 0
        self._body_bytes = 0

    @property
    def is_receiving(self) -> bool:
        """Whether the client may still send a part of its request."""
        return self.their_state in (h11.SEND_BODY, h11.ERROR) or self.has_partial_head

    @property
    def has_partial_head(self) -> bool:
        """Whether the beginning of a head has come, and not its end."""
        return self.their_state is h11.IDLE and bool(self.trailing_data[0])

    def next_event(self) -> Any:
        """Parse the next event.

        Raises:
            h11.RemoteProtocolError: it isn't valid, or it is ambiguous; `status` says how to refuse it.
        """
        try:
            if self.their_state is h11.IDLE:
                self._check_head()
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._chunks = self._body_bytes = 0
                _check_target(event)
            elif isinstance(event, h11.Data):
                self._check_chunks(event)
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                self.status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise
        return event

    def send(self, event: h11.Event) -> Any:
        """Serialise an event. A response to a body that hasn't come whole closes the connection, and says so."""
        if isinstance(event, h11.Response) and self.their_state is h11.SEND_BODY:
            headers = [(name, value) for name, value in event.headers if name != b"connection"]
            event = h11.Response(
                status_code=event.status_code,
                headers=[*headers, (b"connection", b"close")],
                reason=event.reason,
            )
        return super().send(event)

    def _check_head(self) -> None:
        """Check the bytes of a whole head, from which h11's events leave out what is ambiguous."""
        buffered, _ = self.trailing_data
        end = _HEAD_END.search(buffered)
        if end is None:
            return  # h11 refuses one that grows too large
        lines = buffered[: end.end()].split(b"\n")[:-2]
        if end.end() > MAX_HEAD_BYTES or len(lines) - 1 > MAX_HEADERS:
            raise h11.RemoteProtocolError(
                "the head is too large", error_status_hint=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            )
        if not all(line.endswith(b"\r") for line in lines):
            raise h11.RemoteProtocolError("a line ends without a carriage return")
        if not lines[0].endswith((b" HTTP/1.1\r", b" HTTP/1.0\r")):
            raise h11.RemoteProtocolError("the version isn't HTTP/1.1 or HTTP/1.0")
        if any(line.startswith((b" ", b"\t")) for line in lines[1:]):
            raise h11.RemoteProtocolError("a header is folded")
        _check_framing(lines)

    def _check_chunks(self, event: h11.Data) -> None:
        self._body_bytes += len(event.data)
        self._chunks += event.chunk_end
        if self._chunks > _FREE_CHUNKS + self._body_bytes / _BYTES_A_CHUNK:
            raise h11.RemoteProtocolError("the chunks are too small")


def _check_framing(lines: list[bytes]) -> None:
    """Check that only one header says where the body ends, and says one thing."""
    headers = [line.partition(b":") for line in lines[1:]]
    lengths = [value.strip(b" \t\r") for name, _, value in headers if name.lower() == b"content-length"]
    codings = [value.strip(b" \t\r") for name, _, value in headers if name.lower() == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise h11.RemoteProtocolError("several headers say where the body ends")
    if codings and lines[0].endswith(b"1.0\r"):
        raise h11.RemoteProtocolError("HTTP/1.0 has no transfer codings")
    if not all(length.isdigit() for length in lengths):
        raise h11.RemoteProtocolError("the length of the body is no number")


def _check_target(request: h11.Request) -> None:
    """Refuse a target with a scheme and a host, which could contradict the header `Host`."""
    if not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
        raise h11.RemoteProtocolError("the target isn't a path")
