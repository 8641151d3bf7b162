"""An agent's model without a bundle: its answers are ranked among its own, and its calls of tools aren't answers."""

from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from ilis_guard import Guard, Policy, Tier
from ilis_guard.models.remote import RemoteModel
from ilis_guard.scoring.profile import LEAST_ANSWERS
from ilis_guard.scoring.rolling_profile import RollingProfile
from ilis_guard.testing import FakeModel, InMemoryQueue
from ilis_guard.types import Generation, Statistics
from ilis_guard_langchain import IlisGuardMiddleware
from tests.adapters.agents import ScriptedChat, tool_call

ASKED: Any = {"messages": [("user", "How is the weather in Oslo?")]}
ALL_SHADOWED = """
version: 1
name: cold
cold_start: {enforced: 0.0001}
rules:
  - {id: failed, when: error != "", do: retry}
  - {id: sure, when: rank < 0.6, do: answer}
  - {id: rest, do: abstain, say: I can't answer this.}
"""


@tool
def weather(city: str) -> str:
    """Tells the weather."""
    return f"12 degrees in {city}"


def reply(number: int) -> AIMessage:
    told = {"content": [{"token": "Mild.", "logprob": -(number % 7) / 7 - 0.01, "bytes": None, "top_logprobs": []}]}
    return AIMessage("Mild.", response_metadata={"logprobs": told})


def guard_of(profile: RollingProfile, *larger: Tier, chat: ScriptedChat | None = None) -> Guard:
    tier = Tier(name="small", model=RemoteModel(chat or ScriptedChat(replies=[])), profile=profile)
    return Guard(tiers=[tier, *larger], policy=Policy.parse(ALL_SHADOWED), review=InMemoryQueue())


def told(state: dict[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = state["messages"][-1].response_metadata["ilis_guard"]
    return summary


def test_an_agents_answers_are_ranked_once_twenty_are_known(tmp_path: Path) -> None:
    count = LEAST_ANSWERS + 7
    replies = [one for number in range(count) for one in (tool_call("weather", city="Oslo"), reply(number))]
    profile = RollingProfile(tmp_path / "agent.db")
    middleware = [IlisGuardMiddleware(guard_of(profile))]
    agent = create_agent(ScriptedChat(replies=replies), [weather], middleware=middleware)
    said = [agent.invoke(ASKED) for _ in range(count)]
    assert profile.answers == count, "calls of tools are no answers"
    assert {state["messages"][-1].content for state in said[:LEAST_ANSWERS]} == {"Mild."}
    assert {told(state)["rank"] for state in said[:LEAST_ANSWERS]} == {None}
    ranks = [told(state)["rank"] for state in said[LEAST_ANSWERS:]]
    assert [told(state)["action"] for state in said[LEAST_ANSWERS:]] == [
        "answer" if rank < 0.6 else "abstain" for rank in ranks
    ]
    assert {"answer", "abstain"} == {told(state)["action"] for state in said[LEAST_ANSWERS:]}


def test_a_larger_tiers_answer_is_given_in_shadow_after_the_agents_model_failed(tmp_path: Path) -> None:
    statistics = Statistics(logprob_sum=-0.3, logprob_mean=-0.1, entropy_mean=0.2, margin_min=0.5)
    answer = Generation(
        text="Mild, I'd say.", tokens=3, prompt_tokens=1, finish_reason="stop", seconds=0.0, statistics=statistics
    )
    larger = Tier(name="large", model=FakeModel(answer), profile=RollingProfile(tmp_path / "large.db"))
    guard = guard_of(RollingProfile(tmp_path / "small.db"), larger)
    agent = create_agent(ScriptedChat(replies=[ValueError("boom")]), middleware=[IlisGuardMiddleware(guard)])
    state = agent.invoke(ASKED)
    assert state["messages"][-1].content == "Mild, I'd say."
    assert (told(state)["tier"], told(state)["action"], told(state)["rule"]) == ("large", "answer", None)


@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"content": [{"token": "Other", "logprob": -0.1}]}])
def test_an_agents_answer_without_log_probabilities_of_its_own_is_never_given(
    logprobs: dict[str, Any] | None, tmp_path: Path
) -> None:
    profile = RollingProfile(tmp_path / "agent.db")
    message = AIMessage("Snow!", response_metadata={} if logprobs is None else {"logprobs": logprobs})
    middleware = [IlisGuardMiddleware(guard_of(profile))]
    state = create_agent(ScriptedChat(replies=[message]), middleware=middleware).invoke(ASKED)
    assert state["messages"][-1].content == "I can't answer this."
    assert told(state)["errors"][0]["kind"] == "ScoringError"
    assert profile.answers == 0
