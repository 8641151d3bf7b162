"""Fixed-sequence testing over ranks: how many of the surest answers may be given at a stated error rate.

Rows stand in order, the surest first; rank k stands for answering the first k. A walk goes up from a start, rank by
rank, tests each with an exact binomial p-value, and ends at the first that fails. Where walks start is fixed by the
number of rows, the error rate and the risk alone, never by what the rows hold. docs/risk-control.md has the proof.
"""

import math
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import bdtr, bdtrik

STRIDE: Final = 2
"""Each start lies so many times as far along as the one before it."""
LIKELY: Final = 0.8
"""`enough_rows` names rows that would certify something so often."""
MOST_ROWS: Final = 10_000_000
"""Nobody labels more rows than this."""

Counts = Int64[np.ndarray, " rows"]
"""How many of the first k rows are wrong, for each k from 1."""
Ranks = Int64[np.ndarray, " ranks"]


def least_rank(max_error: float, risk: float) -> int:
    """The first rank that passes a test at this risk if none of its answers is wrong."""
    return math.ceil(math.log(risk) / math.log1p(-max_error))


def starts(rows: int, max_error: float, risk: float) -> Ranks:
    """The ranks at which walks start, ascending; each has an equal share of the risk.

    As many as fit: the first is the least rank that can pass, the last lies in the surer half of the rows (which fixes
    their number, as more starts have a smaller share of the risk each). Where only one fits, it may lie anywhere.
    """
    counts = np.arange(1, MOST_ROWS.bit_length() + 1)
    firsts = np.ceil(np.log(risk / counts) / math.log1p(-max_error))
    lasts = firsts * STRIDE ** (counts - 1)
    if lasts[0] >= rows:
        return np.empty(0, dtype=np.int64)
    count = max(1, int(np.searchsorted(lasts, rows / 2, side="right")))
    ranks: Ranks = (firsts[count - 1] * STRIDE ** np.arange(count)).astype(np.int64)
    return ranks


def certified_rank(wrong: Counts, ends: Ranks, max_error: float, risk: float) -> int:
    """The last rank that is certified to have an error rate of at most `max_error`, but for this risk; 0 for none.

    Args:
        wrong: where uncertainties are equal, in an order drawn at random.
        ends: the ranks that a threshold can tell from the next, ascending: the last one of each uncertainty.
        max_error: between 0 and 1.
        risk: how probable it may be that the certified rank has a higher error rate.
    """
    rows = len(wrong)
    begun = starts(rows, max_error, risk)
    if not len(begun):
        return 0
    share = risk / len(begun)
    at_starts = _p_values(wrong, begun, max_error)
    at_ends = _p_values(wrong, ends, max_error)
    # A start's own rank is tested, never certified: of rows in order, those before a given one are a random sample.
    after = np.searchsorted(ends, begun, side="right").tolist()
    furthest, level = 0, 0.0
    for p_value, place, next_place in zip(at_starts, after, [*after[1:], len(ends) - 1], strict=True):
        if level == 0 and p_value > share:
            continue
        # A walk that came by has passed the uncertainty that this start lies in; from there on it has its share too.
        begin, end = place + (level > 0), next_place + 1
        level += share
        failed = np.flatnonzero(at_ends[begin:end] > level)
        passed = begin + int(failed[0]) if len(failed) else end
        if passed > begin:
            furthest = int(ends[passed - 1])
        if len(failed):
            level = 0.0
    return furthest


def nearest_start(wrong: Counts, max_error: float, risk: float) -> tuple[int, int]:
    """Where no walk gets anywhere: the start that came nearest to passing, and how many wrong answers would have.

    There must be a start.
    """
    ranks = starts(len(wrong), max_error, risk)
    nearest = int(ranks[np.argmin(_p_values(wrong, ranks, max_error))])
    return nearest, int(_most_wrong(np.array([nearest]), max_error, risk / len(ranks))[0])


def enough_rows(wrong: Counts, max_error: float, risk: float) -> int | None:
    """How many rows, these among them, would probably certify something; None where these rows don't show it of any.

    The least number of rows like these at which one of the starts passes with probability `LIKELY`. The error rate
    among the surest answers, up to the share of rows at which a start then lies, is taken from these rows by the rule
    of succession, (wrong + 1) / (rank + 2), so that three right answers don't pass for perfection.
    """
    rows = len(wrong)

    def likely(total: int) -> bool:
        ranks = starts(total, max_error, risk)
        seen = np.clip(ranks * rows // total, 0, rows)
        rate = (np.where(seen > 0, wrong[seen - 1], 0) + 1) / (seen + 2)
        hopeful = rate < max_error
        allowed = _most_wrong(ranks[hopeful], max_error, risk / len(ranks))
        return bool((bdtr(allowed.astype(float), ranks[hopeful], rate[hopeful]) >= LIKELY).any())

    too_few = max(rows, least_rank(max_error, risk))
    enough = too_few + 1
    while not likely(enough):
        too_few, enough = enough, 2 * enough
        if enough > MOST_ROWS:
            return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if likely(middle) else (middle, enough)
    return enough


def _p_values(wrong: Counts, ranks: Ranks, max_error: float) -> Float64[np.ndarray, " ranks"]:
    """How probable so few wrong answers are at each rank, if each is wrong with probability `max_error`."""
    p_values: Float64[np.ndarray, " ranks"] = bdtr(wrong[ranks - 1].astype(float), ranks, max_error)
    return p_values


def _most_wrong(ranks: Ranks, max_error: float, risk: float) -> Ranks:
    """The most wrong answers with which each rank, a start or a later one, passes a test."""
    # A whole number but for rounding where it is hit exactly, so its neighbours are looked at.
    near = np.floor(bdtrik(risk, ranks, max_error))
    near = np.where(bdtr(near + 1, ranks, max_error) <= risk, near + 1, near)
    return np.where(bdtr(near, ranks, max_error) > risk, near - 1, near).astype(np.int64)
