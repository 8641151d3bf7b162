"""`ilis-guard policy check`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.policy import Policy
from ilis_guard.policy.binding import certify_guarantee
from ilis_guard.policy.schema import JSON_SCHEMA_FILE
from ilis_guard.scoring import read_bundle

SHIPPED = sorted(file.stem for file in (Path(__file__).parents[2] / "policies").glob("*.yaml"))
RULES = "version: 1\nname: mine\nrules:\n"


@pytest.mark.parametrize("name", SHIPPED)
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


def test_guarantee_is_shown_per_tier_without_loading_a_model(run: Callable[..., Any], config: Path) -> None:
    path = config.parent / "policy.yaml"
    path.write_text(GUARANTEED)
    config.write_text(
        "version: 1\npolicy: policy.yaml\nreview: {storage: sqlite:///t.db}\ntiers:\n"
        "  - {name: small, model: nowhere, bundle: packaged:smollm2-135m-instruct-full}\n"
        "  - {name: large, model: nowhere, bundle: packaged:gemma-3-270m-full}\n"
    )
    result = run("policy", "check", str(path), "-c", str(config))
    assert "note:" not in result.flat  # it doesn't retry, so no tier sees what another passed on
    certificates = certify_guarantee(
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
        assert cells[4:] == [str(found.rows), "97.5%", found.reason]


def test_tier_that_answers_nothing_is_shown_with_reason_and_remedy(run: Callable[..., Any], config: Path) -> None:
    config.write_text(
        "version: 1\npolicy: clinical\nreview: {storage: sqlite:///t.db}\ntiers:\n"
        "  - {name: small, model: nowhere, bundle: packaged:smollm2-135m-instruct-full}\n"
    )
    result = run("policy", "check", "clinical", "-c", str(config))
    (row,) = [line for line in result.out.splitlines() if line.startswith("│ small")]
    assert [cell.strip() for cell in row.strip("│").split("│")][:3] == ["small", "none", "0.0%"]
    assert "; whatever the score, 67.8% of requests can't be answered" in row
    assert "more labelled rows would do" in row


def test_guarantee_beyond_reach_without_a_rule_to_fall_back_on_is_refused(
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


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


LOOSE = RULES + "  - {id: all, when: uncertainty <= 1.0, do: answer}\n"


def test_warnings_are_told_and_only_strictness_makes_them_fail(run: Callable[..., Any], tmp_path: Path) -> None:
    path = written(tmp_path / "policy.yaml", LOOSE)
    result = run("policy", "check", str(path))
    assert (result.status, result.err) == (0, "")
    assert f"warning: {path}:4:21: rule 'all': wherever there is a score, the answer is given" in result.out
    assert result.out.endswith(f"ok: {path}, fingerprint {Policy.load(path).fingerprint} (1 warning)\n")
    strict = run("policy", "check", str(path), "--strict")
    assert (strict.status, strict.err) == (1, "")
    assert strict.out.endswith(f"refused: {path}, fingerprint {Policy.load(path).fingerprint} (1 warning)\n")


def test_strictness_minds_no_sound_policy_and_no_note(run: Callable[..., Any], tmp_path: Path) -> None:
    rules = RULES.replace("rules", "mode: shadow\nrules") + "  - {id: a, when: uncertainty < 0.5, do: answer}\n"
    path = written(tmp_path / "policy.yaml", rules)
    result = run("policy", "check", str(path), "--strict")
    assert result.status == 0
    assert f"note: {path}:3:7: SHADOW MODE: this policy gates nothing." in result.out
    assert "shadow: what it says is recorded, and not done" in result.out
    assert run("policy", "check", "default", "--strict").status == 0


def test_policy_check_describes_keys_beside_the_rules(run: Callable[..., Any], tmp_path: Path) -> None:
    rules = (
        "  - {id: sure, when: certified, do: answer}\n"
        "  - {id: some, sample: 0.25, do: escalate, to: trial, due: 4h}\n  - {id: last, do: abstain}\n"
    )
    for guarantee, words in (
        ("{max_error: 0.05}", "of the certified requests, at most 5% are wrong, with 95% confidence; nothing else"),
        ("{min_coverage: 0.8, confidence: 0.9}", "at least 80% of the requests are certified, with 90% confidence"),
        (
            "{max_reviews_per_hour: 20, requests_per_hour: 400}",
            "at most 20 of 400 requests an hour aren't certified, with 95% confidence",
        ),
    ):
        keys = (
            f"guarantee: {guarantee}\nbudget: {{max_seconds: 9.5, max_attempts: 1, max_cost: 0.02}}\n"
            "audit: {fraction: 0.025, queue: '[red]a'}\n"
        )
        path = written(tmp_path / "policy.yaml", RULES.replace("rules:\n", f"{keys}rules:\n") + rules)
        shown = run("policy", "check", str(path)).flat
        assert f"guarantee {words}" in shown
        assert (
            "budget each request takes at most 9.5 s, at most 1 attempt, no larger tier once its cost is 0.02" in shown
        )
        assert "audit 2.5% of the answered requests also go to the queue '[red]a'" in shown
        assert "│ 4h │ 25% │" in shown


def test_a_secret_is_refused_and_not_shown(run: Callable[..., Any], tmp_path: Path) -> None:
    token = "ghp_" + "a1" * 18
    path = written(tmp_path / "policy.yaml", RULES + f"  - {{id: a, do: abstain, say: {token}}}\n")
    result = run("policy", "check", str(path))
    assert (result.status, result.out) == (2, "")
    assert f"{path}:4:31: this looks like a GitHub token" in result.err
    assert token not in result.err


def test_policy_check_warns_of_mismatches_with_the_guard(run: Callable[..., Any], config: Path) -> None:
    path = written(
        config.parent / "policy.yaml",
        RULES
        + "  - {id: sure, when: \"tier == 'smal' && uncertainty < 0.2\", do: answer}\n"
        + "  - {id: up, do: retry}\n  - {id: ask, do: escalate, to: support}\n",
    )
    assert "warning" not in run("policy", "check", str(path)).out
    told = run("policy", "check", str(path), "-c", str(config)).out
    assert f"warning: {path}:4:22: rule 'sure': there is no tier 'smal'; did you mean 'small'?" in told
    assert f"warning: {path}:5:18: rule 'up': never retries: this guard has one tier, 'small'" in told
    assert f"warning: {path}:6:33: nobody is told of tickets in the queue 'support'" in told
    assert run("policy", "check", str(path), "-c", str(config), "--strict").status == 1


def test_policy_check_names_tiers_whose_scores_are_calibrated_for_no_request(
    run: Callable[..., Any], config: Path
) -> None:
    fitted = (
        "name: small, model: packaged:smollm2-135m-instruct, bundle: packaged:smollm2-135m-instruct-full, "
        "prompt_bundle: packaged:smollm2-135m-instruct-full-prompt, "
    )

    def told(keys: str) -> str:
        config.write_text(
            f"version: 1\npolicy: default\ntiers: [{{{fitted}{keys}}}]\nreview: {{storage: 'sqlite:///tickets.db'}}\n"
        )
        shown: str = run("policy", "check", "default", "-c", str(config)).out
        return shown

    prompt = "prompt: '{question} Answer in a few words only.'"
    assert "is calibrated on this tier" not in told(f"{prompt}, max_new_tokens: 16")
    assert "warning: bundle of 'small': no score is calibrated on this tier" in (
        shown := told(f"{prompt}, max_new_tokens: 17, decoding: {{top_k: 3, do_sample: true}}")
    )
    assert "warning: prompt_bundle of 'small': no score is calibrated on this tier" in shown
    assert "it has another decoding, another limit of the answers' length than the rows" in shown
    assert "it has another wording of the prompt than the rows" in told("max_new_tokens: 16")


def test_policy_schema_prints_the_shipped_file(run: Callable[..., Any]) -> None:
    result = run("policy", "schema")
    assert (result.status, result.err) == (0, "")
    assert result.out == JSON_SCHEMA_FILE.read_text("utf-8")
