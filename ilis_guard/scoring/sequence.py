"""Fixed-sequence testing over ranks: how many of the surest answers may be given at a stated error rate.

Rows stand in order, the surest first; rank k stands for answering the first k. A walk goes up from a start, rank by
rank, tests each with an exact binomial p-value, and ends at the first that fails. Where walks start is fixed by the
number of rows, the error rate and the risk alone, never by what the rows hold. docs/risk-control.md has the proof.
"""

import math
from itertools import pairwise
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import bdtr
from scipy.stats import binom

STRIDE: Final = 2
"""Each start lies so many times as far along as the one before it."""
LIKELY: Final = 0.8
"""`enough_rows` names rows that would certify something so often."""
MOST_ROWS: Final = 10_000_000
"""Nobody labels more rows than this."""

Counts = Int64[np.ndarray, " rows"]
"""How many of the first k rows are wrong, for each k from 1."""


def least_rank(max_error: float, risk: float) -> int:
    """The first rank that passes a test at this risk if none of its answers is wrong."""
    return math.ceil(math.log(risk) / math.log1p(-max_error))


def starts(rows: int, max_error: float, risk: float) -> list[int]:
    """The ranks at which walks start, ascending; each has an equal share of the risk.

    As many as fit: the first is the least rank that can pass, the last lies in the surer half of the rows (which fixes
    their number, as more starts have a smaller share of the risk each). Where only one fits, it may lie anywhere.
    """
    chosen: list[int] = []
    while True:
        count = len(chosen) + 1
        more = [least_rank(max_error, risk / count) * STRIDE**place for place in range(count)]
        if more[-1] > (rows / 2 if chosen else rows - 1):
            return chosen
        chosen = more


def certified_ranks(wrong: Counts, max_error: float, risk: float) -> Bool[np.ndarray, " rows"]:
    """Which ranks are certified to have an error rate of at most `max_error`, but for this risk.

    A walk starts with its own share of the risk. When it gets as far as the next start it goes on with both shares.
    """
    rows = len(wrong)
    certified = np.zeros(rows, dtype=bool)
    first = starts(rows, max_error, risk)
    if not first:
        return certified
    p_values = _p_values(wrong, max_error)
    share = risk / len(first)
    level = 0.0
    for start, following in pairwise([*first, rows]):
        if level == 0 and p_values[start - 1] > share:
            continue
        level += share
        # The start's own rank is tested, not certified: its p-value isn't binomial once the threshold is a row's own.
        failed = np.flatnonzero(p_values[start:following] > level)
        passed = int(failed[0]) if len(failed) else following - start
        certified[start : start + passed] = True
        if len(failed):
            level = 0.0
    return certified


def nearest_start(wrong: Counts, max_error: float, risk: float) -> tuple[int, int]:
    """Where no walk gets anywhere: the start that came nearest to passing, and how many wrong answers would have.

    There must be a start.
    """
    ranks = np.array(starts(len(wrong), max_error, risk))
    nearest = int(ranks[np.argmin(_p_values(wrong, max_error)[ranks - 1])])
    return nearest, int(_most_wrong(np.array([nearest]), max_error, risk / len(ranks))[0])


def enough_rows(wrong: Counts, max_error: float, risk: float) -> int | None:
    """How many rows, these among them, would probably certify something; None where these rows don't show it of any.

    The least number of rows like these at which one of the starts passes with probability `LIKELY`. The error rate
    among the surest answers, up to the share of rows at which a start then lies, is taken from these rows by the rule
    of succession, (wrong + 1) / (rank + 2), so that three right answers don't pass for perfection.
    """
    rows = len(wrong)

    def likely(total: int) -> bool:
        ranks = np.array(starts(total, max_error, risk), dtype=np.int64)
        if not len(ranks):
            return False
        seen = np.clip(ranks * rows // total, 0, rows)
        rate = (np.where(seen > 0, wrong[seen - 1], 0) + 1) / (seen + 2)
        allowed = _most_wrong(ranks, max_error, risk / len(ranks))
        return bool((bdtr(allowed.astype(float), ranks, rate) >= LIKELY).any())

    enough = max(rows + 1, least_rank(max_error, risk) + 1)
    while not likely(enough):
        enough *= 2
        if enough > MOST_ROWS:
            return None
    too_few = max(rows, enough // 2)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if likely(middle) else (middle, enough)
    return enough


def _p_values(wrong: Counts, max_error: float) -> Float64[np.ndarray, " rows"]:
    """How probable so few wrong answers are at each rank, if one is wrong with probability `max_error`."""
    p_values: Float64[np.ndarray, " rows"] = bdtr(wrong.astype(float), np.arange(1, len(wrong) + 1), max_error)
    return p_values


def _most_wrong(ranks: Int64[np.ndarray, " ranks"], max_error: float, risk: float) -> Int64[np.ndarray, " ranks"]:
    """The most wrong answers with which each rank passes a test; -1 where none may be."""
    # The quantile is the least number of wrong answers that is at least so probable: one too many, unless exactly so.
    quantile = binom.ppf(risk, ranks, max_error)
    return np.where(bdtr(quantile, ranks, max_error) > risk, quantile - 1, quantile).astype(np.int64)
