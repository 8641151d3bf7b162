"""`serve` with a guard as a real process: a real model, shutdown during requests, and access."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.secrets import hash_token
from ilis_guard.errors import ConfigError
from ilis_guard.guard import open_queue
from tests.cli.conftest import Result
from tests.cli.test_cli_serve import free_port
from tests.locks import locked

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
POLICY = """
version: 1
name: slow
rules:
  - {id: given-up, when: 'error.startsWith("BudgetError")', do: escalate, to: support, say: A person will look at it.}
  - {id: done, do: abstain, say: It was asked.}
"""
SLOW = """
version: 1
policy: policy.yaml
tiers: [{name: slow, remote: {chat_model: "tests.server.slow_chat:SlowChat"}}]
review: {storage: "sqlite:///tickets.db"}
server: {shutdown_seconds: 3}
"""
SMOLLM2 = """
version: 1
policy: default
tiers:
  - name: small
    model: packaged:smollm2-135m-instruct
    prompt: "{question} Answer in a few words only."
    max_new_tokens: 16
    bundle: packaged:smollm2-135m-instruct-full
review: {storage: "sqlite:///tickets.db"}
server:
  api_keys: [{name: shop, key: "${SHOP_HASH}"}]
  modes: [optimistic, early_stop]
"""


@contextmanager
def guarding(folder: Path, text: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`ilis-guard serve` as a process, once it takes requests, and its address."""
    (folder / "guard.yaml").write_text(text)
    (folder / "policy.yaml").write_text(POLICY)
    program, port = Path(sys.executable).parent / "ilis-guard", free_port()
    process = subprocess.Popen(
        [program, "serve", "--config", folder / "guard.yaml", "--port", str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            for line in process.stderr:  # warnings come first
                if line == f"the guard answers at http://127.0.0.1:{port}/v1\n":
                    break
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def asked(url: str, question: str, **more: Any) -> httpx.Response:
    body = {"model": "ilis-guard", "messages": [{"role": "user", "content": question}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body | more, timeout=60, trust_env=False)


def in_flight(url: str) -> float:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    found = re.search(r"^ilis_guard_requests_in_flight (\S+)$", text, flags=re.MULTILINE)
    assert found is not None
    return float(found[1])


@pytest.mark.usefixtures("process")
def test_requests_in_flight_at_shutdown_are_finished_or_escalated(tmp_path: Path) -> None:
    with guarding(tmp_path, SLOW) as (process, url), ThreadPoolExecutor(3) as pool:
        short, long = pool.submit(asked, url, "2"), pool.submit(asked, url, "600")
        streamed = pool.submit(asked, url, "600", stream=True)
        while in_flight(url) < 3:
            pass
        process.send_signal(signal.SIGTERM)
        finished, given_up = short.result().json(), long.result().json()
        assert finished["choices"][0]["message"]["refusal"] == "It was asked."
        assert finished["ilis_guard"]["rule"] == "done"
        assert given_up["choices"][0]["message"]["refusal"] == "A person will look at it."
        assert given_up["ilis_guard"]["attempts"][0]["error"]["kind"] == "BudgetError"
        assert streamed.result().text.endswith("data: [DONE]\n\n")
        # The model that can't be stopped doesn't keep the process.
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    review = read_config(tmp_path / "guard.yaml").review
    assert review is not None
    with open_queue(review) as queue:
        tickets = queue.list()
        assert len(tickets) == 2
        assert given_up["ilis_guard"]["ticket"]["id"] in {ticket.id for ticket in tickets}


@pytest.mark.usefixtures("process")
def test_a_ticket_that_waits_for_a_lock_at_shutdown_is_answered_before_and_stored_after(tmp_path: Path) -> None:
    with guarding(tmp_path, SLOW) as (process, url), ThreadPoolExecutor(1) as pool:
        with locked(f"sqlite:///{tmp_path}/tickets.db"):
            waiting = pool.submit(asked, url, "600")
            while in_flight(url) < 1:
                pass
            process.send_signal(signal.SIGTERM)
            told = waiting.result().json()["ilis_guard"]
        assert told["ticket_error"]["kind"] == "TicketPendingError"
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
    review = read_config(tmp_path / "guard.yaml").review
    assert review is not None
    with open_queue(review) as queue:
        (ticket,) = queue.list()
        assert queue.get(ticket.id).decision == told["id"]


@pytest.mark.usefixtures("process")
def test_a_real_model_answers_openais_client_over_http(tmp_path: Path) -> None:
    key = "ilis-a-key"
    with guarding(tmp_path, SMOLLM2, SHOP_HASH=hash_token(key)) as (process, url):

        def said(question: str) -> list[str]:
            ran = subprocess.run(
                [sys.executable, ROOT / "examples" / "openai_client.py", question],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key, "NO_PROXY": "127.0.0.1"},
            )
            return ran.stdout.splitlines()

        whole, streamed = said("What is the capital of Norway?")
        assert re.fullmatch(r"The capital of Norway is Oslo\. \(uncertainty 0\.\d\d\)", whole)
        assert streamed == "The capital of Norway is Oslo."
        refused, streamed = said("What is 48 times 67?")
        assert refused == f"no answer: {streamed}"
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, trust_env=False) as client:
            turns = [{"role": "user", "content": "What is the capital of Norway?"}]
            decision = client.post("/v1/decisions", json={"messages": turns}, timeout=60).json()
            assert len(decision["attempts"][0]["signatures"]["mean"]) == 30
            assert client.get("/readyz").json()["status"] == "ready"
            body = {"model": "ilis-guard", "messages": turns, "stream": True, "ilis_guard": {"mode": "optimistic"}}
            chunks = client.post("/v1/chat/completions", json=body, timeout=60).text
            assert chunks.count('"content":') > 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org"])
def test_without_keys_serve_refuses_other_addresses(run: Run, tmp_path: Path, host: str) -> None:
    (tmp_path / "guard.yaml").write_text(SLOW)
    (tmp_path / "policy.yaml").write_text(POLICY)
    result = run("serve", "--config", str(tmp_path / "guard.yaml"), "--host", host)
    assert result.status == 2
    assert f"without `server.api_keys` everybody who reaches '{host}' could ask the guard" in result.err


def test_api_key_prints_a_key_and_the_hash(run: Run) -> None:
    result = run("api-key")
    (key,) = re.findall(r"only now:\s+(ilis-\S{43})\n", result.out)
    assert hash_token(key) in result.out
    assert run("api-key").out != result.out


@pytest.mark.parametrize(
    ("server", "place", "words"),
    [
        ("{api_keys: [{name: a, key: s3cret}]}", "6:36", "server.api_keys[0].key: not a key's hash"),
        ("{api_keys: [{name: a, key: '${A}'}, {name: a, key: '${B}'}]}", "6:52", "duplicate name 'a'"),
        ("{client_label: who}", "6:9", "there are no `api_keys`"),
        ("{client_label: who, labels: [who], api_keys: [{name: a, key: '${A}'}]}", "6:9", "may not say who they are"),
        ("{stream_mode: eager}", "6:23", "'eager'"),
        ("{max_concurrent: 0}", "6:26", "greater than or equal to 1"),
        ("{api_key: x}", "6:10", "unknown key 'api_key'; did you mean 'api_keys'"),
    ],
)
def test_errors_in_the_server_section_name_their_place(tmp_path: Path, server: str, place: str, words: str) -> None:
    path = tmp_path / "guard.yaml"
    path.write_text(SLOW.replace("{shutdown_seconds: 3}", server))
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    assert f"{path}:{place}: " in str(refused.value)
    assert words in str(refused.value)
    assert "s3cret" not in str(refused.value)
