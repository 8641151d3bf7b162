"""The server as a process: what ends it."""

import asyncio
from pathlib import Path

import pytest

from ilis_guard.review.page import token_hash
from ilis_guard.review.worker import Deliverer
from ilis_guard_server import serve


def test_a_worker_that_fails_ends_the_server_instead_of_leaving_webhooks_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "guard.yaml"
    config.write_text(
        "version: 1\npolicy: default\ntiers: [{name: small, model: m}]\nreview:\n  storage: sqlite:///tickets.db\n"
        f"  page: {{url: 'http://localhost', reviewers: [{{name: ana, token: '{token_hash('t')}'}}]}}\n"
    )

    async def fails(_worker: Deliverer, _stop: asyncio.Event) -> None:
        await asyncio.sleep(0.1)
        raise BrokenPipeError("standard error is gone")

    monkeypatch.setattr(Deliverer, "run", fails)
    with pytest.raises(BrokenPipeError, match="standard error is gone"):
        serve(config, host="127.0.0.1", port=0)
