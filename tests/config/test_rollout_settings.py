"""Rollout settings in guard.yaml: costs, limits, shadow mode, reload and pinned policies."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.config.tiers import BreakerSettings, TierCost
from ilis_guard.errors import ConfigError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.types import Action
from tests.explained import problem

QUESTION = "What is the boiling point of gallium?"
CHAT = "langchain_core.language_models.fake_chat_models:FakeListChatModel"
POLICY = """
version: 1
name: p
budget: {max_seconds: 0.3, max_cost: 0.01}
rules:
  - {id: failed, when: error != '', do: abstain, say: Sorry.}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes guard.yaml with one remote tier, and its policy."""

    def write_one(*, tier: str = "", head: str = "", policy: str = POLICY, sleep: float = 0.0) -> Path:
        (tmp_path / "policy.yaml").write_text(policy, "utf-8")
        path = tmp_path / "guard.yaml"
        path.write_text(
            f"version: 1\npolicy: policy.yaml\n{head}tiers:\n  - name: remote\n"
            f"    remote: {{chat_model: '{CHAT}', arguments: {{responses: [2403 °C], sleep: {sleep}}}, "
            f"reports_endings: false}}\n{tier}",
            "utf-8",
        )
        return path

    return write_one


LIMITS = "    cost: {per_request: 0.002}\n    max_concurrent: 3\n    breaker: {failures: 2}\n"


def test_tier_limits_come_from_the_file(write: Callable[..., Path]) -> None:
    config = read_config(write(tier=LIMITS)).tier("remote")
    assert config.cost == TierCost(per_request=0.002)
    assert config.breaker == BreakerSettings(failures=2, seconds=30.0)
    assert config.max_concurrent == 3
    with Guard.from_config(write(tier=LIMITS)) as guard:
        (tier,) = guard.tiers
        made = guard.decide(QUESTION)
    assert (tier.cost, tier.max_concurrent, tier.breaker) == (config.cost, 3, config.breaker)
    assert (made.attempts[0].text, made.cost) == ("2403 °C", 0.002)


def test_a_remote_model_that_hangs_is_given_up(write: Callable[..., Path]) -> None:
    with Guard.from_config(write(tier=LIMITS, sleep=2.0)) as guard:
        made = guard.decide(QUESTION)
    assert (made.action, made.text, made.cost) == (Action.ABSTAIN, "Sorry.", 0.002)
    assert problem(made.attempts[0]) == "BudgetError: the request's 0.3 seconds are over; the model was given up"
    assert made.attempts[0].seconds < 2.0


@pytest.mark.parametrize(
    ("tier", "head", "place", "words"),
    [
        ("    cost: {}\n", "", "6:11", "tiers[0].cost: must have at least one of per_request, per_million_prompt"),
        ("    cost: {per_request: -1}\n", "", "6:25", "tiers[0].cost.per_request: "),
        ("    cost: {per_request: .inf}\n", "", "6:25", "a number must be finite, got '.inf'"),
        ("    max_concurrent: 0\n", "", "6:21", "tiers[0].max_concurrent: "),
        ("    breaker: {failures: 0}\n", "", "6:25", "tiers[0].breaker.failures: "),
        ("    breaker: {second: 3}\n", "", "6:15", "unknown key 'second'; did you mean 'seconds'?"),
        ("", "policy_fingerprint: latest\n", "3:21", "policy_fingerprint: "),
    ],
)
def test_error_names_place_and_problem(
    write: Callable[..., Path], tier: str, head: str, place: str, words: str
) -> None:
    path = write(tier=tier, head=head)
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    assert f"{path}:{place}: " in str(refused.value)
    assert words in str(refused.value)


def test_a_cost_that_is_limited_must_be_known(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"policy\.yaml:4:38: .* the tiers \['remote'\] isn't known; give each"):
        Guard.from_config(write())


def test_a_second_policy_stands_beside_the_file_or_comes_with_ilis_guard(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "next.yaml").write_text("version: 1\nname: next\nrules:\n  - {id: no, do: abstain}\n", "utf-8")
    with Guard.from_config(write(tier=LIMITS, head="shadow: next.yaml\n")) as guard:
        made = guard.decide(QUESTION)
    assert made.shadow is not None
    assert (made.rule, made.shadow.rule, made.shadow.policy) == (
        "failed",
        "no",
        Policy.load(tmp_path / "next.yaml").fingerprint,
    )
    with Guard.from_config(write(tier=LIMITS, head="shadow: default\n")) as guard:
        shipped = guard.decide(QUESTION).shadow
    assert shipped is not None
    assert shipped.policy == Policy.load("default").fingerprint


def reloaded(path: Path, guard: Guard) -> str:
    """What is said once the policy's file was changed, and everybody has had the time to look."""
    policy = path.parent / "policy.yaml"
    policy.write_text(policy.read_text("utf-8").replace("Sorry.", "Sorry again."), "utf-8")
    time.sleep(0.6)
    return guard.decide(QUESTION).text


def test_the_policys_file_is_followed_unless_its_fingerprint_is_pinned(write: Callable[..., Path]) -> None:
    path = write(tier=LIMITS)
    with Guard.from_config(path) as guard:
        assert reloaded(path, guard) == "Sorry again."
    path = write(tier=LIMITS, head=f"policy_fingerprint: {Policy.parse(POLICY).fingerprint}\n")
    with Guard.from_config(path) as guard:
        assert reloaded(path, guard) == "Sorry."
        assert (guard.policy.fingerprint, guard.policy_problem) == (Policy.parse(POLICY).fingerprint, "")


def test_another_policy_than_the_pinned_one_is_refused_at_the_start(write: Callable[..., Path]) -> None:
    path = write(tier=LIMITS, head="policy_fingerprint: 0123456789abcdef\n")
    with pytest.raises(ConfigError) as refused:
        Guard.from_config(path)
    assert str(refused.value) == (
        f"guard.yaml pins the policy 0123456789abcdef (policy_fingerprint), and {str(path.parent / 'policy.yaml')!r} "
        f"has the fingerprint {Policy.parse(POLICY).fingerprint}: it was changed; put the file back, or pin the new "
        "fingerprint"
    )
