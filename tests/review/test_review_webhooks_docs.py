"""The payloads, snippets and settings in docs/webhooks.md work."""

import ast
import asyncio
import json
import re
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.review import EVENTS, EndpointSettings
from ilis_guard.guard import open_queue, outbox_relay
from ilis_guard.review import ReviewQueue
from ilis_guard.review.outbox import SCHEDULE
from ilis_guard.review.signing import sign
from ilis_guard.review.webhooks import Message, template_for
from ilis_guard.types import Verdict
from tests.endpoint import Endpoint, answering
from tests.review.support import OLD, relay, rows, to
from tests.reviewing import Clock, put

DOCUMENT = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
GUARD = "version: 1\npolicy: default\ntiers: [{name: small, model: m}]\n"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, flags=re.DOTALL)


def _example(event: str) -> Any:
    (found,) = [block for block in map(json.loads, _blocks("json")) if block["type"] == event]
    return found


def _shape(value: Any) -> Any:
    """Keys in their order, and the kinds of values."""
    if isinstance(value, dict):
        return [(key, _shape(inner)) for key, inner in value.items()]
    return "number" if type(value) in (int, float) else type(value).__name__


async def test_the_documented_payloads_are_sent(
    sqlite: str, clock: Clock, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", OLD)
    endpoint.answer = lambda exchange: exchange.reply(410 if exchange.path == "/gone" else 200)
    gone = EndpointSettings(**to(endpoint, name="gone", url=endpoint.url.replace("/hook", "/gone")))
    hears_all = EndpointSettings(**to(endpoint, events=EVENTS))
    with ReviewQueue(sqlite, endpoints=[hears_all, gone], clock=clock) as queue:
        ticket = put(queue, "d", due=3600.0)
        queue.claim(ticket.id, reviewer="ana")
        queue.resolve(ticket.id, Verdict.CORRECT, text="2403 °C", reviewer="ana")
        await relay(queue).drain()
        await relay(queue).drain()
    sent = {body["type"]: body for body in (json.loads(heard.body) for heard in endpoint.heard)}

    for event in ("ticket.resolved", "delivery.exhausted"):
        assert _shape(sent[event]) == _shape(_example(event))
    assert set(sent) == {"ticket.created", "ticket.claimed", "ticket.resolved", "delivery.exhausted"}


def test_the_verifying_snippet_detects_repetitions_and_forgeries(
    capsys: pytest.CaptureFixture[str],
) -> None:
    snippet = next(block for block in _blocks("python") if "def receive" in block)
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    body = json.dumps(_example("ticket.resolved"))
    headers = sign(OLD, id="c0ffee", at=time.time(), body=body)
    seen: set[str] = set()

    for _ in range(2):
        assert scope["receive"](headers, body.encode(), OLD, seen) == 204
    assert capsys.readouterr().out.count("ticket.resolved") == 1
    assert scope["receive"](headers, body.encode() + b" ", OLD, seen) == 401
    stale = sign(OLD, id="c0ffee", at=time.time() - 301, body=body)
    assert scope["receive"](stale, body.encode(), OLD, seen) == 401


def test_the_documented_guard_yaml_is_valid(tmp_path: Path) -> None:
    (block,) = _blocks("yaml")
    (tmp_path / "guard.yaml").write_text(GUARD + block)
    (tmp_path / "desk.j2").write_text(_blocks("jinja")[0])
    review = read_config(tmp_path / "guard.yaml").review
    assert review is not None
    assert [endpoint.template for endpoint in review.endpoints][:3] == ["generic", "slack", "pagerduty"]
    with open_queue(review) as queue:
        outbox_relay(review, queue)


def test_the_documented_jinja_template_renders_json(tmp_path: Path) -> None:
    (tmp_path / "desk.j2").write_text(_blocks("jinja")[0])
    settings = EndpointSettings(name="desk", url="https://hooks.test/", template=str(tmp_path / "desk.j2"))
    example = _example("ticket.resolved")
    message = Message(id="c0ffee", type='a "quoted" type', at=0.0, data=example["data"])
    assert json.loads(template_for(settings)(message)) == {
        "title": 'Ticket 3f2a9c0e: a "quoted" type',
        "priority": 5,
        "key": "c0ffee",
        "url": None,
    }


async def test_the_relay_snippet_delivers(tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOOK_SECRET", OLD)
    hook = f"{{name: crm, url: '{endpoint.url}', secret: '${{HOOK_SECRET}}'}}"
    review = f"review: {{storage: 'sqlite:///t.db', internal_hosts: ['127.0.0.1'], endpoints: [{hook}]}}\n"
    (tmp_path / "guard.yaml").write_text(GUARD + review)
    endpoint.answer = answering(200)
    snippet = next(block for block in _blocks("python") if "outbox_relay" in block)
    # In place of the dots, what a program does meanwhile.
    snippet = snippet.replace("    ...\n", "    await meanwhile(queue)\n")
    module = ast.parse(f"async def shown():\n{textwrap.indent(snippet, '    ')}")

    async def meanwhile(queue: ReviewQueue) -> None:
        put(queue, "d")
        await asyncio.to_thread(endpoint.await_heard, 1)

    scope: dict[str, Any] = {"asyncio": asyncio, "meanwhile": meanwhile}
    exec(compile(module, "docs/webhooks.md", "exec"), scope)
    await scope["shown"]()

    config = read_config("guard.yaml").review
    assert config is not None
    with open_queue(config) as queue:
        assert [row.state for row in rows(queue)] == ["delivered"]


def test_the_documented_schedule_is_the_real_one() -> None:
    told = re.search(r"that failed: (.*?) later", DOCUMENT, flags=re.DOTALL)
    assert told is not None
    units = {"s": 1, "min": 60, "h": 3600}
    pauses = [float(number) * units[unit] for number, unit in re.findall(r"(\d+) (s|min|h)\b", told[1])]
    assert [0.0, *pauses] == list(SCHEDULE)
