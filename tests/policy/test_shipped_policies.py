"""The shipped policies: what holds for all of them."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ilis_guard.config.guard_yaml import GuardConfig, read_config
from ilis_guard.policy import Facts, Policy
from ilis_guard.policy.binding import check_config
from ilis_guard.types import Action, Decision, Statistics

FOLDER = Path(__file__).parents[2] / "policies"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
CALM = Statistics(logprob_sum=-1.0, logprob_mean=-0.1, entropy_mean=0.1, margin_min=0.5)


def outcome(name: str, facts: Facts) -> tuple[str, str | None, str | None]:
    ruling = Policy.load(name).evaluate(facts)
    return ruling.action.value, ruling.rule, ruling.to


def queued(decision: Decision) -> str | None:
    """The queue where the decision's ticket waits; None where it has none."""
    return None if decision.ticket is None else decision.ticket.queue


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_policy_is_named_as_its_file_and_explains_itself(name: str) -> None:
    policy = Policy.load(name)
    assert policy.name == name
    assert policy.description
    lines = (FOLDER / f"{name}.yaml").read_text("utf-8").splitlines()
    for index, line in enumerate(lines):
        if line.startswith("  - id:"):
            assert lines[index - 1].startswith("  # "), f"line {index + 1}: a rule without a comment"


def test_there_is_one_for_each_use() -> None:
    uses = {"customer-support", "clinical", "code-assistant", "rag-with-context", "cost-first", "shadow-roll-out"}
    assert set(NAMES) == uses | {"default", "cold-start"}


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> GuardConfig:
    """A guard.yaml of the models and bundles that come with ilis_guard."""
    path = tmp_path_factory.mktemp("operated") / "guard.yaml"
    path.write_text(
        """
version: 1
policy: default
tiers:
  - name: small
    model: packaged:smollm2-135m-instruct
    max_new_tokens: 16
    bundle: packaged:smollm2-135m-instruct-full
    prompt_bundle: packaged:smollm2-135m-instruct-full-prompt
    cost: {per_request: 0}
  - name: large
    model: packaged:gemma-3-270m
    max_new_tokens: 16
    bundle: packaged:gemma-3-270m-full
    cost: {per_request: 0.01}
review:
  storage: sqlite:///tickets.db
  endpoints: [{name: all, url: "https://example.com/hooks", secret: "${SECRET}"}]
"""
    )
    return read_config(path)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_about_a_shipped_policy_needs_a_warning(name: str, operated: GuardConfig) -> None:
    policy = Policy.load(name)
    found = [*policy.notices(), *policy.config_notices(operated)]
    assert [notice.what for notice in found if notice.level == "warning"] == []
    # Notes: that it only looks on, and that a guarantee behind a retry rests on rows of all requests.
    in_cascade = policy.guarantee is not None and any(rule.do is Action.RETRY for rule in policy.rules)
    expected = ["SHADOW MODE"] * (name == "shadow-roll-out") + ["see only what rules pass on"] * in_cascade
    expected += ["COLD START"] * (name == "cold-start")
    assert len(found) == len(expected)
    assert all(any(words in notice.what for notice in found) for words in expected)


@pytest.mark.parametrize(
    ("name", "certifiable"),
    [
        ("customer-support", {"small", "large"}),
        ("rag-with-context", {"small", "large"}),
        ("shadow-roll-out", {"small", "large"}),
        ("clinical", {"large"}),  # one in twenty: more than the small model can promise
    ],
)
def test_guarantees_go_with_the_bundles_that_come_along(
    name: str, certifiable: set[str], operated: GuardConfig
) -> None:
    certificates = check_config(Policy.load(name), operated)
    assert {tier for tier, found in certificates.items() if found.threshold is not None} == certifiable
    assert {tier: Policy.load(name).unhandled_uncertified(tier) for tier in certificates} == {"small": "", "large": ""}


@pytest.mark.parametrize("name", ["default", "cold-start", "code-assistant", "cost-first"])
def test_the_others_guarantee_nothing(name: str, operated: GuardConfig) -> None:
    assert check_config(Policy.load(name), operated) == {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threshold", [None, 1.0])
@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(uncertainty=math.nan, typicality=math.nan),
        Facts(uncertainty=0.01, typicality=0.9, error="time-out", statistics=CALM),
        Facts(uncertainty=0.01, typicality=0.9, error="time-out", statistics=CALM, last_tier=False),
        Facts(uncertainty=-1.0, typicality=0.9, statistics=CALM),
        Facts(uncertainty=0.01, typicality=None, statistics=CALM),
        Facts(uncertainty=0.01, typicality=math.nan, statistics=CALM),
        Facts(uncertainty=0.01, typicality=0.0, statistics=CALM),
    ],
)
def test_no_shipped_policy_answers_blindly(name: str, threshold: float | None, facts: Facts) -> None:
    assert outcome(name, replace(facts, threshold=threshold))[0] != "answer"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("uncertainty", [0.0, 0.01, 0.2, 1.0])
def test_no_shipped_policy_takes_an_uncalibrated_uncertainty_for_a_probability(name: str, uncertainty: float) -> None:
    facts = Facts(
        uncertainty=uncertainty,
        calibrated=False,
        typicality=0.9,
        threshold=1.0,
        statistics=CALM,
        labels={"has_context": True},
    )
    assert outcome(name, facts)[0] != "answer"
    assert outcome(name, replace(facts, rank=0.99))[0] != "answer"
    # By rank only those answer that guarantee nothing.
    assert (outcome(name, replace(facts, rank=0.01))[0] == "answer") is (Policy.load(name).guarantee is None)


@pytest.mark.parametrize("name", NAMES)
def test_without_labels_only_a_rank_answers_and_only_where_nothing_is_guaranteed(name: str) -> None:
    unlabelled = Facts(calibrated=False, threshold=1.0, statistics=CALM, labels={"has_context": True})
    for rank in (None, math.nan, 0.99, -0.1, 1.1):
        assert outcome(name, replace(unlabelled, rank=rank))[0] != "answer"
    assert (outcome(name, replace(unlabelled, rank=0.01))[0] == "answer") is (Policy.load(name).guarantee is None)


@pytest.mark.parametrize("name", NAMES)
def test_no_shipped_policy_answers_beyond_its_guarantee(name: str) -> None:
    sure = Facts(uncertainty=0.01, typicality=0.9, statistics=CALM, labels={"has_context": True})
    guaranteed = Policy.load(name).guarantee is not None
    sure = replace(sure, rank=0.1 if name == "cold-start" else None)
    assert outcome(name, replace(sure, threshold=0.02))[0] == "answer"
    for threshold in (None, math.nan, 0.009):
        assert (outcome(name, replace(sure, threshold=threshold))[0] == "answer") is not guaranteed
