"""The key `cold_start`: which answers are given before they can be ranked, and what is refused beside it."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from ilis_guard.errors import PolicyError
from ilis_guard.policy import Policy
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.types import Labels, Obstacle

RULES = """
rules:
  - {id: legal, when: has(labels.legal), do: escalate}
  - {id: sure, when: rank < 0.6, do: answer}
  - {id: rest, do: escalate}
"""


def policy(cold_start: str = "cold_start: {enforced: 0.2}", rules: str = RULES, more: str = "") -> Policy:
    return Policy.parse(f"version: 1\nname: p\n{cold_start}\n{more}{rules}", path="p.yaml")


def state(key: str = "request 1", labels: Labels | None = None, of: Policy | None = None) -> CascadeState:
    return CascadeState(policy=of or policy(), tiers=("chat",), labels=labels or {}, sampling_key=key)


COLD = AttemptSummary(tier="chat", calibrated=False)


def test_four_in_five_answers_are_shadowed_by_their_requests_ids() -> None:
    shadowed = [state(f"request {number}").is_shadowed(COLD) for number in range(2000)]
    assert 0.77 < sum(shadowed) / 2000 < 0.83
    assert shadowed == [state(f"request {number}").is_shadowed(COLD) for number in range(2000)]
    more = policy("cold_start: {enforced: 0.3}")
    fewer = [state(f"request {number}", of=more).is_shadowed(COLD) for number in range(2000)]
    assert all(one or not other for one, other in zip(shadowed, fewer, strict=True)), "a larger sample holds a smaller"


FREE = next(f"request {number}" for number in range(100) if state(f"request {number}").is_shadowed(COLD))


@pytest.mark.parametrize(
    "attempt",
    [
        replace(COLD, error="ModelError"),
        replace(COLD, rank=0.9),
        replace(COLD, rank=0.1),
        replace(COLD, uncertainty=0.1),
        replace(COLD, uncertainty=0.9, calibrated=True),
        replace(COLD, stopped_at=3),
    ],
    ids=str,
)
def test_only_an_answer_that_isnt_ranked_yet_is_shadowed(attempt: AttemptSummary) -> None:
    assert state(FREE).is_shadowed(COLD)
    assert not state(FREE).is_shadowed(attempt)


def test_what_the_policy_wouldnt_give_at_its_surest_isnt_shadowed() -> None:
    assert not state(FREE, {"legal": True}).is_shadowed(COLD)
    assert not state(FREE, {"bad\nname" * 200: "x"}).is_shadowed(COLD)
    assert not state(FREE).is_shadowed(COLD, answer_blocked_by=Obstacle(kind="rule_failed", rule="early"))
    slow = policy(more="budget: {max_seconds: 1}\n")
    assert state(FREE, of=slow).is_shadowed(replace(COLD, seconds=0.5))
    assert not state(FREE, of=slow).is_shadowed(replace(COLD, seconds=1.5))


def test_without_the_key_nothing_is_shadowed() -> None:
    assert not any(state(f"request {number}", of=policy("")).is_shadowed(COLD) for number in range(100))


@given(
    rank=st.none() | st.floats(),
    uncertainty=st.none() | st.floats(),
    error=st.sampled_from(["", "ScoringError"]),
    key=st.text(max_size=5),
)
def test_no_ruling_answers_what_has_no_rank(
    rank: float | None, uncertainty: float | None, error: str, key: str
) -> None:
    attempt = replace(COLD, rank=rank, uncertainty=uncertainty, error=error)
    ruling = state(key).evaluate_answer(attempt)
    is_known = rank is not None and 0 <= rank < 0.6 and not math.isnan(rank)
    assert (ruling.action.value == "answer") is (is_known and not error)


@pytest.mark.parametrize(
    ("cold_start", "rules", "more", "complaint"),
    [
        (
            "cold_start: {enforced: 0.2}",
            "rules: [{id: sure, when: certified && rank < 0.6, do: answer}]",
            "guarantee: {max_error: 0.1}\n",
            r"p\.yaml:3:1: `cold_start` gives answers unguarded, which no guarantee can cover",
        ),
        (
            "cold_start: {enforced: 0.2}",
            "rules: [{id: sure, when: uncertainty < 0.6, do: answer}, {id: r, when: rank > 0.9, do: abstain}]",
            "",
            r"p\.yaml:3:1: `cold_start` lasts until answers have a rank, and no answer rule looks at it",
        ),
        ("cold_start: {}", RULES, "", "the key 'enforced' is missing"),
        ("cold_start: {enforced: 0}", RULES, "", "greater than 0"),
        ("cold_start: {enforced: 20}", RULES, "", "must be a share, from 0 to 1"),
        ("cold_start: {enforced: 0.2, shadow: 0.8}", RULES, "", "unknown key 'shadow'"),
        ("cold_start:", RULES, "", "has no value"),
    ],
)
def test_what_makes_no_sense_is_refused(cold_start: str, rules: str, more: str, complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        policy(cold_start, rules, more)


def test_the_key_is_part_of_the_fingerprint_and_noted_loudly() -> None:
    assert len({policy().fingerprint, policy("").fingerprint, policy("cold_start: {enforced: 0.3}").fingerprint}) == 3
    (notice,) = (one for one in policy().notices() if one.level == "note")
    assert notice.what.startswith("COLD START: until the answers of a tier without a bundle can be ranked, this policy")
    assert "UNGUARDED, except for a share of 0.2" in notice.what
