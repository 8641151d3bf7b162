"""`ilis-guard policy check`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.guarantees import resolve
from ilis_guard.policy import Policy
from ilis_guard.scoring import read_bundle

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


GUARANTEED = """version: 1
name: mine
guarantee: {max_error: 0.2}
rules:
  - {id: covered, when: certified, do: answer}
  - {id: person, do: escalate}
"""


def test_what_a_guarantee_comes_to_on_each_tier_is_shown_without_loading_a_model(
    run: Callable[..., Any], config: Path
) -> None:
    path = config.parent / "policy.yaml"
    path.write_text(GUARANTEED)
    config.write_text(
        "version: 1\npolicy: policy.yaml\nreview: {storage: sqlite:///t.db}\ntiers:\n"
        "  - {name: small, model: nowhere, bundle: packaged:smollm2-135m-instruct-full}\n"
        "  - {name: large, model: nowhere, bundle: packaged:gemma-3-270m-full}\n"
    )
    result = run("policy", "check", str(path), "-c", str(config))
    certificates = resolve(
        Policy.load(path),
        {
            "small": read_bundle("packaged:smollm2-135m-instruct-full"),
            "large": read_bundle("packaged:gemma-3-270m-full"),
        },
    )
    assert (result.status, result.err) == (0, "")
    for tier, found in certificates.items():
        (row,) = [line for line in result.out.splitlines() if line.startswith(f"│ {tier}")]
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        threshold = "none" if found.threshold is None else f"{found.threshold:.4g}"
        assert cells[:3] == [tier, threshold, f"{found.coverage:.1%}"]
        assert cells[4:] == [str(found.rows), "0.975", found.reason]


def test_a_guarantee_that_cant_be_kept_is_refused_unless_the_rules_say_what_happens_then(
    run: Callable[..., Any], config: Path
) -> None:
    path = config.parent / "policy.yaml"
    path.write_text(GUARANTEED.replace("0.2", "0.001").replace("  - {id: person, do: escalate}\n", ""))
    config.write_text(
        "version: 1\npolicy: policy.yaml\ntiers:\n"
        "  - {name: small, model: nowhere, bundle: packaged:smollm2-135m-instruct-full}\n"
    )
    result = run("policy", "check", str(path), "-c", str(config))
    assert (result.status, result.out) == (2, "")
    assert f"{path}:3:12: the guarantee can't be certified on the tier 'small': " in result.err
