"""Simulation decides each request as the live guard does, in batches of any size."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings, strategies as st

from ilis_guard.cascade.tier import Tier
from ilis_guard.errors import ModelError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.policy.simulation import simulate
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action, Generation, Obstacle, Score, Statistics, Usage
from tests.policy.recorded import COST, NAMES, Asked, Tried, alone, policies, recorded_of, requests, scores, told


@given(st.data())
@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_requests_ruled_on_together_end_as_each_does_alone(data: st.DataObject) -> None:
    scores_prompts = data.draw(st.lists(st.booleans(), min_size=1, max_size=3))
    policy = data.draw(policies(len(scores_prompts)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    recorded = recorded_of(requests(random, 100, scores_prompts), scores_prompts=scores_prompts)
    thresholds = {name: data.draw(scores) for name in NAMES}
    outcomes = simulate(policy, recorded, thresholds=thresholds)
    for row in range(len(recorded)):
        assert told(outcomes, row) == alone(policy, recorded, row, thresholds)
        assert outcomes.audited[row] == (outcomes.are(Action.ANSWER)[row] and policy.audits(recorded.ids[row]))
        assert outcomes.undecided[row] == ""


class SilentModel(FakeModel):
    """A model that doesn't always say why its answer ended."""

    reports_endings = False


def fixed(uncertainty: float, typicality: float | None, rank: float | None, *, is_calibrated: bool) -> FixedScorer:
    known = {"typicality": typicality, "rank": rank}
    numbers = {name: math.nan if value is None else value for name, value in known.items()}
    return FixedScorer(Score(uncertainty=uncertainty, departures=() if is_calibrated else ("system",), **numbers))


def live(policy: Policy, asked: Asked, scores_prompts: Sequence[bool]) -> tuple[str, tuple[object, ...]]:
    """What the real guard makes of a request whose models and scorers say what was recorded; its decision's id."""
    tiers = []
    for name, scored, one in zip(NAMES, scores_prompts, asked.tiers, strict=False):
        known = None if one.statistics is None else dict(zip(Statistics.__slots__, one.statistics, strict=True))
        statistics = None if known is None else Statistics(**known)
        said = Generation(
            text="x" * (one.text_length or 0),
            tokens=one.tokens,
            prompt_tokens=1,
            finish_reason=one.finish_reason or None,  # type: ignore[arg-type]  # one of a few texts
            seconds=0.0,
            statistics=statistics,
        )
        score = None
        if one.uncertainty is not None:
            score = fixed(one.uncertainty, one.typicality, one.rank, is_calibrated=one.calibrated)
        prompt = None
        if scored:
            prompt = fixed(*(one.prompt or (0.0, None)), one.prompt_rank, is_calibrated=one.prompt_calibrated)
        model = SilentModel(ModelError("down") if one.error.startswith("ModelError") else said)
        tiers.append(Tier(name=name, model=model, scorer=score, prompt_scorer=prompt, cost=COST))
    with InMemoryQueue() as queue, Guard(tiers=tiers, policy=policy, review=queue) as guard:
        made = guard.decide("q" * (asked.prompt_length or 1), labels=asked.labels)
    tokens = sum(attempt.tokens or 0 for attempt in made.attempts)
    return made.id, (made.action, made.rule, made.attempts[-1].tier, len(made.attempts), tokens)


@given(st.data())
@settings(
    max_examples=min(30, settings.default.max_examples),  # type: ignore[union-attr]  # tests/conftest.py loads a profile
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes
)
def test_a_simulation_decides_as_the_live_guard_does(data: st.DataObject) -> None:
    scores_prompts = data.draw(st.lists(st.booleans(), min_size=1, max_size=3))
    policy = data.draw(policies(len(scores_prompts), may_guarantee=False))
    assume(any(scores_prompts) or not policy.scored_prompt_rules)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    decided = []
    for drawn in requests(random, 4, scores_prompts):
        # What the live guard can say: an answer without a score is an error, and a run takes no time.
        tiers = tuple(as_live(one, scored) for one, scored in zip(drawn.tiers, scores_prompts, strict=True))
        asked = replace(drawn, tiers=tiers)
        decision, ended = live(policy, asked, scores_prompts)
        decided.append((replace(asked, id=decision), ended))
    outcomes = simulate(policy, recorded_of([asked for asked, _ in decided], scores_prompts=scores_prompts))
    for row, (_, ended) in enumerate(decided):
        assert told(outcomes, row)[:5] == ended


def as_live(one: Tried, scored: bool) -> Tried:
    said = Usage(prompt_tokens=1, tokens=one.tokens)
    priced = replace(
        one,
        seconds=1e-6,
        cost=COST.of(1, Usage() if one.error else said),
        prompt_seconds=1e-6,
        prompt_cost=COST.of_prompt(said) if scored else 0.0,
    )
    if scored and priced.prompt is None:
        priced = replace(priced, prompt=(0.5, None))
    if one.error:
        return replace(priced, error="ModelError: down")
    if one.uncertainty is None:
        what = "ScoringError: the tier 'x' has no bundle, so its answers have no score"
        return replace(priced, error=what, text_length=max(1, priced.text_length or 0))
    return priced


@pytest.mark.parametrize(
    ("when", "one_by_one"),
    [
        ("uncertainty < 0.5", False),
        ("0.5 > uncertainty && has(labels.topic) && labels.topic == 'law'", False),
        ("(uncertainty < 0.5 || error != '') && size(labels) == 0", False),
        ("uncertainty + 0.0 < 0.5", True),
        ("0.0 + uncertainty < 0.5", True),
        ("-uncertainty < -0.5", True),
        ("uncertainty < 0.5 + typicality", True),
        ("[uncertainty].exists(x, x < 0.5)", True),
        ("uncertainty < typicality && uncertainty < 0.5", True),
    ],
)
def test_requests_that_differ_only_within_literals_are_ruled_together(
    when: str, one_by_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.parse(json.dumps({"version": 1, "name": "p", "rules": [{"id": "r", "when": when, "do": "answer"}]}))
    random = np.random.default_rng(0)
    values = [(random.random(), random.random()) for _ in range(200)]
    recorded = recorded_of(
        [
            Asked(str(n), (Tried(uncertainty=u, typicality=s),), labels={"topic": "law"})
            for n, (u, s) in enumerate(values)
        ]
    )
    asked: list[AttemptSummary] = []
    really = CascadeState.evaluate_answer

    def counted(way: CascadeState, newest: AttemptSummary, *, answer_blocked_by: Obstacle | None = None) -> object:
        asked.append(newest)
        return really(way, newest, answer_blocked_by=answer_blocked_by)

    with monkeypatch.context() as patched:
        patched.setattr(CascadeState, "evaluate_answer", counted)
        outcomes = simulate(policy, recorded)
    assert (len(asked) == 200) is one_by_one
    assert len(asked) <= 5 or one_by_one
    assert all(told(outcomes, row) == alone(policy, recorded, row, {}) for row in range(200))


@pytest.mark.parametrize("name", ["default", "cost-first", "clinical", "customer-support"])
def test_shipped_policies_decide_thousands_of_requests_as_they_decide_each(name: str) -> None:
    policy = Policy.load(name)
    recorded = recorded_of(requests(np.random.default_rng(1), 3000, [True, True]), scores_prompts=[True, True])
    ended = 0

    def progress(more: int) -> None:
        nonlocal ended
        ended += more

    thresholds: dict[str, float | None] = {} if policy.guarantee is None else {"small": 0.2, "middle": 0.3}
    outcomes = simulate(policy, recorded, thresholds=thresholds, progress=progress)
    assert all(told(outcomes, row) == alone(policy, recorded, row, thresholds) for row in range(3000))
    assert ended == 3000
    assert len(set(outcomes.action.tolist())) > 1
