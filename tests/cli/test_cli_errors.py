"""Command errors print one message on standard error and exit with status 2, without a traceback."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilis_guard import __version__

TIER = "version: 1\npolicy: default\ntiers: [{name: small, model: m}]\n"


def check_refused(result: Any, *words: str) -> None:
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("error: ") == 1
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "?"),
        ("queue", "list"),
        ("queue", "show", "abcd"),
        ("queue", "resolve", "abcd", "accept"),
        ("policy", "check", "default", "-c", "guard.yaml"),
        ("harvest", "q.jsonl", "--tier", "small", "--to", "rows.parquet"),
    ],
)
def test_a_missing_guard_yaml(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    check_refused(run(*arguments), "guard.yaml: there is no such file; check the path", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_message_about_markup_shows_the_markup(run: Callable[..., Any], config: Path) -> None:
    config.write_text(TIER + "'[red]x[/red] [/] :smile:': 1\n")
    check_refused(run("ask", "?"), f"{config.name}:4:1: unknown key '[red]x[/red] [/] :smile:'")


def test_a_config_without_a_queue_has_no_tickets(run: Callable[..., Any], config: Path) -> None:
    config.write_text(TIER)
    check_refused(run("queue", "list"), "guard.yaml: there is no `review`, so no tickets are kept")


def test_a_folder_that_cannot_be_made(run: Callable[..., Any], config: Path) -> None:
    check_refused(run("demo", "--folder", str(config)), "File exists", str(config))


@pytest.mark.parametrize(
    "arguments",
    [
        ("queue", "list", "--state", "closed"),
        ("queue", "list", "--limit", "0"),
        ("queue", "resolve", "abcd", "maybe"),
        ("ask",),
        ("nonsense",),
        ("--nonsense",),
    ],
)
def test_wrong_usage_prints_the_usage(run: Callable[..., Any], config: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, *(["-c", str(config)] if arguments[0] == "queue" else []))
    assert result.status == 2
    assert result.out == ""
    assert "Usage: " in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "arguments", [("--help",), ("ask", "--help"), ("queue", "--help"), ("policy", "check", "--help")]
)
def test_help_is_on_standard_output(run: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.status, result.err) == (0, "")
    assert "Usage: " in result.out


def test_the_version(run: Callable[..., Any]) -> None:
    assert run("--version").out == f"ilis-guard {__version__}\n"


@pytest.mark.usefixtures("process")
def test_a_process_ends_with_status_2_and_a_message(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", "from ilis_guard.cli import main; main()", "policy", "check", "no/such.yaml"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
    )
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr == (
        f"error: no/such.yaml: there is no such file; check the path (relative paths start at {tmp_path})\n"
    )
