"""The server as a process."""

import asyncio
import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI

from ilis_guard import Guard
from ilis_guard.config.addresses import is_loopback
from ilis_guard.config.guard_yaml import GuardConfig, read_config
from ilis_guard.errors import ConfigError
from ilis_guard.guard import open_queue, outbox_relay
from ilis_guard.policy import Policy
from ilis_guard.review import ReviewQueue
from ilis_guard.scoring import TypicalMaps, read_bundle
from ilis_guard_server.app import STOP_SECONDS, create_app
from ilis_guard_server.connections import Connection, Connections, room_for_connections

MAX_CONNECTIONS: Final = 1000
"""Of a server that serves only the reviewers' page."""
_ACCEPTED_AT_ONCE: Final = 16
"""asyncio accepts so many connections before it lets anything else run, such as the closing of others."""
_BACKLOG: Final = 2048
"""Connections that the operating system keeps until they are accepted."""


def serve(config: Path, *, host: str, port: int, on_start: Callable[[str], None] = lambda _: None) -> None:
    """Serve the guard, the page, or both, and deliver webhooks, until the process is told to stop or a part fails.

    Args:
        config: guard.yaml: with `server` the guard is served, with `review.page` the page.
        host: the address to listen on.
        port: the port; 0 for a free one.
        on_start: called with each address, once the server accepts requests.

    Raises:
        ConfigError: the file is wrong, or there is nothing to serve, or the guard would answer strangers.
        PolicyError: the policy is wrong.
        ModelError: a model can't be loaded.
        BundleError: a tier's bundle can't be read.
        ReviewError: the queue's storage can't be used.
    """
    settings = read_config(config)
    page = None if settings.review is None else settings.review.page
    if settings.server is None and page is None:
        raise ConfigError(
            f"{config}: there is neither a `server` nor a `review.page`, so there is nothing to serve; add one"
        )
    if settings.server is not None and not settings.server.api_keys and not is_loopback(host):
        raise ConfigError(
            f"{config}: without `server.api_keys` everybody who reaches {host!r} could ask the guard; make a key with "
            "`ilis-guard api-key` and add it, or listen on this machine alone (--host 127.0.0.1)"
        )
    failures: list[Exception] = []

    def stop_server() -> None:
        server.should_exit = True

    with ExitStack() as stack:
        review = None if settings.review is None else stack.enter_context(open_queue(settings.review))
        guard = None if settings.server is None else stack.enter_context(Guard.from_config(config))
        app = create_app(
            page,
            review=review,
            policy=Policy.load(settings.policy) if guard is None else guard.policy,
            typical_maps={} if page is None else _typical_maps(settings),
            guard=guard,
            server=settings.server,
            background=[] if review is None else [partial(_deliver, settings, review, failures, stop_server)],
        )
        stop_seconds = STOP_SECONDS + (0.0 if settings.server is None else settings.server.shutdown_seconds)
        server: uvicorn.Server = _Server(
            uvicorn_config(
                app,
                host=host,
                port=port,
                stop_seconds=stop_seconds,
                max_connections=MAX_CONNECTIONS if settings.server is None else settings.server.max_connections,
            ),
            on_start=lambda bound: _announce(on_start, settings, host, bound),
            on_stop=lambda: _begin_shutdown(app, settings),
        )
        server.run()
    if failures:
        # A server that went on without its relay would tell nobody that webhooks stand still.
        raise failures[0]


async def _deliver(
    settings: GuardConfig,
    review: ReviewQueue,
    failures: list[Exception],
    stop_server: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    assert settings.review is not None, "there is a queue"
    try:
        await outbox_relay(settings.review, review).run(stop)
    except Exception as error:  # noqa: BLE001 - raised again once the server has stopped in order
        failures.append(error)
        stop_server()


def _announce(on_start: Callable[[str], None], settings: GuardConfig, host: str, port: int) -> None:
    if settings.server is not None:
        address = f"[{host}]" if ":" in host else host
        on_start(f"the guard answers at http://{address}:{port}/v1")
    if settings.review is not None and settings.review.page is not None:
        on_start(f"the page is at {settings.review.page.url}")


def _begin_shutdown(app: FastAPI, settings: GuardConfig) -> None:
    """Let requests in flight end, and give them up in time to store what the policy escalates."""
    if settings.server is not None:
        app.state.guard.deadlines.begin_shutdown(settings.server.shutdown_seconds)


def _typical_maps(settings: GuardConfig) -> dict[str, TypicalMaps]:
    """The typical maps of all tiers whose bundles have them."""
    maps = {tier.name: read_bundle(tier.bundle).calibration_set.typical for tier in settings.tiers if tier.bundle}
    return {tier: typical for tier, typical in maps.items() if typical is not None}


def uvicorn_config(
    app: Callable[..., object],
    *,
    host: str,
    port: int,
    stop_seconds: float = STOP_SECONDS,
    max_connections: int = MAX_CONNECTIONS,
) -> uvicorn.Config:
    """How uvicorn runs an application of ours."""
    connections = Connections(room_for_connections(max_connections))
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        # Not by what happens to be installed: other loops, parsers and web sockets have none of our limits.
        http=partial(Connection, connections=connections),  # type: ignore[arg-type]  # a factory serves as well
        loop="asyncio",
        ws="none",
        backlog=_ACCEPTED_AT_ONCE,
        log_config=None,  # our own events say what happened, without addresses' query strings
        log_level="error",  # a line for each invalid request would let strangers fill the disk
        access_log=False,
        # The client's address must be the connection's: the sign-in by proxy rests on it.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(stop_seconds),
    )


class _Server(uvicorn.Server):
    """Reports when it accepts requests, at which port, and when it begins to stop."""

    def __init__(self, config: uvicorn.Config, *, on_start: Callable[[int], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._on_stop = on_stop

    async def startup(self, sockets: object = None) -> None:
        """Start as uvicorn does, and report it."""
        await super().startup(sockets)  # type: ignore[arg-type]  # uvicorn's
        if self.started:
            for listening in self.servers[0].sockets:
                with listening.dup() as same:
                    same.listen(_BACKLOG)
            self._on_start(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: object = None) -> None:
        """Report it, and shut down as uvicorn does."""
        self._on_stop()
        await super().shutdown(sockets)  # type: ignore[arg-type]  # uvicorn's
