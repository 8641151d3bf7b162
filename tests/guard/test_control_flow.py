"""An exception with which a framework leaves a call for a while passes through a guard: it's no failure of a model."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langgraph.errors import GraphBubbleUp, GraphInterrupt

from ilis_guard import Guard, Policy, Tier
from ilis_guard.config.tiers import BreakerSettings
from ilis_guard.models.remote import RemoteModel
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue

QUESTION = "What is the boiling point of gallium?"
RULES = """
rules:
  - {id: failed, when: error != "", do: retry}
  - {id: any, when: uncertainty <= 1.0, do: answer}
  - {id: ask, do: escalate}
"""
PLAIN = "version: 1\nname: p" + RULES
IN_TIME = "version: 1\nname: p\nbudget: {max_seconds: 60}" + RULES


def guard_of(model: Any, policy: str = PLAIN, **options: Any) -> tuple[Guard, FakeModel, InMemoryQueue]:
    """A guard whose second tier must not be asked, and whose queue must stay empty."""
    larger, queue = FakeModel("larger"), InMemoryQueue()
    tiers = [
        Tier(name="small", model=model, scorer=FixedScorer(0.1), **options),
        Tier(name="large", model=larger, scorer=FixedScorer(0.1)),
    ]
    return Guard(tiers=tiers, policy=Policy.parse(policy), review=queue), larger, queue


@pytest.mark.parametrize("policy", [PLAIN, IN_TIME])
def test_control_flow_leaves_the_guard_without_a_decision(policy: str) -> None:
    paused = GraphInterrupt()
    guard, larger, queue = guard_of(FakeModel([paused, "2403 °C"]), policy)
    with pytest.raises(GraphInterrupt) as left:
        guard.decide(QUESTION)
    assert left.value is paused
    assert larger.calls == []
    assert queue.list() == []
    assert guard.decide(QUESTION).text == "2403 °C"


async def test_out_of_a_thread_as_well() -> None:
    guard, larger, _ = guard_of(FakeModel(GraphInterrupt()))
    with pytest.raises(GraphInterrupt):
        await asyncio.wait_for(guard.adecide(QUESTION), 60)
    assert larger.calls == []


def test_control_flow_passes_through_scorers() -> None:
    guard = Guard(
        tiers=[Tier(name="only", model=FakeModel("yes"), scorer=FixedScorer(GraphBubbleUp()))],
        policy=Policy.parse(PLAIN),
        review=InMemoryQueue(),
    )
    with pytest.raises(GraphBubbleUp):
        guard.decide(QUESTION)


def test_control_flow_passes_through_chat_models() -> None:
    class Pausing(FakeListChatModel):
        def _call(self, *_: Any, **__: Any) -> str:
            raise GraphInterrupt

    guard, larger, _ = guard_of(RemoteModel(Pausing(responses=["never"])))
    with pytest.raises(GraphInterrupt):
        guard.decide(QUESTION)
    assert larger.calls == []


def test_control_flow_is_no_failure_of_the_tier() -> None:
    model = FakeModel([GraphInterrupt(), GraphInterrupt(), "2403 °C"])
    guard, _, _ = guard_of(model, breaker=BreakerSettings(failures=1, seconds=60))
    for _ in range(2):
        with pytest.raises(GraphInterrupt):
            guard.decide(QUESTION)
    assert guard.decide(QUESTION).text == "2403 °C"


@pytest.mark.usefixtures("process")
def test_the_guard_imports_no_framework_to_tell() -> None:
    asked = """
import sys
from ilis_guard.errors import control_flow
from ilis_guard.testing import fake_guard
assert fake_guard("default", {"small": 0.1}).decide("Who?").action == "answer"
assert [kind.__name__ for kind in control_flow()] == ["ClientDisconnected"]
assert "langgraph" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", asked], check=True)
