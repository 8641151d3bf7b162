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
from ilis_guard.config.server import ServerSettings
from ilis_guard.errors import ConfigError
from ilis_guard.guard import open_queue, outbox_relay
from ilis_guard.policy import Policy
from ilis_guard.review import ReviewQueue
from ilis_guard.scoring import TypicalMaps, read_bundle
from ilis_guard_server.app import create_app

_STOP_SECONDS: Final = 10
"""How long requests under way may take once the server is told to stop; the guard's have time of their own before."""


def serve(config: Path, *, host: str, port: int, started: Callable[[str], None] = lambda _: None) -> None:
    """Serve the guard, the page, or both, and deliver webhooks, until the process is told to stop or a part fails.

    Args:
        config: guard.yaml: `server` says that the guard is served, `review.page` that the page is.
        host: the address to listen on.
        port: the port; 0 for a free one.
        started: told, once it takes requests, what is where.

    Raises:
        ConfigError: the file is wrong, or there is nothing to serve, or the guard would answer strangers.
        PolicyError: the policy is wrong.
        ModelError: a model can't be loaded.
        BundleError: a tier's bundle can't be read.
        ReviewError: the queue's storage can't be used.
    """
    found = read_config(config)
    page = None if found.review is None else found.review.page
    if found.server is None and page is None:
        raise ConfigError(
            f"{config}: there is neither a `server` nor a `review.page`, so there is nothing to serve; add one"
        )
    if found.server is not None:
        _check_reach(found.server, config, host)
    failures: list[Exception] = []

    def stop_server() -> None:
        server.should_exit = True

    with ExitStack() as open_things:
        review = None if found.review is None else open_things.enter_context(open_queue(found.review))
        guard = None if found.server is None else open_things.enter_context(Guard.from_config(config))
        app = create_app(
            page,
            review=review,
            policy=Policy.load(found.policy) if guard is None else guard.policy,
            typical={} if page is None else _typical(found),
            guard=guard,
            server=found.server,
            beside=[] if review is None else [partial(_deliver, found, review, failures, stop_server)],
        )
        stop_seconds = _STOP_SECONDS + (0.0 if found.server is None else found.server.shutdown_seconds)
        server: uvicorn.Server = _Server(
            server_settings(app, host=host, port=port, stop_seconds=stop_seconds),
            started=lambda bound: _tell(started, found, host, bound),
            stopping=lambda: _begin_to_end(app, found),
        )
        server.run()
    if failures:
        # A server that goes on without its worker would tell nobody that webhooks stand still.
        raise failures[0]


def _check_reach(settings: ServerSettings, config: Path, host: str) -> None:
    if not settings.api_keys and not is_loopback(host):
        raise ConfigError(
            f"{config}: without `server.api_keys` everybody who reaches {host!r} could ask the guard; make a key with "
            "`ilis-guard api-key` and add it, or listen on this machine alone (--host 127.0.0.1)"
        )


async def _deliver(
    found: GuardConfig,
    review: ReviewQueue,
    failures: list[Exception],
    stop_server: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    assert found.review is not None, "there is a queue"
    try:
        await outbox_relay(found.review, review).run(stop)
    except Exception as error:  # noqa: BLE001 - raised again once the server has stopped in order
        failures.append(error)
        stop_server()


def _tell(started: Callable[[str], None], found: GuardConfig, host: str, port: int) -> None:
    if found.server is not None:
        address = f"[{host}]" if ":" in host else host
        started(f"the guard answers at http://{address}:{port}/v1")
    if found.review is not None and found.review.page is not None:
        started(f"the page is at {found.review.page.url}")


def _begin_to_end(app: FastAPI, found: GuardConfig) -> None:
    """What is under way may end by itself, and is given up in time to store what the policy escalates."""
    if found.server is not None:
        app.state.service.ending.begin(found.server.shutdown_seconds)


def _typical(config: GuardConfig) -> dict[str, TypicalMaps]:
    """The typical maps of all tiers whose bundles have them."""
    found = {tier.name: read_bundle(tier.bundle).calibration_set.typical for tier in config.tiers if tier.bundle}
    return {name: maps for name, maps in found.items() if maps is not None}


def server_settings(
    app: Callable[..., object], *, host: str, port: int, stop_seconds: float = _STOP_SECONDS
) -> uvicorn.Config:
    """How uvicorn runs an application of ours."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,  # our own events say what happened, without addresses' query strings
        access_log=False,
        # Who connects must be who it is: the sign-in by proxy rests on it.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(stop_seconds),
    )


class _Server(uvicorn.Server):
    """Says when it takes requests, at which port, and when it begins to stop."""

    def __init__(self, config: uvicorn.Config, *, started: Callable[[int], None], stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started
        self._stopping = stopping

    async def startup(self, sockets: object = None) -> None:
        """As uvicorn's, and say so."""
        await super().startup(sockets)  # type: ignore[arg-type]  # uvicorn's
        if self.started:
            self._started(self.servers[0].sockets[0].getsockname()[1])

    async def shutdown(self, sockets: object = None) -> None:
        """As uvicorn's, and say so first."""
        self._stopping()
        await super().shutdown(sockets)  # type: ignore[arg-type]  # uvicorn's
