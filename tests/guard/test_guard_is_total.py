"""Whatever policies, models, scorers and queues do: one decision, no exception, and no answer on an error."""

import math
from collections.abc import Sequence
from typing import Any

import tenacity
from hypothesis import HealthCheck, given, settings, strategies as st

from ilis_guard.cascade.tier import Tier
from ilis_guard.concurrency.deadline import Deadline
from ilis_guard.config.tiers import BreakerSettings, TierCost
from ilis_guard.errors import (
    ModelError,
    PolicyError,
    ReviewError,
    ScoringError,
    TransientModelError,
)
from ilis_guard.guard import Guard
from ilis_guard.models.base import Proceed
from ilis_guard.policy import Policy
from ilis_guard.testing import FakeModel, FixedScorer
from ilis_guard.types import Action, Decision, Generation, Message, Score, Ticket
from tests.explained import problem

TIERS = ("small", "middle", "large")
CONDITIONS = (
    "uncertainty < 0.5",
    "uncertainty >= 0.0 || error == ''",
    "!(uncertainty > 0.5)",
    "typicality > 0.1 && uncertainty < 0.9",
    "!(typicality < 0.1) && !(uncertainty > 2.0)",
    "error != '' || uncertainty > 0.7",
    "labels.topic == 'legal' || uncertainty < 0.1",
    "seconds < 1000.0 && cost < 0.15 && uncertainty < 0.8",
    "last_tier || attempt > 1 || uncertainty < 0.3",
)
LATE = object()
"""A model that comes back when the time is over."""


class Unruly(FakeModel):
    """Does what it is told to do."""

    def __init__(self, behaviour: Any) -> None:
        super().__init__("yes" if behaviour is LATE else behaviour)
        self._is_late = behaviour is LATE

    def generate(
        self,
        messages: Sequence[Message],
        *,
        proceed: Proceed | None = None,
        deadline: Deadline | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        if self._is_late and deadline is not None:
            raise deadline.error()
        return super().generate(messages, proceed=proceed, stop=stop)


class Moody:
    """Stores a ticket, or doesn't."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def escalate(self, *, queue: str, **_: Any) -> Ticket:
        if self.error is not None:
            raise self.error
        return Ticket(id="t", queue=queue, state="open", created_at=0.0)

    def close(self) -> None:
        """Nothing is open."""


SCORES: st.SearchStrategy[Any] = st.sampled_from(
    [
        0.0,
        0.3,
        0.6,
        1.0,
        math.nan,
        math.inf,
        -0.1,
        Score(uncertainty=0.2, typicality=math.nan),
        Score(uncertainty="0.1", typicality=1.0),  # type: ignore[arg-type]  # what a scorer of a user's own may return
        ScoringError("no map"),
        ZeroDivisionError("oh"),
    ]
)
SCORERS = SCORES.map(FixedScorer)
REPLIES: st.SearchStrategy[Any] = st.sampled_from(
    ["yes", "", " ", ModelError("no"), TransientModelError("busy"), RuntimeError("down"), LATE]
)
RULES = st.builds(
    lambda number, stage, when, do, to, sample: (
        f"  - {{id: r{number}, stage: {stage}, do: {do}"
        + (f', when: "{when}"' if when else "")
        + (f", to: {to}" if to and do == "retry" else "")
        + (f", sample: {sample}" if sample else "")
        + "}\n"
    ),
    st.integers(0, 10_000),
    st.sampled_from(["answer", "answer", "answer", "prompt"]),
    st.sampled_from([None, *CONDITIONS]),
    st.sampled_from([action.value for action in Action]),
    st.sampled_from([None, *TIERS]),
    st.sampled_from([None, None, 0.5]),
)
HEADS = st.lists(
    st.sampled_from(
        [
            "mode: shadow",
            "audit: {fraction: 0.5, queue: audits}",
            "budget: {max_seconds: 60, max_attempts: 2}",
            "budget: {max_cost: 0.15}",
            "budget: {max_seconds: 0.000001}",
        ]
    ),
    max_size=2,
    unique_by=lambda line: line.split(":")[0],
)


def parsed(heads: list[str], rules: list[str]) -> Policy | None:
    """None for what doesn't load, which is another test's."""
    head = "".join(f"{line}\n" for line in heads)
    try:
        return Policy.parse(f"version: 1\nname: p\n{head}rules:\n{''.join(rules)}")
    except PolicyError:
        return None


POLICIES = st.builds(parsed, HEADS, st.lists(RULES, min_size=1, max_size=4)).filter(bool)


@st.composite
def tiers(draw: st.DrawFn) -> list[Tier]:
    return [
        Tier(
            name=name,
            model=Unruly(draw(REPLIES)),
            scorer=draw(st.none() | SCORERS),
            prompt_scorer=draw(SCORERS),
            cost=TierCost(per_request=0.1),
            max_concurrent=draw(st.sampled_from([None, 1])),
            breaker=draw(st.sampled_from([None, BreakerSettings(failures=1, seconds=1000)])),
        )
        for name in TIERS
    ]


def check(made: Decision, policy: Policy) -> None:
    last = made.attempts[-1]
    assert 1 <= len(made.attempts) <= len(TIERS)
    assert len({attempt.tier for attempt in made.attempts}) == len(made.attempts)
    if policy.mode == "shadow":
        assert len(made.attempts) == 1
        assert (made.action is Action.ANSWER) is bool(last.text.strip())
        assert made.ticket is None
        assert made.shadow is not None
        assert made.shadow.error is None
        return
    assert len(made.rules) == len(made.attempts)
    if made.action is Action.ANSWER:
        assert (made.text, problem(last), last.stage) == (last.text, "", "answer")
        assert made.text.strip()
        assert made.uncertainty is not None
        assert 0 <= made.uncertainty <= 1
    else:
        assert made.text == ""
    assert (made.ticket is not None) >= (made.action is Action.ESCALATE)
    budget = policy.budget
    if budget is not None and budget.max_attempts is not None:
        assert len(made.attempts) <= budget.max_attempts
    if budget is not None and budget.max_seconds == 0.000001:
        assert made.action is not Action.ANSWER
        assert len(made.attempts) == 1
    if budget is not None and budget.max_cost is not None:
        assert sum(attempt.cost or 0.0 for attempt in made.attempts[:-1]) < budget.max_cost


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.large_base_example],
)
@given(
    policy=POLICIES,
    shadow=st.one_of(st.none(), POLICIES),
    walked=tiers(),
    error=st.sampled_from([None, ReviewError("full"), RuntimeError("full")]),
    labels=st.sampled_from([{}, {"topic": "legal"}]),
)
def test_there_is_always_one_decision_and_never_an_answer_on_an_error(
    policy: Policy, shadow: Policy | None, walked: list[Tier], error: Exception | None, labels: dict[str, str]
) -> None:
    guard = Guard(
        tiers=walked,
        policy=policy,
        shadow=None if policy.mode == "shadow" else shadow,
        review=Moody(error),
        backoff=tenacity.wait_none(),
    )
    for _ in range(3):
        made = guard.decide("What is the boiling point of gallium?", labels=labels)
        check(made, policy)
        if shadow is not None and policy.mode != "shadow":
            assert made.shadow is not None
            assert made.shadow.error is None
