"""`ilis-guard policy check`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.policy import Policy

RULES = "version: 1\nname: mine\nrules:\n"


@pytest.mark.parametrize("name", ["default", "customer-support", "clinical"])
def test_shipped_policies_are_ok(run: Callable[..., Any], name: str) -> None:
    result = run("policy", "check", name)
    policy = Policy.load(name)
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith(f"ok: {name}, fingerprint {policy.fingerprint}\n")
    for rule in policy.rules:
        assert rule.id in result.out


def test_rules_are_shown_as_they_are_written(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(RULES + "  - {id: a, when: \"tier != '[red]x[/red]'\", do: abstain, say: '[/] :smile:'}\n")
    result = run("policy", "check", str(path))
    assert result.status == 0
    assert "tier != '[red]x[/red]'" in result.out
    assert "[/] :smile:" in result.out


def test_a_long_path_is_not_broken_across_lines(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / ("very-long-" * 20) / "policy.yaml"
    path.parent.mkdir()
    path.write_text(RULES + "  - {id: a, do: abstain}\n")
    assert f"ok: {path}, fingerprint " in run("policy", "check", str(path)).out


def test_a_bad_policy_is_refused_with_every_place(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(RULES + "  - {id: a, do: answer}\n  - {id: a, do: abstain, to: x}\n")
    result = run("policy", "check", str(path))
    assert (result.status, result.out) == (2, "")
    for place in ("4:17", "5:10", "5:30"):
        assert f"{path}:{place}: " in result.err


def test_a_policy_that_does_not_go_with_the_config_is_refused(run: Callable[..., Any], config: Path) -> None:
    path = config.parent / "policy.yaml"
    path.write_text(RULES + "  - {id: a, do: retry, to: large}\n")
    assert run("policy", "check", str(path)).status == 0
    result = run("policy", "check", str(path), "-c", str(config))
    assert (result.status, result.out) == (2, "")
    assert f"{path}:4:28: rule 'a' retries on the tier 'large', which doesn't exist; there are ['small']" in result.err


def test_a_policy_that_escalates_is_refused_where_there_is_no_queue(run: Callable[..., Any], config: Path) -> None:
    assert run("policy", "check", "default", "-c", str(config)).status == 0
    config.write_text("version: 1\npolicy: default\ntiers: [{name: small, model: m}]\n")
    result = run("policy", "check", "default", "-c", str(config))
    assert (result.status, result.out) == (2, "")
    assert "escalates, and there is no queue; give guard.yaml a `review` with its `storage`" in result.err
