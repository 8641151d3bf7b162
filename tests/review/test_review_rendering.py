"""Operators' own templates run in a process of their own, which takes little and finds nothing."""

import asyncio
import resource
from pathlib import Path

import pytest

from ilis_guard.config.review import EndpointSettings
from ilis_guard.errors import ConfigError
from ilis_guard.review import ReviewQueue, rendering
from ilis_guard.review.rendering import OwnTemplate
from tests.endpoint import Endpoint
from tests.review.support import OLD, relay, rows, states, to
from tests.reviewing import Clock, put

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def own(folder: Path, text: str) -> Path:
    path = folder / "own.j2"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LOOPS, "it needs more than 2 s of processor time, 30 s in all or 512 MiB"),
        ("{{ 'a' * 10**10 }}", "MemoryError"),
        ("{{ [0] * 10**10 }}", "MemoryError"),
        ("{{ 'a'.center(10**10) }}", "MemoryError"),
        ("{{ '%10000000000d' % 1 }}", "MemoryError"),
        ("{{ 10**(10**10) }}", "it needs more than 2 s of processor time, 30 s in all or 512 MiB"),
    ],
)
def test_a_template_that_takes_too_much_fails_and_takes_nothing_of_the_guards(
    tmp_path: Path, text: str, reason: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=r"own\.j2' failed: ") as caught:
        OwnTemplate(own(tmp_path, text), max_bytes=20_000).render({}, may_quote=True)
    assert reason in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_a_template_finds_no_environment_and_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where its sandbox had a hole."""
    script = tmp_path / "spy.py"
    script.write_text(
        "import json, os, sys; sys.stdin.read(); print(json.dumps({'body': '', 'size': 0, **os.environ}))"
    )
    monkeypatch.setattr(rendering, "_SCRIPT", script)
    monkeypatch.setenv("PAGERDUTY_KEY", "s3cret")
    seen = OwnTemplate(own(tmp_path, "1"), max_bytes=10)._run({})
    assert "s3cret" not in str(seen)
    assert set(seen) - {"LC_CTYPE"} == {"body", "size", "PYTHONPATH"}


def test_a_template_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own\.j2' has more than 100000 bytes"):
        OwnTemplate(own(tmp_path, "1 {# " + "x" * 1_000_000 + " #}"), max_bytes=10)


async def test_a_template_that_takes_long_holds_no_other_up(
    url: str, clock: Clock, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", OLD)
    endpoints = [to(endpoint), to(endpoint, name="own", template=str(own(tmp_path, LOOPS)))]
    with ReviewQueue(url, endpoints=[EndpointSettings(**each) for each in endpoints], clock=clock) as queue:
        put(queue, "d")
        running = asyncio.create_task(relay(queue).drain())
        await asyncio.to_thread(endpoint.await_heard, 1)
        assert not running.done()
        assert rows(queue, endpoint="own")[0].tries == 0
        await running

        assert states(queue) == ["delivered"]
        assert "needs more than 2 s of processor time" in rows(queue, endpoint="own")[0].last_error
