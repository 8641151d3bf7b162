"""`ilis-guard queue deliver`, `dead-letters`, `replay` and `enable` on a real database, with a real endpoint."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.guard import open_queue
from ilis_guard.review import ReviewQueue
from ilis_guard.review.schema import deliveries
from tests.endpoint import Endpoint, answering, listening
from tests.reviewing import put

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with listening(tmp_path) as heard:
        monkeypatch.setenv("SSL_CERT_FILE", str(heard.authority))
        monkeypatch.setenv("HOOK_SECRET", SECRET)
        yield heard


@pytest.fixture
def hooked(config: Path, endpoint: Endpoint) -> Path:
    """A guard.yaml with an endpoint."""
    hook = f"{{name: crm, url: '{endpoint.url}', secret: '${{HOOK_SECRET}}', events: [ticket.created]}}"
    review = f"review: {{storage: 'sqlite:///tickets.db', internal_hosts: ['127.0.0.1'], endpoints: [{hook}]}}\n"
    config.write_text(re.sub(r"review: .*\n", review, config.read_text()))
    return config


def opened(config: Path) -> ReviewQueue:
    review = read_config(config).review
    assert review is not None
    return open_queue(review)


def deliver(config: Path, endpoint: Endpoint, *, until: int, stop: signal.Signals) -> tuple[int, str, str]:
    """Run the command until so much was heard, and then stop it."""
    child = subprocess.Popen(
        [sys.executable, "-c", "from ilis_guard.cli import main; main()", "queue", "deliver", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with child:
        try:
            endpoint.await_heard(until)
            child.send_signal(stop)
            said, warned = child.communicate(timeout=60)
        finally:
            child.kill()
    return child.returncode, said, warned


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_deliver_sends_pending_deliveries_and_reports_them_at_the_end(
    hooked: Path, endpoint: Endpoint, stop: signal.Signals
) -> None:
    with opened(hooked) as queue:
        for number in range(3):
            put(queue, f"d{number}")

    assert deliver(hooked, endpoint, until=3, stop=stop) == (0, "3 delivered\n", "")
    assert len(set(endpoint.ids)) == 3


@pytest.mark.usefixtures("process")
def test_failed_delivery_is_logged_as_warning(hooked: Path, endpoint: Endpoint) -> None:
    endpoint.answer = answering(500)
    with opened(hooked) as queue:
        put(queue, "d")

    status, said, warned = deliver(hooked, endpoint, until=1, stop=signal.SIGTERM)
    assert (status, said) == (0, "1 failed\n")
    assert "ilis_guard.delivery.failed" in warned
    assert "answered 500" in warned
    assert SECRET not in warned


def _bury(config: Path, **values: Any) -> str:
    """Make a dead letter; its id."""
    with opened(config) as queue:
        put(queue, f"d{values}")
        with queue.store.database.writing() as connection:
            connection.execute(update(deliveries).values({"state": "exhausted", "tries": 10} | values))
            return str(connection.execute(deliveries.select()).one().id)


@pytest.mark.usefixtures("process")
def test_a_dead_letter_is_listed_and_replayed(run: Callable[..., Any], hooked: Path, endpoint: Endpoint) -> None:
    assert run("queue", "dead-letters").out == "no dead letters\n"
    letter = _bury(hooked, last_status=500, last_error="answered 500: [red]\x1b[2J")

    listed = run("queue", "dead-letters", "--endpoint", "crm")
    assert listed.status == 0
    assert listed.out.startswith("1 dead letter ")
    for shown in (letter[:8], "crm", "ticket.created", "exhausted", "10", "answered 500: [red]\\x1b[2J"):
        assert shown in listed.flat
    (as_json,) = run("queue", "dead-letters", "--json").json
    assert (as_json["id"], as_json["last_status"]) == (letter, 500)
    assert run("queue", "dead-letters", "--endpoint", "other").out == "no dead letters\n"

    assert run("queue", "replay", letter[:8]).out == f"delivery {letter[:8]} is pending\n"
    assert run("queue", "replay", letter[:8]).status == 2
    deliver(hooked, endpoint, until=1, stop=signal.SIGTERM)
    assert endpoint.ids == [letter]


def test_dead_letters_since_a_time_are_replayed(run: Callable[..., Any], hooked: Path) -> None:
    _bury(hooked, created_at=1_800_000_000.0)

    assert run("queue", "replay", "--since", "2027-01-15T09:00:01+01:00").out == "0 pending\n"
    assert run("queue", "replay", "--since", "2027-01-15T08:00").out == "1 pending\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give the id of one dead letter, or --since"),
        (("ffff", "--since", "2027-01-15"), "give the id of one dead letter, or --since"),
        (("ffff",), "no dead letter's id starts with 'ffff'"),
        (("f",), "too short"),
        (("--since", "yesterday"), "--since takes a time in ISO 8601 (UTC unless it says), got 'yesterday'"),
    ],
)
def test_replay_refuses_unknown_deliveries(
    run: Callable[..., Any], hooked: Path, arguments: tuple[str, ...], words: str
) -> None:
    refused = run("queue", "replay", *arguments, "--config", str(hooked))
    assert refused.status == 2
    assert words in refused.err


@pytest.mark.usefixtures("process")
def test_a_endpoint_that_answered_410_is_named_and_enabled(
    run: Callable[..., Any], hooked: Path, endpoint: Endpoint
) -> None:
    endpoint.answer = answering(410)
    with opened(hooked) as queue:
        put(queue, "d")
    assert deliver(hooked, endpoint, until=1, stop=signal.SIGTERM)[1] == "1 disabled\n"

    listed = run("queue", "dead-letters")
    assert "crm is disabled since 20" in listed.out
    letter = json.loads(run("queue", "dead-letters", "--json").out)[0]["id"]
    assert "is disabled" in run("queue", "replay", letter).err
    assert "1 stay dead" in run("queue", "replay", "--since", "2020-01-01").out
    assert run("queue", "enable", "crm").out == "crm is enabled\n"
    assert run("queue", "enable", "crm").status == 2
    assert "disabled since" not in run("queue", "dead-letters").out
    assert run("queue", "replay", letter).status == 0
