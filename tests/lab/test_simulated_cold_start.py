"""Logged decisions without an uncertainty, simulated by the code that decided them."""

import json
from pathlib import Path

import numpy as np

from ilis_guard import Action, Decision, Guard, Policy, Tier
from ilis_guard.lab.score import score_decisions
from ilis_guard.lab.simulate import simulation_sample
from ilis_guard.policy.simulation import simulate
from ilis_guard.scoring.profile import LEAST_ANSWERS
from ilis_guard.scoring.rolling_profile import RollingProfile
from ilis_guard.testing import FakeModel, InMemoryQueue
from ilis_guard.types import Generation, Statistics


def decisions(folder: Path) -> list[Decision]:
    surprises = np.random.default_rng(0).gamma(2, 0.3, 60).tolist()
    answers = [
        Generation(
            text=f"answer {number}",
            tokens=3,
            prompt_tokens=2,
            finish_reason="stop",
            seconds=0.0,
            statistics=Statistics(logprob_sum=-3 * value, logprob_mean=-value, entropy_mean=0.2, margin_min=0.5),
        )
        for number, value in enumerate(surprises)
    ]
    tier = Tier(name="chat", model=FakeModel(answers), profile=RollingProfile(folder / "chat.db"))
    with Guard(tiers=[tier], policy=Policy.load("cold-start"), review=InMemoryQueue()) as guard:
        return [guard.decide(f"question {number}", id=f"r{number}") for number in range(len(answers))]


def test_a_simulation_rules_as_the_guard_did_and_answers_nothing_without_a_rank(tmp_path: Path) -> None:
    made = decisions(tmp_path)
    file = tmp_path / "decisions.jsonl"
    file.write_text("".join(json.dumps(one.to_dict(), allow_nan=False) + "\n" for one in made))
    recording = simulation_sample(score_decisions(["chat"], file)).recording
    policies = {name: simulate(Policy.load(name), recording) for name in ("cold-start", "default", "customer-support")}
    order = [recording.ids.index(one.id) for one in made]
    answered = {name: outcomes.are(Action.ANSWER)[order] for name, outcomes in policies.items()}
    live = np.array([one.mode == "enforce" and one.action is Action.ANSWER for one in made])
    assert 10 < live.sum() < 40
    assert not live[:LEAST_ANSWERS].any()
    assert answered["cold-start"].tolist() == live.tolist() == answered["default"].tolist()
    assert not answered["customer-support"].any(), "its guarantee covers no rank"
