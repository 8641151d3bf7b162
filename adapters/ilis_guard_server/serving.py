"""The server as a process."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvicorn

from ilis_guard.config import GuardConfig, read_config
from ilis_guard.errors import ConfigError
from ilis_guard.policy import Policy
from ilis_guard.scoring import TypicalMaps, read_bundle
from ilis_guard_server.app import create_app

_STOP_SECONDS: Final = 10
"""How long requests under way may take once the server is told to stop."""


def serve(config: Path, *, host: str, port: int, started: Callable[[str], None] = lambda _: None) -> None:
    """Serve the page and deliver webhooks until the process is told to stop, or the worker fails: then that is raised.

    Args:
        config: guard.yaml.
        host: the address to listen on.
        port: the port; 0 for a free one.
        started: told where the page is, once it takes requests.

    Raises:
        ConfigError: the file is wrong, or has no `review.page`.
        PolicyError: the policy is wrong.
        BundleError: a tier's bundle can't be read.
        ReviewError: the queue's storage can't be used.
    """
    found = read_config(config)
    if found.review is None or found.review.page is None:
        raise ConfigError(f"{config}: there is no `review.page`, so there is nothing to serve; say who may sign in")
    settings = found.review.page
    policy = Policy.load(found.policy)
    with found.review.open() as review:
        deliverer = found.review.deliverer(review)
        failures: list[Exception] = []

        async def deliver(stop: asyncio.Event) -> None:
            try:
                await deliverer.run(stop)
            except Exception as error:  # noqa: BLE001 - raised again below, once the server has stopped in order
                failures.append(error)
                server.should_exit = True

        app = create_app(settings, review=review, policy=policy, typical=_typical(found), beside=[deliver])
        server = _Server(server_settings(app, host=host, port=port), lambda: started(settings.url))
        server.run()
        if failures:
            # A page that goes on without its worker would tell nobody that webhooks stand still.
            raise failures[0]


def _typical(config: GuardConfig) -> dict[str, TypicalMaps]:
    """The typical maps of all tiers whose bundles have them."""
    found = {tier.name: read_bundle(tier.bundle).calibration_set.typical for tier in config.tiers if tier.bundle}
    return {name: maps for name, maps in found.items() if maps is not None}


def server_settings(app: Callable[..., object], *, host: str, port: int) -> uvicorn.Config:
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
        timeout_graceful_shutdown=_STOP_SECONDS,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: object = None) -> None:
        """As uvicorn's, and say so."""
        await super().startup(sockets)  # type: ignore[arg-type]  # uvicorn's
        if self.started:
            self._started()
