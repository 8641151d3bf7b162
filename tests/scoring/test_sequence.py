from math import comb, fsum

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from ilis_guard.scoring.risk_control import certified_rank, enough_rows, least_rank, nearest_start, starts

shares = st.sampled_from([0.02, 0.05, 0.1, 0.25, 0.5])
risks = st.sampled_from([0.01, 0.05, 0.2])


def p_value(wrong: int, rank: int, max_error: float) -> float:
    """P(Binomial(rank, max_error) <= wrong), term by term."""
    return fsum(comb(rank, k) * max_error**k * (1 - max_error) ** (rank - k) for k in range(wrong + 1))


def naive_starts(rows: int, max_error: float, risk: float) -> list[int]:
    """As many as fit, found by trying."""

    def first(share: float) -> int:
        return next(rank for rank in range(1, 10**6) if (1 - max_error) ** rank <= share)

    fitting: list[int] = [first(risk)] if first(risk) < rows else []
    for count in range(2, 20):
        if first(risk / count) * 2 ** (count - 1) <= rows / 2:
            fitting = [first(risk / count) * 2**place for place in range(count)]
    return fitting


def naive_rank(outcomes: list[bool], groups: list[int], max_error: float, risk: float) -> int:
    """Rank by rank, with a plain list of the shares that each walk has."""
    rows = len(outcomes)
    first = naive_starts(rows, max_error, risk)
    furthest, shares = 0, 0
    waiting: list[int] = []
    for rank in range(1, rows + 1):
        p = p_value(sum(outcomes[:rank]), rank, max_error)
        is_end = rank == rows or groups[rank] != groups[rank - 1]
        if is_end and shares:
            if p <= shares * risk / len(first):
                furthest = rank
                shares += len(waiting)
            else:
                shares = 0
        if is_end:
            waiting = []
        if rank in first:
            if shares:
                waiting.append(rank)
            elif p <= risk / len(first):
                shares = 1
    return furthest


@st.composite
def rows_in_order(draw: st.DrawFn) -> tuple[list[bool], list[int]]:
    """Outcomes and, for ties, the number of the uncertainty each row has."""
    rows = draw(st.integers(5, 130))
    sizes = draw(st.sampled_from([1, 2, 30]))
    rate = draw(st.sampled_from([0.0, 0.02, 0.1, 0.4]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    outcomes = random.random(rows) < rate * np.linspace(0, 2, rows)
    steps = random.random(rows) < 1 / sizes
    return outcomes.tolist(), np.cumsum(steps).tolist()


@settings(max_examples=60, derandomize=True, deadline=None)
@given(rows=rows_in_order(), max_error=shares, risk=risks)
def test_certified_rank_equals_a_naive_walk(rows: tuple[list[bool], list[int]], max_error: float, risk: float) -> None:
    outcomes, groups = rows
    wrong = np.cumsum(outcomes, dtype=np.int64)
    ends = np.append(np.flatnonzero(np.diff(groups)), len(groups) - 1) + 1
    assert certified_rank(wrong, ends, max_error, risk) == naive_rank(outcomes, groups, max_error, risk)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(rows=st.integers(1, 3000), max_error=shares, risk=risks)
def test_starts_are_as_many_as_fit_each_twice_as_far_along(rows: int, max_error: float, risk: float) -> None:
    found = starts(rows, max_error, risk).tolist()
    assert found == naive_starts(rows, max_error, risk)
    assert all(start < rows for start in found)


@pytest.mark.parametrize(
    ("rows", "found"), [(59, []), (60, [59]), (287, [59]), (288, [72, 144]), (1000, [80, 160, 320])]
)
def test_the_starts_of_five_percent_at_ninety_five_are_these(rows: int, found: list[int]) -> None:
    assert starts(rows, 0.05, 1 - 0.95).tolist() == found


def test_the_least_rank_is_the_first_that_can_pass() -> None:
    assert least_rank(0.05, 0.05) == 59
    assert 0.95**59 <= 0.05 < 0.95**58


def test_walk_collects_the_share_of_each_start() -> None:
    """Of 1,000 rows six are wrong up to the 600th, then all are: with all three shares it gets further."""
    outcomes = [place % 70 == 69 and place > 200 for place in range(600)] + [True] * 400
    wrong = np.cumsum(outcomes, dtype=np.int64)
    ends = np.arange(1, 1001)
    reached = certified_rank(wrong, ends, 0.05, 0.05)
    assert 600 < reached < 1000
    assert p_value(int(wrong[reached - 1]), reached, 0.05) > 0.05 / 3
    assert p_value(int(wrong[reached - 1]), reached, 0.05) <= 0.05
    assert p_value(int(wrong[reached]), reached + 1, 0.05) > 0.05


def test_a_later_start_is_tried_where_the_surest_answers_are_wrong() -> None:
    outcomes = [True] * 4 + [False] * 996
    wrong = np.cumsum(outcomes, dtype=np.int64)
    assert p_value(4, 80, 0.05) > 0.05 / 3
    assert certified_rank(wrong, np.arange(1, 1001), 0.05, 0.05) == 1000


def test_a_start_alone_certifies_nothing() -> None:
    """The 59 surest of 60 are right and the 60th is wrong: rank 59 passes, rank 60 doesn't."""
    wrong = np.array([0] * 59 + [1], dtype=np.int64)
    assert certified_rank(wrong, np.arange(1, 61), 0.05, 0.05) == 0


def test_nothing_is_certified_inside_a_tie() -> None:
    wrong = np.cumsum([False] * 100 + [True] * 100, dtype=np.int64)
    assert certified_rank(wrong, np.array([200]), 0.05, 0.05) == 0
    assert certified_rank(wrong, np.array([90, 200]), 0.05, 0.05) == 90


def test_the_nearest_start_says_how_many_might_have_been_wrong() -> None:
    wrong = np.cumsum([True] * 9 + [False] * 991, dtype=np.int64)
    nearest, allowed = nearest_start(np.minimum(wrong + np.arange(1000) // 100, np.arange(1, 1001)), 0.05, 0.05)
    assert nearest == 320
    assert p_value(allowed, nearest, 0.05) <= 0.05 / 3 < p_value(allowed + 1, nearest, 0.05)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(right=st.integers(0, 400), max_error=shares, risk=risks)
def test_enough_rows_is_the_first_count_with_a_start_that_likely_passes(
    right: int, max_error: float, risk: float
) -> None:
    """Rows that are all right have, by the rule of succession, the error rate 1 / (rank + 2)."""
    enough = enough_rows(np.zeros(right + 1, dtype=np.int64), max_error, risk)
    if enough is not None:
        assert enough > right + 1
        assert len(starts(enough, max_error, risk))


def test_enough_rows_is_none_for_a_score_that_ranks_nothing() -> None:
    wrong = np.cumsum(np.arange(500) % 3 == 0, dtype=np.int64)
    assert enough_rows(wrong, 0.05, 0.05) is None
