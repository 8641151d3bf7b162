"""`serve` and `reviewer-token`."""

import builtins
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.secrets import hash_token
from ilis_guard.guard import open_queue
from ilis_guard.review.signing import verify
from ilis_guard.types import Request
from tests.cli.conftest import Result
from tests.endpoint import listening
from tests.server.website import SECRET

Run = Callable[..., Result]


def test_reviewer_token_prints_a_token_and_the_hash(run: Run) -> None:
    result = run("reviewer-token")
    (token,) = re.findall(r"only now:\s+(\S{43})\n", result.out)
    assert hash_token(token) in result.out
    assert run("reviewer-token").out != result.out


@contextmanager
def serving(config: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`ilis-guard serve` as a process, once it takes requests."""
    program = Path(sys.executable).parent / "ilis-guard"
    command = [str(program), "serve", "--config", str(config), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        try:
            assert process.stderr.readline() == "the page is at https://review.example.org\n"
            yield process
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def with_page(config: Path, more: str = "") -> None:
    """Give guard.yaml a page, and what else is to stand in `review`."""
    page = f"url: 'https://review.example.org', reviewers: [{{name: ana, token: '{hash_token('t')}'}}]"
    config.write_text(config.read_text().replace("tickets.db'}", f"tickets.db', page: {{{page}}}{more}}}"))


@pytest.mark.usefixtures("process")
def test_the_page_is_served_by_a_process_that_stops_in_order(config: Path) -> None:
    with_page(config)
    port = free_port()
    with serving(config, port) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            assert client.get("/tickets").headers["location"].startswith("/sign-in")
        process.send_signal(signal.SIGTERM)
        # uvicorn stops what it does, and then lets the signal have its way.
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.usefixtures("process")
def test_serve_delivers_webhooks_that_link_to_the_page(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(tmp_path) as endpoint:
        monkeypatch.setenv("SSL_CERT_FILE", str(endpoint.authority))
        monkeypatch.setenv("HOOK_SECRET", SECRET)
        hook = f"name: hook, url: '{endpoint.url}', secret: '${{HOOK_SECRET}}', events: [ticket.created]"
        with_page(config, f", internal_hosts: [127.0.0.1], endpoints: [{{{hook}}}]")
        review = read_config(config).review
        assert review is not None
        with serving(config, free_port()), open_queue(review) as queue:
            ticket = queue.escalate(
                decision="d",
                request=Request.of("q"),
                attempts=[],
                queue="chemists",
                policy="p",
                rule=None,
            )
            endpoint.await_heard(1)
    (heard,) = endpoint.heard
    assert verify(SECRET, heard.headers, heard.body) == heard.id
    assert f"https://review.example.org/tickets/{ticket.id}" in heard.body.decode()


def test_without_a_guard_and_a_page_serve_fails(run: Run, config: Path) -> None:
    result = run("serve", "--config", str(config))
    assert result.status == 2
    assert "there is neither a `server` nor a `review.page`, so there is nothing to serve" in result.err


def test_a_missing_extra_is_named_with_its_install_command(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing = builtins.__import__

    def without_fastapi(name: str, *others: Any, **more: Any) -> Any:
        if name == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return importing(name, *others, **more)

    for module in [name for name in sys.modules if name.startswith("ilis_guard_server")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without_fastapi)
    result = run("serve", "--config", str(config))
    assert result.status == 2
    assert "pip install 'ilis-guard[server]'" in result.err
