"""The main job with the real parts: real weights, shipped bundles, real SQLite."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ilis_guard import Action, Decision, Guard, Message, Policy, ReviewQueue, Tier
from ilis_guard.cascade.loading import load_local_model, load_tier
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.errors import BundleMismatchError, PromptTooLongError
from ilis_guard.lab.demo import QUESTIONS, prepare
from ilis_guard.models.batching import BatchedModel
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.testing import InMemoryQueue
from tests.explained import problem

pytestmark = pytest.mark.usefixtures("real_model")

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
            assert problem(attempt) == ""
            assert attempt.uncertainty is not None
            assert 0 <= attempt.uncertainty <= 1
            assert attempt.signature is not None
            layers = {"small": 30, "large": 18}[attempt.tier]
            assert attempt.signature.shape == (layers, layers)
            assert attempt.signature.dtype == np.float32
            assert np.isfinite(attempt.signature).all()


def test_escalated_ticket_has_everything_a_reviewer_needs(decisions: list[Decision], demo_config: Path) -> None:
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


def test_requests_that_share_passes_get_the_decisions_that_they_get_alone(small: Tier, demo_config: Path) -> None:
    sharing = load_tier(read_config(demo_config).tier("small").model_copy(update={"batch": 4}))
    assert isinstance(sharing.model, BatchedModel)
    assert small.model.fingerprint == sharing.model.fingerprint
    # Some are stopped at their prompts, and their neighbours go on.
    alone, together = (
        Guard(tiers=[tier], policy=Policy.parse(ROUTING.replace("LIMIT", "0.7"))) for tier in (small, sharing)
    )
    expected = [alone.decide(question) for question in QUESTIONS]
    assert {made.rule for made in expected} > {"too-hard"}
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        found = list(pool.map(together.decide, QUESTIONS))
    for one, other in zip(found, expected, strict=True):
        assert (one.action, one.rule, one.text) == (other.action, other.rule, other.text)
        assert one.uncertainty == pytest.approx(other.uncertainty, abs=1e-4)


def test_a_decision_on_real_models_is_json(decisions: list[Decision]) -> None:
    for made in decisions:
        assert json.loads(json.dumps(made.to_dict(), allow_nan=False))["id"] == made.id


def test_a_prompt_longer_than_the_context_is_no_answer_and_says_why(guard: Guard) -> None:
    made = guard.decide("word " * 40_000)
    assert made.action is not Action.ANSWER
    assert problem(made.attempts[0]).startswith(PromptTooLongError.__name__)
    assert "8192" in problem(made.attempts[0])


@pytest.mark.parametrize("name", ["smollm2-135m-instruct-nf4", "smollm2-135m-instruct-full", "gemma-3-270m-full"])
def test_the_shipped_bundles_fit_the_models_they_were_made_from(name: str) -> None:
    model = load_local_model(read_config(ROOT / "benchmarks" / "bundles.yaml").tier(name))
    LightGBMScorer(read_bundle(f"packaged:{name}")).check_fits(model.fingerprint)


def test_bundle_of_another_precision_is_rejected(demo_config: Path) -> None:
    small = read_config(demo_config).tier("small")
    with pytest.raises(BundleMismatchError) as caught:
        load_tier(small.model_copy(update={"precision": "full"}))
    assert "precision differ" in str(caught.value)
    assert "precision nf4" in str(caught.value)
    assert "precision full" in str(caught.value)


@pytest.fixture(scope="module")
def small(demo_config: Path) -> Tier:
    return load_tier(read_config(demo_config).tier("small"))


ROUTING = """
version: 1
name: routing
rules:
  - {id: too-hard, stage: prompt, when: uncertainty >= LIMIT, do: abstain, say: Too hard.}
  - {id: sure, when: uncertainty < 1.0, do: answer}
  - {id: rest, do: abstain}
"""


def routed(tier: Tier, question: str, *, limit: str) -> Decision:
    return Guard(tiers=[tier], policy=Policy.parse(ROUTING.replace("LIMIT", limit))).decide(question)


def test_prompt_scoring_leaves_a_real_answer_unchanged(small: Tier) -> None:
    plain = Guard(tiers=[small], policy=Policy.load("default"), review=InMemoryQueue())
    for question in QUESTIONS[:4]:
        expected = plain.decide(question).attempts[0]
        going_on = (
            Guard(tiers=[small], policy=Policy.parse(ROUTING.replace("LIMIT", "1.0"))).decide(question).attempts[0]
        )
        assert (going_on.text, going_on.tokens) == (expected.text, expected.tokens)
        assert going_on.uncertainty == pytest.approx(expected.uncertainty, abs=1e-6)
        assert going_on.prompt_score is not None
        stopped = routed(small, question, limit=f"{going_on.prompt_score.uncertainty - 1e-3:.6f}")
        assert (stopped.action, stopped.text, stopped.rule) == (Action.ABSTAIN, "Too hard.", "too-hard")
        (attempt,) = stopped.attempts
        assert (attempt.stage, attempt.text, attempt.tokens) == ("prompt", "", 0)
        assert attempt.uncertainty == pytest.approx(going_on.prompt_score.uncertainty, abs=1e-6)
        np.testing.assert_allclose(attempt.signatures["prompt"], expected.signatures["prompt"], rtol=1e-4, atol=1e-6)


def test_the_prompts_score_ranks_real_questions(small: Tier) -> None:
    """What this model knows, against what hardly any person does."""
    known = ["What is the capital of France?", "What is the capital of Italy?", "What is the capital of Germany?"]
    unknown = ["What is the chemical symbol of hafnium?", "What is 84 times 67?", "What is 93 times 58?"]

    def uncertainty(question: str) -> float:
        step = next(small.stream([Message(role="user", content=question)]))
        assert step.score is not None
        return step.score.uncertainty

    assert max(map(uncertainty, known)) < min(map(uncertainty, unknown))


def test_a_real_stream_ends_with_the_decisions_score(small: Tier) -> None:
    steps = list(small.stream([Message(role="user", content=QUESTIONS[1])]))
    question = [Message(role="user", content=QUESTIONS[1])]
    whole = small.score(small.model.generate(question), small.wording(question))
    assert steps[-1].score is not None
    assert steps[-1].score.uncertainty == pytest.approx(whole.uncertainty, abs=1e-6)
    assert all(step.score is not None for step in steps[1:])
