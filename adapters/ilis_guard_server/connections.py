"""Connections: how many may be open, and how slowly their clients may send and read.

uvicorn limits neither the time that a head or a body takes nor that of a client which doesn't read its response, and
where it is out of file descriptors, so is all that runs beside it: the queue's database, webhooks, remote models.
"""

import asyncio
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ilis_guard import events
from ilis_guard_server.http_parser import Parser
from ilis_guard_server.problem_details import problem_response

HEAD_SECONDS: Final = 10.0
"""How long the head of a request may take, from its first byte; the first one from the connection's beginning."""
BODY_SECONDS: Final = 10.0
BODY_BYTES_A_SECOND: Final = 1024.0
"""After its first seconds, a body must have come at this rate on average."""
READ_SECONDS: Final = 30.0
"""How long a client may read nothing of what is sent to it."""
LINGER_SECONDS: Final = 2.0
"""How long the rest of a refused request is received, and dropped: closing at once would lose the response."""
SEND_BUFFER_BYTES: Final = 128 * 1024
"""Of each connection, in the operating system, which would let it grow to some megabytes where nothing is read."""
SWEEP_SECONDS: Final = 0.5
LOG_SECONDS: Final = 10.0
RESERVED_SHARE: Final = 4
"""One in so many of the process's file descriptors is kept for all that isn't a client's connection."""

Reason = Literal["no room", "slow head", "slow body", "reads nothing", "invalid"]
"""Why the server closed a connection."""
Phase = Literal["idle", "head", "body", "working", "reading", "lingering"]
"""What a connection waits for: the next request, the rest of a head or of a body, the application, the client to read,
or the client to stop sending what nobody reads."""


def room_for_connections(wanted: int) -> int:
    """How many connections the process may have, so that a share of its file descriptors stays free."""
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return wanted
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return wanted
    used = sum(1 for _ in Path("/dev/fd").iterdir()) if Path("/dev/fd").is_dir() else 0
    return max(1, min(wanted, descriptors - used - descriptors // RESERVED_SHARE))


class Connections:
    """All connections of a server.

    Where there is no room for another one, one that waits for its client is closed: of the address that has the most
    of those, the one that has waited longest. So clients that do nothing keep nobody out, however many they are.

    Args:
        limit: how many may be open.
        clock: seconds, monotonic.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._limit = limit
        self._open: set[Connection] = set()
        # By address, in the order in which they began to wait.
        self._waiting: dict[str, dict[Connection, None]] = {}
        self._closed: Counter[Reason] = Counter()
        self._logged_at = clock()
        self._sweeping: asyncio.TimerHandle | None = None

    def add(self, connection: "Connection") -> bool:
        """Add a connection and make room for it; whether there is any."""
        has_room = len(self._open) < self._limit or self._close_one()
        self._open.add(connection)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        return has_room

    def discard(self, connection: "Connection") -> None:
        """Forget a connection that is lost."""
        self.move(connection, waits=False)
        self._open.discard(connection)

    def move(self, connection: "Connection", *, waits: bool) -> None:
        """Let a connection wait for its client from now on, or for us."""
        waiting = self._waiting.setdefault(connection.address, {})
        waiting.pop(connection, None)
        if waits and connection in self._open:
            waiting[connection] = None
        if not waiting:
            del self._waiting[connection.address]

    def count(self, reason: Reason) -> None:
        """Count a connection that was closed."""
        self._closed[reason] += 1

    def _close_one(self) -> bool:
        if not self._waiting:
            return False
        waiting = max(self._waiting.values(), key=len)
        victim = next(iter(waiting))
        self.count("no room")
        self.discard(victim)
        victim.abort()
        return True

    def _sweep(self) -> None:
        """Close connections whose time is over; log now and then how many were closed."""
        now = self.clock()
        for connection in [one for waiting in self._waiting.values() for one in waiting]:
            connection.check(now)
        if self._closed and now - self._logged_at >= LOG_SECONDS:
            events.log().warning(events.CONNECTIONS_CLOSED, open=len(self._open), **_by_field(self._closed))
            self._closed.clear()
            self._logged_at = now
        again = bool(self._open or self._closed)
        self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep) if again else None


class Connection(H11Protocol):
    """A connection, with limits on the time that its client takes.

    Args:
        connections: of the server.
        protocol: uvicorn's arguments.
    """

    conn: Parser

    def __init__(self, *, connections: Connections, **protocol: Any) -> None:
        super().__init__(**protocol)
        self.conn = Parser()
        self.address = ""
        """Of the client, without its port."""
        self._connections = connections
        self._phase: Phase = "head"
        self._since = connections.clock()
        self._body_bytes = 0
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin, unless there is no room."""
        self._transport = _LingeringTransport(transport, is_receiving=lambda: self.conn.is_receiving)
        super().connection_made(self._transport)  # type: ignore[arg-type]  # it stands in for one
        self.address = "" if self.client is None else self.client[0]
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if self._connections.add(self):
            self._connections.move(self, waits=True)
        else:
            self._refuse("no room", HTTPStatus.SERVICE_UNAVAILABLE, "The server has too many connections; try again.")

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Parse what has come; drop it where the connection is about to be closed."""
        if self._transport.is_closing():
            return
        self._body_bytes += len(data)
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        super().on_response_complete()
        self._update()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._update()

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        self._update()

    def send_400_response(self, msg: str) -> None:
        """Refuse what couldn't be parsed."""
        del msg
        self._refuse("invalid", self.conn.status, "This is no valid HTTP/1.1 request.")

    def abort(self) -> None:
        """Close at once, whatever hasn't been sent."""
        self._transport.abort()

    def check(self, now: float) -> None:
        """Close the connection if the time for what it waits for is over."""
        self._update()
        waited = now - self._since
        match self._phase:
            case "head" if waited > HEAD_SECONDS:
                self._refuse("slow head", HTTPStatus.REQUEST_TIMEOUT, "The request's head took too long.")
            case "body" if waited > BODY_SECONDS + self._body_bytes / BODY_BYTES_A_SECOND:
                self._refuse("slow body", HTTPStatus.REQUEST_TIMEOUT, "The request's body came too slowly.")
            case "reading":
                unsent = self._transport.get_write_buffer_size()
                if unsent < self._unsent:
                    self._since = now
                elif waited > READ_SECONDS:
                    self._connections.count("reads nothing")
                    self.abort()
                self._unsent = unsent
            case "lingering" if waited > LINGER_SECONDS:
                self.abort()

    def _update(self) -> None:
        """See what the connection waits for now, and since when."""
        phase = self._next_phase()
        if phase != self._phase:
            self._phase = phase
            self._since = self._connections.clock()
            self._body_bytes = 0
            self._unsent = self._transport.get_write_buffer_size()
            self._connections.move(self, waits=phase != "working")

    def _next_phase(self) -> Phase:
        is_answered = self.cycle is None or self.cycle.response_complete
        if self._transport.is_closing():
            return "reading" if self._transport.get_write_buffer_size() else "lingering"
        if self.flow.write_paused or (is_answered and self._transport.get_write_buffer_size()):
            return "reading"
        if not is_answered:
            # A client can't be blamed for the time in which the application reads nothing of its body.
            return "body" if self.cycle.more_body and not self.flow.read_paused else "working"
        return "head" if self.cycle is None or self.conn.has_partial_head else "idle"

    def _refuse(self, reason: Reason, status: HTTPStatus, detail: str) -> None:
        """Respond without asking the application, which sees a client that has disconnected, and close."""
        self._connections.count(reason)
        is_silent = reason == "slow head" and not self.conn.has_partial_head  # browsers connect in advance
        if is_silent or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()
            return
        problem = problem_response(status, uuid.uuid4().hex, detail=detail, headers={"connection": "close"})
        head = h11.Response(status_code=status, headers=problem.raw_headers, reason=status.phrase.encode())
        for event in (head, h11.Data(data=bytes(problem.body)), h11.EndOfMessage()):
            self._transport.write(self.conn.send(event))
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._transport.linger()
        self._update()


class _LingeringTransport:
    """A transport that goes on receiving where it is closed while its client sends.

    The operating system resets a connection that is closed with something unread, and the client loses the response.
    """

    def __init__(self, transport: asyncio.Transport, *, is_receiving: Callable[[], bool]) -> None:
        self._transport = transport
        self._is_receiving = is_receiving
        self._lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether no more requests are taken."""
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
        """Close, once everything is sent; a client that still sends is left to `Connection.check`."""
        if self._is_receiving():
            self.linger()
        elif not self._lingers:
            self._transport.close()

    def linger(self) -> None:
        """Send everything and the end, and go on receiving."""
        if not self.is_closing():
            self._lingers = True
            with suppress(OSError):  # the client has gone
                self._transport.write_eof()
            self._transport.resume_reading()


def _by_field(closed: Counter[Reason]) -> dict[str, int]:
    return {reason.replace(" ", "_"): number for reason, number in closed.items()}
