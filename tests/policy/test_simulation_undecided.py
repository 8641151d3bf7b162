"""Simulation says where the records don't tell what the live guard would have done, and why."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from ilis_guard.policy import Policy
from ilis_guard.policy.recordings import NEVER_RUN, STOPPED_AT_PROMPT
from ilis_guard.policy.simulation import OUTCOMES, simulate
from ilis_guard.types import Action
from tests.policy.recorded import Asked, Tried, recorded_of

RETRYING = """
version: 1
name: retrying
rules:
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: larger, do: retry}
"""
TIMED = """
version: 1
name: timed
rules:
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: slow, when: seconds > 1.0, do: abstain}
  - {id: person, do: escalate}
"""


def ends(policy: str, *asked: Asked, scores_prompts: Sequence[bool] = (False,) * 3) -> list[tuple[object, str]]:
    outcomes = simulate(Policy.parse(policy), recorded_of(asked, scores_prompts=scores_prompts))
    return [(OUTCOMES[action], outcomes.undecided[row]) for row, action in enumerate(outcomes.action)]


def test_only_requests_that_need_an_unrun_tier_are_undecided() -> None:
    never = Tried(reached=NEVER_RUN)
    sure, unsure = Tried(uncertainty=0.1), Tried(uncertainty=0.5)
    assert ends(RETRYING, Asked("a", (sure, never)), Asked("b", (unsure, never)), Asked("c", (unsure, sure))) == [
        (Action.ANSWER, ""),
        (None, "the tier 'middle' was never run"),
        (Action.ANSWER, ""),
    ]


def test_seconds_and_costs_of_undecided_requests_are_unknown() -> None:
    asked = Asked("b", (Tried(uncertainty=0.5), Tried(reached=NEVER_RUN)))
    outcomes = simulate(Policy.parse(RETRYING), recorded_of([asked]))
    assert math.isnan(outcomes.seconds[0])
    assert math.isnan(outcomes.cost[0])


def test_only_requests_that_need_unrecorded_facts_are_undecided() -> None:
    sure, unsure = Tried(uncertainty=0.1, seconds=None), Tried(uncertainty=0.5, seconds=None)
    assert ends(TIMED, Asked("a", (sure,)), Asked("b", (unsure,))) == [
        (Action.ANSWER, ""),
        (None, "rule 'slow' looks at 'seconds', which wasn't recorded"),
    ]


@pytest.mark.parametrize(
    ("when", "name", "lacking"),
    [
        ("cost > 0.5", "cost", {"cost": None}),
        ("text_length > 3", "text_length", {"text_length": None}),
        ("prompt_length > 3", "prompt_length", {}),
        ("has(labels.vip)", "labels", {}),
    ],
)
def test_each_fact_that_may_be_unrecorded_is_named(when: str, name: str, lacking: dict[str, Any]) -> None:
    policy = f"version: 1\nname: p\nrules:\n  - {{id: r, when: '{when}', do: escalate}}\n"
    asked = Asked("a", (Tried(uncertainty=0.5, **lacking),), labels=None, prompt_length=None)
    assert ends(policy, asked) == [(None, f"rule 'r' looks at {name!r}, which wasn't recorded")]


def test_budgets_over_unrecorded_facts_leave_requests_undecided() -> None:
    asked = Asked("a", (Tried(uncertainty=0.5, seconds=None, cost=None), Tried(uncertainty=0.1)))
    for budget in ("max_seconds: 9.0", "max_cost: 9.0"):
        ((action, why),) = ends(RETRYING + f"budget: {{{budget}}}\n", asked)
        assert action is None
        assert "wasn't recorded" in why
    assert ends(RETRYING + "budget: {max_attempts: 1}\n", asked) == [(Action.ABSTAIN, "")]


PROMPTED = """
version: 1
name: prompted
rules:
  - {id: hard, stage: prompt, when: uncertainty > 0.8, do: abstain}
  - {id: sure, when: uncertainty < 0.2, do: answer}
"""


def test_attempts_stopped_or_unscored_at_the_prompt_are_undecided() -> None:
    stopped = Tried(reached=STOPPED_AT_PROMPT, prompt=(0.5, None))
    hard = Tried(reached=STOPPED_AT_PROMPT, prompt=(0.9, None))
    unscored = Tried(uncertainty=0.1)
    failed = Tried(error="ScoringError: no")
    asked = [Asked(name, (one,)) for name, one in zip("abcd", (stopped, hard, unscored, failed), strict=True)]
    assert ends(PROMPTED, *asked, scores_prompts=[True]) == [
        (None, "the tier 'small' was stopped at the prompt, so its answer isn't known"),
        (Action.ABSTAIN, ""),
        (None, "rule 'hard' looks at 'uncertainty', which wasn't recorded"),
        (Action.ABSTAIN, ""),
    ]


def test_zeros_of_either_sign_differ_for_rules_that_divide() -> None:
    rule = "{id: r, when: 1.0 / statistics.logprob_sum > 0.0 && uncertainty < 0.9, do: answer}"
    policy = f"version: 1\nname: p\nrules:\n  - {rule}\n"
    asked = [
        Asked(name, (Tried(uncertainty=0.5, statistics=(zero, -0.1, 0.1, 0.1)),))
        for name, zero in (("a", 0.0), ("b", -0.0))
    ]
    assert [action for action, _ in ends(policy, *asked)] == [Action.ANSWER, Action.ABSTAIN]
