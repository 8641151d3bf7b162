"""A policy's `budget`, and a tier's `cost`, `max_concurrent` and `breaker`."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import tenacity

from ilis_guard.cascade.tier import Tier
from ilis_guard.config.tiers import BreakerSettings, TierCost
from ilis_guard.errors import ConfigError, TransientModelError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action, Decision, Generation, Message, ObstacleKind, SpentBudget
from tests.explained import problem

QUESTION = "What is the boiling point of gallium?"
RULES = """
rules:
  - {id: failed, when: error != '', do: retry}
  - {id: failed-for-good, when: error != '', do: abstain, say: Sorry.}
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: larger, do: retry}
  - {id: person, do: escalate}
"""


def policy(budget: str, rules: str = RULES) -> Policy:
    return Policy.parse(f"version: 1\nname: p\nbudget: {budget}\n{rules}")


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def guard(budget: str, *tiers: Tier, rules: str = RULES, clock: Callable[[], float] = time.monotonic) -> Guard:
    return Guard(
        tiers=tiers,
        policy=policy(budget, rules),
        review=InMemoryQueue(),
        backoff=tenacity.wait_none(),
        clock=clock,
    )


def obstacles(made: Decision) -> list[tuple[str, ObstacleKind]]:
    """Rules that held in the last ruling and couldn't act, and why."""
    return [(one.rule, one.obstacle.kind) for one in made.rulings[-1].outcomes if one.obstacle is not None]


class Hanging(FakeModel):
    """Answers once it is let go."""

    def __init__(self, text: str = "yes") -> None:
        super().__init__(text)
        self.go = threading.Event()

    def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
        self.go.wait()
        return super().generate(messages, **options)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    model = Hanging()
    yield model
    model.go.set()


def tier(name: str, uncertainty: float = 0.5, model: Any = None, **settings: Any) -> Tier:
    return Tier(name=name, model=model or FakeModel(f"answer of {name}"), scorer=FixedScorer(uncertainty), **settings)


def test_hanging_model_is_abandoned_at_the_deadline(hanging: Hanging) -> None:
    large = tier("large", 0.1)
    made = guard("{max_seconds: 0.1}", tier("small", 0.1, hanging), large).decide(QUESTION)
    error = "BudgetError: the request's 0.1 seconds are over; the model was given up"
    assert (made.action, made.text, made.rules) == (Action.ABSTAIN, "Sorry.", ("failed-for-good",))
    assert [problem(attempt) for attempt in made.attempts] == [error]
    # The time is over for larger tiers too, and the ruling says so.
    assert made.rulings[0].spent == SpentBudget(limit="max_seconds", value=0.1)
    assert isinstance(large.model, FakeModel)
    assert large.model.calls == []


async def test_hanging_model_blocks_no_tasks_and_no_later_requests(hanging: Hanging) -> None:
    watched = guard("{max_seconds: 0.1}", tier("small", 0.1, hanging))
    many = await asyncio.gather(*(watched.adecide(QUESTION) for _ in range(100)))
    assert {made.action for made in many} == {Action.ABSTAIN}
    assert {"given up" in problem(made.attempts[0]) or "are over" in problem(made.attempts[0]) for made in many} == {
        True
    }


def test_late_answer_is_not_given() -> None:
    clock = Clock()

    class SlowScorer(FixedScorer):
        def score(self, generation: Generation) -> Any:
            clock.advance(60)
            return super().score(generation)

    slow = Tier(name="small", model=FakeModel("yes"), scorer=SlowScorer(0.0))
    made = guard("{max_seconds: 50}", slow, clock=clock).decide(QUESTION)
    (attempt,) = made.attempts
    assert (made.action, made.text) == (Action.ABSTAIN, "Sorry.")
    assert (attempt.text, attempt.uncertainty) == ("yes", 0.0)
    assert problem(attempt) == "BudgetError: the request's 50 seconds are over"


def test_deadline_covers_all_attempts_of_a_request() -> None:
    clock, remaining = Clock(), []

    class Slow(FakeModel):
        def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
            remaining.append(options["deadline"].remaining)
            clock.advance(99.5)
            return super().generate(messages, **options)

    slow = [tier("small", 0.9, Slow("no")), tier("large", 0.1, Slow("yes"))]
    made = guard("{max_seconds: 100}", *slow, clock=clock).decide(QUESTION)
    small, large = made.attempts
    assert remaining == pytest.approx([100, 0.5])
    assert (problem(small), problem(large)) == ("", "BudgetError: the request's 100 seconds are over")
    assert (small.seconds, large.seconds) == (99.5, 99.5)
    assert made.action is Action.ABSTAIN


def test_repeats_end_with_the_deadline() -> None:
    model = FakeModel(TransientModelError("busy"))
    watched = Guard(
        tiers=[tier("small", 0.1, model)],
        policy=policy("{max_seconds: 60}"),
        review=InMemoryQueue(),
        backoff=tenacity.wait_fixed(3600),
    )
    made = watched.decide(QUESTION)
    assert (problem(made.attempts[0]), len(model.calls)) == ("TransientModelError: busy", 1)


def test_prompt_rule_decides_in_time_and_is_ignored_afterwards(hanging: Hanging) -> None:
    rules = "rules:\n  - {id: hard, stage: prompt, when: uncertainty > 0.8, do: escalate}\n" + RULES.removeprefix(
        "\nrules:\n"
    )
    prompts = FixedScorer([0.9, 0.9])
    early = Tier(name="small", model=FakeModel("yes"), scorer=FixedScorer(0.1), prompt_scorer=prompts)
    assert guard("{max_seconds: 60}", early, rules=rules).decide(QUESTION).rules == ("hard",)
    late = Tier(name="small", model=hanging, scorer=FixedScorer(0.1), prompt_scorer=prompts)
    made = guard("{max_seconds: 0.1}", late, rules=rules, clock=Clock()).decide(QUESTION)
    hanging.go.set()
    assert (made.rules, made.attempts[0].stage) == (("failed-for-good",), "answer")


def test_max_attempts_leaves_no_larger_tier() -> None:
    made = guard("{max_attempts: 2}", *map(tier, ("a", "b", "c"))).decide(QUESTION)
    assert (made.action, made.rules) == (Action.ESCALATE, ("larger", "person"))
    assert [attempt.tier for attempt in made.attempts] == ["a", "b"]
    assert made.rulings[-1].spent == SpentBudget(limit="max_attempts", value=2)
    assert obstacles(made) == [("larger", "no_larger_tier")]


def test_max_cost_leaves_no_larger_tier() -> None:
    cheap = TierCost(per_request=0.001, per_million_prompt_tokens=100.0, per_million_tokens=200.0)
    dear = TierCost(per_request=0.5)
    tiers = [tier("a", cost=cheap), tier("b", cost=dear), tier("c", cost=dear)]
    made = guard("{max_cost: 0.4}", *tiers).decide(QUESTION)
    # 7 words asked, 3 answered.
    assert [attempt.cost for attempt in made.attempts] == pytest.approx([0.001 + 0.0007 + 0.0006, 0.5])
    assert made.cost == pytest.approx(0.5023)
    assert made.to_dict()["cost"] == made.cost
    assert (made.action, made.rules) == (Action.ESCALATE, ("larger", "person"))
    assert made.rulings[-1].spent == SpentBudget(limit="max_cost", value=0.4)


def test_repeated_and_failed_calls_cost_too() -> None:
    rules = "rules:\n  - {id: dear, when: cost > 0.25, do: abstain, say: Dear.}\n"
    failing = tier("a", model=FakeModel(TransientModelError("busy")), cost=TierCost(per_request=0.1))
    made = guard("{max_attempts: 1}", failing, rules=rules).decide(QUESTION)
    assert made.rules == ("dear",)
    assert made.cost == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("generation", "error", "cost"),
    [
        ({"prompt_tokens": None}, "", None),
        ({"prompt_tokens": -1}, "ModelError: a Generation's prompt_tokens are counted from 0, or None, got -1", 0.0),
        ({"prompt_tokens": 10**400}, "", 2**63 / 1e6),
        ({"tokens": 10**400}, "", 2**63 / 1e6),
    ],
)
def test_wrong_token_counts_end_no_request(generation: dict[str, Any], error: str, cost: float | None) -> None:
    counted: dict[str, Any] = {"text": "yes", "tokens": 0, "prompt_tokens": 0, "finish_reason": "stop", "seconds": 0.0}
    model = FakeModel(Generation(**counted | generation))
    free_calls = TierCost(per_million_prompt_tokens=1.0, per_million_tokens=1.0)
    made = guard("{max_attempts: 1}", tier("a", model=model, cost=free_calls)).decide(QUESTION)
    assert (problem(made.attempts[0]), made.cost) == (error, cost)


def test_a_spared_model_costs_nothing() -> None:
    rules = "rules:\n  - {id: no, stage: prompt, do: abstain}\n"
    made = guard("{max_attempts: 1}", tier("a", cost=TierCost(per_request=0.1)), rules=rules).decide(QUESTION)
    assert (made.rules, made.cost) == (("no",), 0.0)


def test_max_cost_needs_known_prices() -> None:
    tiers = [tier("a", cost=TierCost(per_request=0.1)), tier("b")]
    with pytest.raises(ConfigError, match=r"<string>:3:20: the budget limits the cost, and that of the tiers \['b'\]"):
        guard("{max_cost: 0.4}", *tiers)


def test_a_tier_that_is_down_is_a_fact_and_another_one_answers() -> None:
    broken = FakeModel(RuntimeError("CUDA out of memory"))
    small = tier("small", model=broken, breaker=BreakerSettings(failures=2, seconds=3600))
    watched = guard("{max_attempts: 2}", small, tier("large", 0.1))
    made = [watched.decide(QUESTION) for _ in range(4)]
    assert [decision.text for decision in made] == ["answer of large"] * 4
    assert len(broken.calls) == 2
    assert problem(made[-1].attempts[0]).startswith("CircuitOpenError: the tier 'small' is down: 2 calls")


def test_a_tier_that_is_back_answers_again() -> None:
    model = FakeModel([RuntimeError("down"), "yes", "yes"])
    small = tier("small", 0.1, model, breaker=BreakerSettings(failures=1, seconds=1.0))
    clock = Clock()
    watched = guard("{max_attempts: 1}", small, clock=clock)
    assert watched.decide(QUESTION).action is Action.ABSTAIN
    assert "is down" in problem(watched.decide(QUESTION).attempts[0])
    clock.advance(1.0)
    assert [watched.decide(QUESTION).text for _ in range(2)] == ["yes", "yes"]


def test_requests_wait_for_a_busy_tier_until_their_deadline(hanging: Hanging) -> None:
    watched = guard("{max_seconds: 0.2}", tier("small", 0.1, hanging, max_concurrent=1), clock=Clock())
    first = watched.decide(QUESTION)
    assert "given up" in problem(first.attempts[0])
    # The call that was given up is still under way.
    second = watched.decide(QUESTION)
    assert problem(second.attempts[0]) == (
        "BudgetError: the request's 0.2 seconds are over; it waited for other calls of the tier (max_concurrent)"
    )
    assert hanging.calls == []


async def test_concurrent_calls_stay_within_the_limit() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    class Crowded(FakeModel):
        def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.002)
            with lock:
                inside -= 1
            return super().generate(messages, **options)

    watched = guard("{max_seconds: 60}", tier("small", 0.1, Crowded("yes"), max_concurrent=2))
    threads = [threading.Thread(target=watched.decide, args=(QUESTION,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    made = await asyncio.gather(*(watched.adecide(QUESTION) for _ in range(20)))
    for thread in threads:
        thread.join()
    assert {decision.text for decision in made} == {"yes"}
    assert most == 2


def test_a_models_own_deadline_is_the_requests() -> None:
    """So that a local model stops at the next token, see tests/models/test_stepwise_answers.py."""
    seen: list[Any] = []

    class Looking(FakeModel):
        def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
            seen.append(options)
            return super().generate(messages, **options)

    guard("{max_attempts: 1}", tier("small", 0.1, Looking("yes"))).decide(QUESTION)
    guard("{max_seconds: 7}", tier("small", 0.1, Looking("yes"))).decide(QUESTION)
    assert seen[0] == {}
    assert (set(seen[1]), seen[1]["deadline"].max_seconds) == ({"deadline"}, 7.0)


def test_a_model_without_that_argument_is_given_up_all_the_same() -> None:
    go = threading.Event()

    class Plain:
        fingerprint = None

        def generate(self, messages: Sequence[Message]) -> Generation:
            go.wait()
            return FakeModel("yes").generate(messages)

    made = guard("{max_seconds: 0.1}", tier("small", 0.1, Plain()), clock=Clock()).decide(QUESTION)
    go.set()
    assert "given up" in problem(made.attempts[0])


def test_tiers_have_breakers_of_their_own() -> None:
    settings = {"breaker": BreakerSettings(failures=1, seconds=3600)}
    watched = guard(
        "{max_attempts: 2}",
        tier("a", 0.9, FakeModel(RuntimeError("down")), **settings),
        tier("b", 0.1, **settings),
    )
    assert [watched.decide(QUESTION).text for _ in range(3)] == ["answer of b"] * 3


def test_a_rule_at_the_prompt_counts_the_call_that_is_under_way() -> None:
    rules = """
rules:
  - {id: hard, stage: prompt, when: uncertainty > 0.8, do: retry}
  - {id: sure, when: uncertainty < 0.2, do: answer}
"""
    small = tier("small", 0.1, prompt_scorer=FixedScorer(0.9), cost=TierCost(per_request=1.0))
    large = tier("large", 0.1, prompt_scorer=FixedScorer(0.1), cost=TierCost(per_request=1.0))
    made = guard("{max_cost: 1}", small, large, rules=rules).decide(QUESTION)
    assert [(attempt.tier, attempt.cost) for attempt in made.attempts] == [("small", 1.0)]
    assert obstacles(made) == [("hard", "no_larger_tier")]
    assert made.rulings[0].spent == SpentBudget(limit="max_cost", value=1)
    made = guard("{max_cost: 1.5}", small, large, rules=rules).decide(QUESTION)
    assert [(attempt.tier, attempt.cost) for attempt in made.attempts] == [("small", 1.0), ("large", 1.0)]
    assert all(ruling.spent is None for ruling in made.rulings)
