"""The main job with the real parts: real weights, shipped bundles, real SQLite."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from ilis_guard import Action, Decision, Guard, ReviewQueue
from ilis_guard.config import read_config
from ilis_guard.errors import BundleMismatchError, PromptTooLongError
from ilis_guard.lab.demo import QUESTIONS, prepare
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.tiers import load_local_model, load_tier

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def guard(demo_config: Path) -> Guard:
    return Guard.from_config(demo_config)


@pytest.fixture(scope="module")
def decisions(guard: Guard) -> list[Decision]:
    return [guard.decide(question) for question in QUESTIONS]


def test_the_demo_shows_all_four_actions_by_honest_scores(decisions: list[Decision]) -> None:
    assert {made.action for made in decisions} == {Action.ANSWER, Action.ABSTAIN, Action.ESCALATE}
    assert any(len(made.attempts) == 2 for made in decisions)


def test_every_attempt_on_a_real_model_is_scored(decisions: list[Decision]) -> None:
    for made in decisions:
        for attempt in made.attempts:
            assert attempt.error == ""
            assert attempt.uncertainty is not None
            assert 0 <= attempt.uncertainty <= 1
            assert attempt.signature is not None
            layers = {"small": 30, "large": 18}[attempt.tier]
            assert attempt.signature.shape == (layers, layers)
            assert attempt.signature.dtype == np.float32
            assert np.isfinite(attempt.signature).all()


def test_what_was_escalated_waits_in_the_queue_with_everything_a_reviewer_needs(
    decisions: list[Decision], demo_config: Path
) -> None:
    escalated = [made for made in decisions if made.action is Action.ESCALATE]
    review = read_config(demo_config).review
    assert review is not None
    with ReviewQueue(review.storage) as queue:
        assert {ticket.id for ticket in queue.list()} == {made.ticket.id for made in escalated if made.ticket}
        for made in escalated:
            assert made.ticket is not None
            record = queue.get(made.ticket.id)
            assert record.decision == made.id
            assert [attempt["text"] for attempt in record.attempts] == [attempt.text for attempt in made.attempts]


def test_the_same_question_gets_the_same_decision(guard: Guard, decisions: list[Decision]) -> None:
    again = guard.decide(QUESTIONS[0])
    assert (again.action, again.text, again.uncertainty) == (
        decisions[0].action,
        decisions[0].text,
        decisions[0].uncertainty,
    )


async def test_concurrent_requests_on_real_models_do_not_mix(guard: Guard, decisions: list[Decision]) -> None:
    together = await asyncio.gather(*(guard.adecide(question) for question in QUESTIONS[:4]))
    assert [(made.text, made.uncertainty) for made in together] == [
        (made.text, made.uncertainty) for made in decisions[:4]
    ]


def test_a_decision_on_real_models_is_json(decisions: list[Decision]) -> None:
    for made in decisions:
        assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["id"] == made.id


def test_a_prompt_longer_than_the_context_is_no_answer_and_says_why(guard: Guard) -> None:
    made = guard.decide("word " * 40_000)
    assert made.action is not Action.ANSWER
    assert made.attempts[0].error.startswith(PromptTooLongError.__name__)
    assert "8192" in made.attempts[0].error


@pytest.mark.parametrize("name", ["smollm2-135m-instruct-nf4", "smollm2-135m-instruct-full", "gemma-3-270m-full"])
def test_the_shipped_bundles_fit_the_models_they_were_made_from(name: str) -> None:
    model = load_local_model(read_config(ROOT / "benchmarks" / "bundles.yaml").tier(name))
    LightGBMScorer(read_bundle(f"packaged:{name}")).check_fits(model.fingerprint)


def test_a_bundle_fitted_at_another_precision_is_refused_with_both_fingerprints(demo_config: Path) -> None:
    small = read_config(demo_config).tier("small")
    with pytest.raises(BundleMismatchError) as caught:
        load_tier(small.model_copy(update={"precision": "full"}))
    assert "precision differ" in str(caught.value)
    assert "precision nf4" in str(caught.value)
    assert "precision full" in str(caught.value)
