"""What was cut by a stream is on record as that, wherever decisions and tickets are read again."""

import json
from pathlib import Path

import pytest
import tenacity
from rich.console import Console

from ilis_guard import Attempt, Decision, Guard, Policy
from ilis_guard.cascade.early_stop import PATIENCE
from ilis_guard.cascade.tier import Tier
from ilis_guard.cli.decision_tables import attempts_table
from ilis_guard.lab.score import score_decisions
from ilis_guard.policy.explain import explain_decision
from ilis_guard.policy.records import AttemptJson
from ilis_guard.policy.replay import DecisionRecord, replay
from ilis_guard.review.record import judged_in
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action

POLICY = Policy.parse("""
version: 1
name: p
rules:
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: larger, do: retry}
  - {id: person, do: escalate}
""")


@pytest.fixture(scope="module")
def cut() -> Decision:
    """Of two attempts, one was cut and the other answers."""
    words = "one two three four five six seven eight"
    tiers = [
        Tier(name="small", model=FakeModel(words), scorer=FixedScorer(0.97)),
        Tier(name="large", model=FakeModel("right"), scorer=FixedScorer(0.1)),
    ]
    with InMemoryQueue() as queue:
        *_, made = Guard(tiers=tiers, policy=POLICY, review=queue, backoff=tenacity.wait_none()).stream(
            "?", mode="early_stop"
        )
    assert isinstance(made, Decision)
    assert [attempt.stopped_at for attempt in made.attempts] == [PATIENCE, None]
    return made


def test_printed_attempt_is_read_back_with_the_early_stop(cut: Decision) -> None:
    printed = cut.attempts[0].to_dict()
    assert AttemptJson.model_validate_json(json.dumps(printed)).attempt.stopped_at == PATIENCE


def test_replay_repeats_the_rulings_on_a_stopped_answer(cut: Decision) -> None:
    record = DecisionRecord(
        id=cut.id,
        policy=cut.policy,
        action=cut.action,
        ticket=cut.ticket,
        rulings=cut.rulings,
        attempts=cut.attempts,
        labels=cut.labels,
        prompt_length=cut.prompt_length,
        thresholds={},
    )
    steps = replay(POLICY, record, larger_tiers=(), given={}).steps
    assert [step.agrees for step in steps] == [True, True]
    assert steps[0].explanation.ruling is not None
    assert steps[0].explanation.ruling.action is Action.RETRY
    assert record.paragraph == explain_decision(cut)


def test_stopped_answer_counts_as_never_answered_in_a_table(cut: Decision, tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text(json.dumps(cut.to_dict()) + "\n")
    small, large = score_decisions(["small", "large"], path).rows()
    assert (small["stage"], small["uncertainty"], small["seconds"]) == ("prompt", None, None)
    assert (large["stage"], large["uncertainty"]) == ("answer", 0.1)


def test_table_of_attempts_shows_the_early_stop(cut: Decision) -> None:
    console = Console(width=200)
    with console.capture() as printed:
        console.print(attempts_table(cut.attempts))
    told = printed.get()
    assert f"one two three four (stopped after {PATIENCE} tokens)" in told
    assert "right" in told


def test_half_an_answer_is_no_example_though_an_earlier_attempt_is_one() -> None:
    whole, half = Attempt(tier="small", text="whole"), Attempt(tier="large", text="hal", stopped_at=1)
    attempts = [whole.to_dict(), half.to_dict()]
    assert judged_in(attempts) == attempts[0]
    assert judged_in([half.to_dict()]) is None
