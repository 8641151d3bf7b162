"""The server as a process: what ends it."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from ilis_guard.config.review import PageSettings
from ilis_guard.config.secrets import hash_token
from ilis_guard.errors import ConfigError
from ilis_guard.review import ReviewQueue
from ilis_guard.review.relay import OutboxRelay
from ilis_guard_server import create_app, serve
from tests.server.servers import KEY, settings_with, shop


def test_a_failed_relay_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "guard.yaml"
    config.write_text(
        "version: 1\npolicy: default\ntiers: [{name: small, model: m}]\nreview:\n  storage: sqlite:///tickets.db\n"
        f"  page: {{url: 'http://localhost', reviewers: [{{name: ana, token: '{hash_token('t')}'}}]}}\n"
    )

    async def fails(_worker: OutboxRelay, _stop: asyncio.Event) -> None:
        await asyncio.sleep(0.1)
        raise BrokenPipeError("standard error is gone")

    monkeypatch.setattr(OutboxRelay, "run", fails)
    with pytest.raises(BrokenPipeError, match="standard error is gone"):
        serve(config, host="127.0.0.1", port=0)


async def test_guard_and_page_share_an_address_but_no_credentials(review: ReviewQueue, settings: PageSettings) -> None:
    guard = shop(review)
    app = create_app(settings, review=review, policy=guard.policy, guard=guard, server=settings_with())
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        asked = {"model": "ilis-guard", "messages": [{"role": "user", "content": "person?"}]}
        key = {"authorization": f"Bearer {KEY}"}
        answered = await client.post("/v1/chat/completions", json=asked, headers=key)
        assert answered.json()["ilis_guard"]["ticket"]["queue"] == "support"
        # A key opens no page, and the page's cookie-less visitor gets no decision.
        assert (await client.get("/tickets", headers=key)).headers["location"].startswith("/sign-in")
        assert (await client.post("/v1/chat/completions", json=asked)).status_code == 401
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {"/v1/chat/completions", "/v1/tickets/{ticket}/verdict", "/healthz", "/readyz"} <= set(paths)


def test_a_page_needs_a_queue(settings: PageSettings, review: ReviewQueue) -> None:
    with pytest.raises(ConfigError, match="there is no queue"):
        create_app(settings, policy=shop(review).policy)
