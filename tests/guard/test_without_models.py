"""Requests whose time is over: no model is asked, and the policy says what comes of them."""

import pytest

from ilis_guard import Guard, Policy, Tier
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Action
from tests.explained import problem

WHY = "the server is being stopped"


def test_escalations_are_stored_without_calling_a_model() -> None:
    models = [FakeModel("yes"), FakeModel("yes")]
    with InMemoryQueue() as queue:
        guard = Guard(
            tiers=[
                Tier(name=name, model=model, scorer=FixedScorer(0.1))
                for name, model in zip(("small", "large"), models, strict=True)
            ],
            policy=Policy.load("default"),
            review=queue,
        )
        decision = guard.without_models(WHY).decide("Is it safe?")
        assert decision.ticket is not None
        assert queue.get(decision.ticket.id).decision == decision.id
        # The guard itself goes on as before.
        assert guard.decide("Is it safe?").text == "yes"
    assert [problem(attempt) for attempt in decision.attempts] == [f"BudgetError: {WHY}"] * 2
    assert (decision.action, decision.rules[-1]) == (Action.ESCALATE, "failed-so-ask-a-person")
    assert [len(model.calls) for model in models] == [1, 0]


@pytest.mark.parametrize("policy", ["cost-first", "customer-support", "clinical", "rag-with-context", "code-assistant"])
def test_no_policy_answers_without_a_model(policy: str) -> None:
    with fake_guard(policy, {"small": 0.01, "large": 0.01}, prompts={"small": 0.01}) as guard:
        assert guard.without_models(WHY).decide("Is it safe?").action is not Action.ANSWER


def test_requests_wait_for_no_model_that_isnt_called() -> None:
    tier = Tier(name="small", model=FakeModel("yes"), scorer=FixedScorer(0.1), max_concurrent=1)
    policy = Policy.parse("version: 1\nname: p\nrules: [{id: all, do: abstain}]\n")
    guard = Guard(tiers=[tier], policy=policy)
    limiter = guard._cascade.callers["small"]._limiter
    limiter.acquire(None)
    assert guard.without_models(WHY).decide("Is it safe?").action is Action.ABSTAIN
    limiter.release()
