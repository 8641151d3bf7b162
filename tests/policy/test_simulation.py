"""Simulation decides each request as the live guard does, in batches of any size."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings, strategies as st

from ilis_guard.cascade.tier import Tier
from ilis_guard.config.tiers import TierCost
from ilis_guard.errors import ModelError, PolicyError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.policy.recordings import ANSWERED, NEVER_RUN, STOPPED_AT_PROMPT, Categorical, Recording, TierRecording
from ilis_guard.policy.simulation import OUTCOMES, Outcomes, simulate
from ilis_guard.policy.state import AttemptSummary, CascadeState
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action, Generation, Labels, Obstacle, Score, Statistics, Usage

NAMES = ("small", "middle", "large")
COST = TierCost(per_request=0.1, per_million_prompt_tokens=0.15e6, per_million_tokens=0.02e6)
CONDITIONS = (
    "uncertainty < 0.25",
    "uncertainty <= 0.5 && typicality >= 0.25",
    "!(typicality < 0.5) && uncertainty < 0.75",
    "uncertainty < 0.5 || error != ''",
    "uncertainty * 2.0 < 1.0",
    "uncertainty + typicality < 1.0",
    "statistics.margin_min > 0.25 && uncertainty < 0.9",
    "1.0 / statistics.logprob_sum < 0.0 && uncertainty < 0.9",
    "labels.topic == 'law' && uncertainty < 0.9",
    "has(labels.vip) && labels.vip == true && uncertainty < 0.9",
    "tier == 'small' && uncertainty < 0.9",
    "error.startsWith('Model') || uncertainty < 0.2",
    "finish_reason == 'stop' && text_length < 4 && uncertainty < 0.9",
    "prompt_length > 10 && uncertainty < 0.9",
    "attempt == 2 && uncertainty < 0.9",
    "tokens > 3 && uncertainty < 0.9",
    "seconds < 0.3 && uncertainty < 0.9",
    "cost > 0.2 && uncertainty < 0.9",
    "last_tier && uncertainty < 0.9",
    "calibrated && uncertainty < 0.5",
    "!calibrated && rank < 0.6",
    "rank <= 0.5 || uncertainty < 0.1",
)
AT_PROMPT = (
    "uncertainty > 0.5",
    "uncertainty >= 0.25 && !(typicality > 0.5)",
    "labels.topic == 'law'",
    "has(labels.topic) && labels.topic == 'law'",
    "tokens > 3",
    "prompt_length > 10",
    "attempt == 2 && seconds < 0.3",
    "size(labels) == 0",
    "cost > 0.2",
    "!calibrated",
    "calibrated && uncertainty > 0.5",
    "!calibrated && rank >= 0.9",
)
CERTIFIED = (
    "certified",
    "certified && typicality >= 0.5",
    "uncertainty <= threshold && certified",
    "threshold > 0.25 && certified",
    "calibrated && certified",
)

shares = st.sampled_from([0.0, 0.125, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0])
scores = st.one_of(st.none(), shares, st.floats(0, 1))


@dataclass(frozen=True)
class Tried:
    """What one tier did with a request."""

    reached: int = ANSWERED
    uncertainty: float | None = None
    typicality: float | None = None
    calibrated: bool = True
    rank: float | None = None
    prompt: tuple[float, float | None] | None = None
    prompt_calibrated: bool = True
    prompt_rank: float | None = None
    statistics: tuple[float, float, float, float] | None = None
    tokens: int = 1
    seconds: float | None = 0.1
    cost: float | None = 0.1
    prompt_seconds: float | None = None
    prompt_cost: float | None = None
    text_length: int | None = 3
    finish_reason: str = "stop"
    error: str = ""
    wrong: bool | None = None


@dataclass(frozen=True)
class Asked:
    """A request, with what each tier did."""

    id: str
    tiers: tuple[Tried, ...]
    labels: Labels | None = None
    prompt_length: int | None = 5


def column(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def counts(values: Sequence[int | None]) -> np.ndarray:
    return np.array([-1 if value is None else value for value in values], dtype=np.int64)


def few(values: Sequence[Any]) -> Categorical[Any]:
    known = list({repr(value): value for value in values}.values())
    return Categorical(values=known, codes=np.array([known.index(value) for value in values], dtype=np.int64))


def recorded_of(asked: Sequence[Asked], *, scores_prompts: Sequence[bool] = (False,) * 3) -> Recording:
    tiers = []
    for name, scored, tried in zip(
        NAMES, scores_prompts, zip(*(one.tiers for one in asked), strict=True), strict=False
    ):
        nothing = (math.nan,) * 4
        tiers.append(
            TierRecording(
                name=name,
                scores_prompts=scored,
                reached=np.array([one.reached for one in tried], dtype=np.int8),
                uncertainty=column([one.uncertainty for one in tried]),
                typicality=column([one.typicality for one in tried]),
                calibrated=np.array([one.uncertainty is not None and one.calibrated for one in tried]),
                rank=column([one.rank for one in tried]),
                prompt_uncertainty=column([one.prompt[0] if one.prompt else None for one in tried]),
                prompt_typicality=column([one.prompt[1] if one.prompt else None for one in tried]),
                prompt_calibrated=np.array([one.prompt is not None and one.prompt_calibrated for one in tried]),
                prompt_rank=column([one.prompt_rank if one.prompt else None for one in tried]),
                statistics=np.array([one.statistics or nothing for one in tried]),
                tokens=counts([one.tokens for one in tried]),
                seconds=column([one.seconds for one in tried]),
                cost=column([one.cost for one in tried]),
                prompt_seconds=column([one.prompt_seconds for one in tried]),
                prompt_cost=column([one.prompt_cost for one in tried]),
                text_length=counts([one.text_length for one in tried]),
                finish_reason=few([one.finish_reason for one in tried]),
                error=few([one.error for one in tried]),
                wrong=np.array([-1 if one.wrong is None else int(one.wrong) for one in tried], dtype=np.int8),
            )
        )
    return Recording(
        ids=[one.id for one in asked],
        labels=few([one.labels for one in asked]),
        prompt_length=counts([one.prompt_length for one in asked]),
        tiers=tuple(tiers),
    )


def told(outcomes: Outcomes, row: int) -> tuple[object, ...]:
    action = OUTCOMES[outcomes.action[row]]
    return (
        action,
        outcomes.rule[row],
        NAMES[outcomes.tier[row]],
        int(outcomes.attempts[row]),
        int(outcomes.tokens[row]),
        None if math.isnan(outcomes.seconds[row]) else float(outcomes.seconds[row]),
        None if math.isnan(outcomes.cost[row]) else float(outcomes.cost[row]),
    )


def alone(policy: Policy, recorded: Recording, row: int, thresholds: dict[str, float | None]) -> tuple[object, ...]:
    """One request's way, step by step, without anything that puts requests together; everything was recorded."""
    way = CascadeState(
        policy=policy,
        tiers=[tier.name for tier in recorded.tiers],
        labels=recorded.labels[row] or {},
        prompt_length=int(recorded.prompt_length[row]),
        sampling_key=recorded.ids[row],
        thresholds=thresholds,
    )
    while True:
        tier = next(tier for tier in recorded.tiers if tier.name == way.tiers[0])
        ruling, answer_blocked_by, attempt = None, None, tier.attempt(row, "prompt")
        failed_before = tier.scores_prompts and attempt.uncertainty is None
        if policy.prompt_rules and not failed_before:
            early = way.evaluate_prompt(attempt)
            ruling, answer_blocked_by = early.ruling, early.answer_blocked_by
        if ruling is None:
            attempt = tier.attempt(row, "answer")
            ruling = way.evaluate_answer(attempt, answer_blocked_by=answer_blocked_by)
        if ruling.action is not Action.RETRY:
            made = [*way.earlier, attempt]
            seconds = cost = 0.0
            for one in made:
                seconds, cost = seconds + one.seconds, cost + (one.cost or 0.0)
            tokens = sum(one.tokens or 0 for one in made)
            return (ruling.action, ruling.rule, tier.name, len(made), tokens, seconds, cost)
        way = way.after_retry(attempt, ruling.to)


@st.composite
def policies(draw: st.DrawFn, tiers: int, *, may_guarantee: bool = True) -> Policy:
    """Random policies that load; about half of them with things that only some have."""
    guarantee = may_guarantee and draw(st.booleans())
    rules = []
    for number in range(draw(st.integers(1, 5))):
        stage = draw(st.sampled_from(["answer", "answer", "prompt"]))
        pool = AT_PROMPT if stage == "prompt" else CONDITIONS + (CERTIFIED if guarantee else ())
        actions = ["abstain", "retry", "escalate"] + (["answer"] * 3 if stage == "answer" else [])
        rule: dict[str, Any] = {"id": f"r{number}", "stage": stage, "do": draw(st.sampled_from(actions))}
        rule["when"] = draw(st.sampled_from(pool))
        if draw(st.integers(0, 3)) == 0:
            rule["sample"] = draw(st.sampled_from([0.1, 0.5, 0.9]))
        if rule["do"] == "retry" and draw(st.booleans()):
            rule["to"] = NAMES[draw(st.integers(0, tiers - 1))]
        rules.append(rule)
    policy: dict[str, Any] = {"version": 1, "name": "random", "rules": rules}
    if guarantee:
        policy["guarantee"] = {"max_error": 0.1}
    if draw(st.integers(0, 2)) == 0:
        policy["budget"] = draw(
            st.sampled_from(
                [{"max_attempts": 2}, {"max_seconds": 0.35}, {"max_cost": 0.25}, {"max_cost": 0.3, "max_attempts": 1}]
            )
        )
    if draw(st.booleans()):
        policy["audit"] = {"fraction": 0.5, "queue": "audits"}
    return _parsed(policy)


def _parsed(policy: dict[str, Any]) -> Policy:
    try:
        return Policy.parse(json.dumps(policy))
    except PolicyError:  # unreachable rules, mostly
        assume(False)
        raise


def tried(random: np.random.Generator, *, scores_prompts: bool) -> Tried:
    """Values from few, so that requests are alike in most things and differ at the very edges."""

    def one(*of: Any) -> Any:
        return of[random.integers(len(of))]

    failed = random.random() < 0.1
    has_score = not failed and random.random() < 0.9
    numbers = (0.0, 0.125, 0.25, float(np.nextafter(0.25, 1)), 0.3, 0.5, 0.75, 0.9, 1.0, random.random())
    return Tried(
        uncertainty=one(*numbers) if has_score else None,
        typicality=one(None, *numbers) if has_score else None,
        calibrated=one(True, False),
        rank=one(None, *numbers) if has_score else None,
        prompt_calibrated=one(True, False),
        prompt_rank=one(None, *numbers),
        prompt=(one(*numbers), one(None, *numbers)) if scores_prompts and not (failed and one(True, False)) else None,
        statistics=None if failed else one(None, (-0.0, -0.1, 0.2, 0.5), (0.0, -0.1, 0.2, 0.2)),
        tokens=0 if failed else one(0, 2, 3, 4),
        seconds=one(0.1, 0.2, 0.3),
        cost=one(0.05, 0.1, 0.2),
        prompt_seconds=one(0.01, 0.3),
        prompt_cost=one(0.01, 0.25),
        text_length=0 if failed else one(3, 4, 5),
        finish_reason="" if failed else one("", "stop", "length"),
        error=one("ModelError: down", "UnexpectedError: ValueError") if failed else "",
        wrong=one(None, True, False),
    )


LABELS: tuple[Labels, ...] = ({}, {"topic": "law"}, {"topic": "art", "vip": True}, {"vip": 1})


def requests(random: np.random.Generator, count: int, scores_prompts: Sequence[bool]) -> list[Asked]:
    return [
        Asked(
            id=f"request {number}",
            tiers=tuple(tried(random, scores_prompts=scored) for scored in scores_prompts),
            labels=LABELS[random.integers(len(LABELS))],
            prompt_length=int(random.integers(9, 13)),
        )
        for number in range(count)
    ]


@given(st.data())
@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_requests_ruled_on_together_end_as_each_does_alone(data: st.DataObject) -> None:
    scores_prompts = data.draw(st.lists(st.booleans(), min_size=1, max_size=3))
    policy = data.draw(policies(len(scores_prompts)))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    recorded = recorded_of(requests(random, 300, scores_prompts), scores_prompts=scores_prompts)
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


RETRYING = """
version: 1
name: retrying
rules:
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: larger, do: retry}
"""
TIMED = """
version: 1
name: timed
rules:
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: slow, when: seconds > 1.0, do: abstain}
  - {id: person, do: escalate}
"""


def ends(policy: str, *asked: Asked, scores_prompts: Sequence[bool] = (False,) * 3) -> list[tuple[object, str]]:
    outcomes = simulate(Policy.parse(policy), recorded_of(asked, scores_prompts=scores_prompts))
    return [(OUTCOMES[action], outcomes.undecided[row]) for row, action in enumerate(outcomes.action)]


def test_only_requests_that_need_an_unrun_tier_are_undecided() -> None:
    never = Tried(reached=NEVER_RUN)
    sure, unsure = Tried(uncertainty=0.1), Tried(uncertainty=0.5)
    assert ends(RETRYING, Asked("a", (sure, never)), Asked("b", (unsure, never)), Asked("c", (unsure, sure))) == [
        (Action.ANSWER, ""),
        (None, "the tier 'middle' was never run"),
        (Action.ANSWER, ""),
    ]


def test_seconds_and_costs_of_undecided_requests_are_unknown() -> None:
    asked = Asked("b", (Tried(uncertainty=0.5), Tried(reached=NEVER_RUN)))
    outcomes = simulate(Policy.parse(RETRYING), recorded_of([asked]))
    assert math.isnan(outcomes.seconds[0])
    assert math.isnan(outcomes.cost[0])


def test_only_requests_that_need_unrecorded_facts_are_undecided() -> None:
    sure, unsure = Tried(uncertainty=0.1, seconds=None), Tried(uncertainty=0.5, seconds=None)
    assert ends(TIMED, Asked("a", (sure,)), Asked("b", (unsure,))) == [
        (Action.ANSWER, ""),
        (None, "rule 'slow' looks at 'seconds', which wasn't recorded"),
    ]


@pytest.mark.parametrize(
    ("when", "name", "lacking"),
    [
        ("cost > 0.5", "cost", {"cost": None}),
        ("text_length > 3", "text_length", {"text_length": None}),
        ("prompt_length > 3", "prompt_length", {}),
        ("has(labels.vip)", "labels", {}),
    ],
)
def test_each_fact_that_may_be_unrecorded_is_named(when: str, name: str, lacking: dict[str, Any]) -> None:
    policy = f"version: 1\nname: p\nrules:\n  - {{id: r, when: '{when}', do: escalate}}\n"
    asked = Asked("a", (Tried(uncertainty=0.5, **lacking),), labels=None, prompt_length=None)
    assert ends(policy, asked) == [(None, f"rule 'r' looks at {name!r}, which wasn't recorded")]


def test_budgets_over_unrecorded_facts_leave_requests_undecided() -> None:
    asked = Asked("a", (Tried(uncertainty=0.5, seconds=None, cost=None), Tried(uncertainty=0.1)))
    for budget in ("max_seconds: 9.0", "max_cost: 9.0"):
        ((action, why),) = ends(RETRYING + f"budget: {{{budget}}}\n", asked)
        assert action is None
        assert "wasn't recorded" in why
    assert ends(RETRYING + "budget: {max_attempts: 1}\n", asked) == [(Action.ABSTAIN, "")]


PROMPTED = """
version: 1
name: prompted
rules:
  - {id: hard, stage: prompt, when: uncertainty > 0.8, do: abstain}
  - {id: sure, when: uncertainty < 0.2, do: answer}
"""


def test_attempts_stopped_or_unscored_at_the_prompt_are_undecided() -> None:
    stopped = Tried(reached=STOPPED_AT_PROMPT, prompt=(0.5, None))
    hard = Tried(reached=STOPPED_AT_PROMPT, prompt=(0.9, None))
    unscored = Tried(uncertainty=0.1)
    failed = Tried(error="ScoringError: no")
    asked = [Asked(name, (one,)) for name, one in zip("abcd", (stopped, hard, unscored, failed), strict=True)]
    assert ends(PROMPTED, *asked, scores_prompts=[True]) == [
        (None, "the tier 'small' was stopped at the prompt, so its answer isn't known"),
        (Action.ABSTAIN, ""),
        (None, "rule 'hard' looks at 'uncertainty', which wasn't recorded"),
        (Action.ABSTAIN, ""),
    ]


def test_zeros_of_either_sign_differ_for_rules_that_divide() -> None:
    rule = "{id: r, when: 1.0 / statistics.logprob_sum > 0.0 && uncertainty < 0.9, do: answer}"
    policy = f"version: 1\nname: p\nrules:\n  - {rule}\n"
    asked = [
        Asked(name, (Tried(uncertainty=0.5, statistics=(zero, -0.1, 0.1, 0.1)),))
        for name, zero in (("a", 0.0), ("b", -0.0))
    ]
    assert [action for action, _ in ends(policy, *asked)] == [Action.ANSWER, Action.ABSTAIN]


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
