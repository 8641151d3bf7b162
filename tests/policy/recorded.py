"""Requests as a table of attempts records them, and what the rules make of each alone."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume, strategies as st

from ilis_guard.config.tiers import TierCost
from ilis_guard.errors import PolicyError
from ilis_guard.policy import Policy
from ilis_guard.policy.recordings import ANSWERED, Categorical, Recording, TierRecording
from ilis_guard.policy.simulation import OUTCOMES, Outcomes
from ilis_guard.policy.state import CascadeState
from ilis_guard.types import Action, Labels

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
