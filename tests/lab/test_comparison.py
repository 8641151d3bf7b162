"""Figures of two policies: exact by hand, and intervals that cover what they should."""

import math
from typing import Any

import numpy as np
import pytest

from ilis_guard.lab import comparison as module
from ilis_guard.lab.comparison import changes, compare
from ilis_guard.policy.recordings import Categorical, Recording, TierRecording
from ilis_guard.policy.simulation import OUTCOMES, Outcomes
from ilis_guard.types import Action

pytestmark = pytest.mark.usefixtures("random_samples")

A, B, E, U = Action.ANSWER, Action.ABSTAIN, Action.ESCALATE, None
NAN = math.nan


def outcomes(*actions: Action | None, **columns: Any) -> Outcomes:
    count = len(actions)
    given = {"seconds": [NAN] * count, "cost": [NAN] * count, "wrong": [NAN] * count, "attempts": [1] * count}
    given |= {"audited": [False] * count} | columns
    return Outcomes(
        action=np.array([OUTCOMES.index(action) for action in actions], dtype=np.int8),
        rule=Categorical(values=("r",), codes=np.zeros(count, dtype=np.int64)),
        undecided=Categorical(
            values=("", "never run"), codes=np.array([action is U for action in actions], dtype=np.int64)
        ),
        tier=np.zeros(count, dtype=np.int64),
        tokens=np.zeros(count, dtype=np.int64),
        attempts=np.array(given["attempts"]),
        seconds=np.array(given["seconds"], dtype=np.float64),
        cost=np.array(given["cost"], dtype=np.float64),
        wrong=np.array(given["wrong"], dtype=np.float64),
        audited=np.array(given["audited"]),
    )


def recorded(uncertainty: list[float], wrong: list[int]) -> Recording:
    count = len(uncertainty)
    nothing: np.ndarray = np.full(count, NAN)
    none: Categorical[Any] = Categorical(values=("",), codes=np.zeros(count, dtype=np.int64))
    tier = TierRecording(
        name="small",
        scores_prompts=False,
        reached=np.full(count, 2, dtype=np.int8),
        uncertainty=np.array(uncertainty),
        typicality=nothing,
        calibrated=np.ones(count, dtype=bool),
        rank=nothing,
        prompt_uncertainty=nothing,
        prompt_typicality=nothing,
        prompt_calibrated=np.zeros(count, dtype=bool),
        prompt_rank=nothing,
        statistics=np.full((count, 4), NAN),
        tokens=np.zeros(count, dtype=np.int64),
        seconds=nothing,
        cost=nothing,
        prompt_seconds=nothing,
        prompt_cost=nothing,
        text_length=np.zeros(count, dtype=np.int64),
        finish_reason=none,
        error=none,
        wrong=np.array(wrong, dtype=np.int8),
    )
    ids = [f"q{number}" for number in range(count)]
    return Recording(ids=ids, labels=none, prompt_length=np.zeros(count, dtype=np.int64), tiers=(tier,))


def test_every_measure_equals_a_count_by_hand() -> None:
    old = outcomes(A, A, B, E, E, cost=[1, 2, 3, 4, NAN], wrong=[1, 0, NAN, NAN, NAN], attempts=[1, 2, 1, 3, 1])
    new = outcomes(
        A, E, A, U, E, cost=[2, 2, NAN, NAN, 5], wrong=[1, NAN, 0, NAN, NAN], audited=[True, False, False, False, False]
    )
    compared = compare(recorded([0.1] * 5, [1, 0, 0, 1, 1]), old, new, requests_per_hour=50)
    values = {
        row.name: tuple(None if one is None else one.value for one in (row.old, row.new, row.difference))
        for row in compared.measures
    }
    assert values["coverage"] == pytest.approx((0.4, 0.4, 0.0))
    assert values["error of answered"] == pytest.approx((0.5, 0.5, 0.0))
    assert values["abstained"] == pytest.approx((0.2, 0.0, -0.2))
    assert values["escalated"] == pytest.approx((0.4, 0.4, 0.0))
    assert values["undecided"] == pytest.approx((0.0, 0.2, 0.2))
    assert values["reviews per hour of 50 requests"] == pytest.approx((20, 30, 10))  # two escalated, and one audited
    assert values["retries per request"] == pytest.approx((0.6, 0.0, -0.25))  # the difference: without the undecided
    assert values["cost per request"] == pytest.approx((2.5, 3.0, 0.5))  # the difference: of the first two alone
    assert values["mean seconds"] == (None, None, None)
    assert compared.transitions == {(A, A): 1, (A, E): 1, (B, A): 1, (E, U): 1, (E, E): 1}
    assert (compared.changed, compared.undecided) == (3, ({}, {"never run": 1}))
    changed = list(changes(recorded([0.1] * 5, [1, 0, 0, 1, 1]), old, new))
    assert [(one.id, one.old, one.new, one.old_wrong, one.new_wrong) for one in changed] == [
        ("q1", A, E, False, None),
        ("q2", B, A, None, False),
        ("q3", E, U, None, None),
    ]


def test_the_slow_ones_are_the_nearest_rank() -> None:
    old = outcomes(*[B] * 40, seconds=list(range(40)))
    compared = compare(recorded([0.1] * 40, [0] * 40), old, old, requests_per_hour=1)
    slow = compared.measure("seconds at most, of 95 %")
    assert slow.old is not None
    assert slow.old.value == 37  # the 38th of 40
    assert slow.difference is not None
    assert (slow.difference.low, slow.difference.high) == (0, 0)


def test_the_curve_is_the_error_of_the_least_uncertain() -> None:
    compared = compare(
        recorded([0.1, 0.4, 0.2, 0.2, NAN], [0, 1, 1, 0, 1]),
        outcomes(*[B] * 5),
        outcomes(*[B] * 5),
        requests_per_hour=1,
    )
    (curve,) = compared.curves
    assert curve.coverage == pytest.approx((0.2, 0.6, 0.8))
    assert curve.risk == pytest.approx((0.0, 1 / 3, 0.5))
    assert compared.points == (None, None)


@pytest.mark.parametrize("most_drawn", [10_000, 100])
def test_intervals_cover_the_truth_about_as_often_as_they_say(most_drawn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 200)
    monkeypatch.setattr(module, "MOST_DRAWN", most_drawn)
    random = np.random.default_rng(0)
    covered = {"coverage": 0, "error of answered": 0, "cost per request": 0, "difference": 0}
    times, count = 100, 300
    for _ in range(times):
        answered, also = random.random(count) < 0.6, random.random(count) < 0.9
        cost, wrong = random.exponential(2.0, count), random.random(count) < 0.2
        old = made(answered, cost, wrong)
        new = made(answered & also, cost, wrong)
        compared = compare(recorded([0.5] * count, [0] * count), old, new, requests_per_hour=1)
        truths = {"coverage": 0.6, "error of answered": 0.2, "cost per request": 2.0}
        for name, truth in truths.items():
            one = compared.measure(name).old
            assert one is not None
            covered[name] += one.low <= truth <= one.high
        difference = compared.measure("coverage").difference
        assert difference is not None
        covered["difference"] += difference.low <= -0.06 <= difference.high
        # Paired: were the policies resampled apart, the interval would be more than three times as wide.
        assert difference.high - difference.low < 0.08
    for name, times_covered in covered.items():
        assert 0.88 <= times_covered / times <= 0.99, name


def made(answered: np.ndarray, cost: np.ndarray, wrong: np.ndarray) -> Outcomes:
    actions = [A if one else B for one in answered.tolist()]
    return outcomes(*actions, cost=cost.tolist(), wrong=np.where(answered, wrong, NAN).tolist())
