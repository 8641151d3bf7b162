"""Risk control: the uncertainty threshold that keeps a stated guarantee, or the reason why none does.

Thresholds for an error rate come from fixed-sequence testing over ranks. Rows are ordered by uncertainty, and rank k
means answering the first k. Each sequence starts at a rank, tests one rank after the other with an exact binomial
p-value, and ends at the first that fails. The number of rows, the error rate and the risk alone fix the starts, never
the rows' contents. docs/risk-control.md has the proof.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import bdtr, bdtrik
from scipy.stats import binom

from ilis_guard.errors import ScoringError

Kind = Literal["max_error", "min_coverage", "max_reviews_per_hour"]
GROUP_SEED: Final = 0
"""Of the row that is drawn from each group. It can't be chosen: the best of several draws would break the guarantee."""
TIE_SEED: Final = 0
"""Of the order of ties, which is always the same and independent of rows' outcomes and places."""
STRIDE: Final = 2
"""Factor from each start to the next."""
ENOUGH_PROBABILITY: Final = 0.8
"""Probability with which the number from `enough_rows` certifies a threshold."""
MAX_ROWS: Final = 10_000_000
"""Upper limit of `enough_rows`."""

Counts = Int64[np.ndarray, " rows"]
"""How many of the first k rows are wrong, for each k from 1."""
Ranks = Int64[np.ndarray, " ranks"]
Labels = np.ndarray
"""The group of each row, as numbers or texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The threshold that keeps a guarantee, or why none could be certified."""

    kind: Kind
    """What is guaranteed."""
    bound: float
    """The error rate, coverage or reviews an hour of the guarantee."""
    confidence: float
    """How probable it is, over the draw of the calibration rows, that the guarantee holds or no threshold is named."""
    threshold: float | None
    """Answer where uncertainty is at most this; None where nothing can be certified."""
    reason: str
    """Why nothing can be certified; empty where something is."""
    rows: int
    """Calibration rows; of rows that depend on one another, one a group."""
    dependent: int
    """Rows that were left out because another of their group counts."""
    coverage: float
    """Share of the calibration rows that are answered, 0 to 1."""
    error: float | None
    """Share of wrong answers among them; None where none is answered."""
    floor: float | None
    """Of `max_error`: the share of requests that no valid method could answer, going by the calibration rows' error
    rate: (rate - bound) / (1 - bound)."""
    rows_needed: int | None
    """How many more labelled rows like these would probably do; None where none are needed, or where these rows don't
    show that any number would."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


def certify(
    uncertainty: Sequence[float] | np.ndarray,
    wrong: Sequence[bool] | np.ndarray,
    *,
    max_error: float | None = None,
    min_coverage: float | None = None,
    max_reviews_per_hour: float | None = None,
    requests_per_hour: float | None = None,
    confidence: float = 0.95,
    groups: Sequence[Hashable] | np.ndarray | None = None,
) -> Certificate:
    """Find the uncertainty threshold that keeps one of three guarantees on requests like the calibration rows.

    `max_error` gives the largest threshold that could be certified, the other two the smallest. The guarantee holds
    with probability `confidence` over the draw of the calibration rows, which must be a random sample of the requests
    that are to come and must not have trained the score. docs/risk-control.md has the statement, its proof and its
    limits.

    Args:
        uncertainty: of each calibration row, 0 to 1.
        wrong: whether its answer was wrong.
        max_error: of the requests that are answered, at most this share gets a wrong answer; between 0 and 1.
        min_coverage: at least this share of requests is answered; between 0 and 1.
        max_reviews_per_hour: at most so many requests an hour aren't answered, on average; with `requests_per_hour`.
        requests_per_hour: the traffic that is expected.
        confidence: between 0 and 1.
        groups: of each row, what it shares with rows that depend on it: the question, the document, the user. One row
            of each group counts, drawn at random; without groups every row does.

    Raises:
        ScoringError: there are no rows, a row isn't an uncertainty and an outcome, or it isn't one guarantee that is
            asked for.
    """
    kind, bound, target = _guarantee(max_error, min_coverage, max_reviews_per_hour, requests_per_hour)
    risk = 1 - _share("confidence", confidence)
    values, outcomes = _checked_rows(uncertainty, wrong)
    counted = _one_of_each(groups, len(values))
    ascending, wrong_so_far = _in_order(values[counted], outcomes[counted])
    if kind == "max_error":
        rank, reason, more = _at_most_wrong(ascending, wrong_so_far, target, risk)
    else:
        rank, reason, more = _at_least_answered(ascending, target, risk)
    rows, errors = len(ascending), int(wrong_so_far[-1])
    return Certificate(
        kind=kind,
        bound=bound,
        confidence=confidence,
        threshold=float(ascending[rank - 1]) if rank else None,
        reason=reason,
        rows=rows,
        dependent=len(values) - rows,
        coverage=rank / rows,
        error=int(wrong_so_far[rank - 1]) / rank if rank else None,
        floor=max(0.0, (errors / rows - target) / (1 - target)) if kind == "max_error" else None,
        rows_needed=more,
    )


def _at_most_wrong(
    ascending: Float64[np.ndarray, " rows"], wrong: Int64[np.ndarray, " rows"], max_error: float, risk: float
) -> tuple[int, str, int | None]:
    """Return how many rows are answered, or 0 and why, and how many more rows would probably do."""
    rows = len(ascending)
    ends = np.append(np.flatnonzero(np.diff(ascending)), rows - 1) + 1
    if rank := certified_rank(wrong, ends, max_error, risk):
        return rank, "", None
    enough = enough_rows(wrong, max_error, risk)
    more = None if enough is None else enough - rows
    if not len(starts(rows, max_error, risk)):
        least = least_rank(max_error, risk) + 1
        return 0, f"{rows} rows are too few: it takes {least}, even where no answer is wrong", more
    nearest, allowed = nearest_start(wrong, max_error, risk)
    counted = f"of the {nearest} surest of {rows} answers {wrong[nearest - 1]} are wrong"
    if wrong[nearest - 1] > allowed:
        return 0, f"{counted}, at most {allowed} may be", more
    return 0, f"{counted}, few enough, but with all answers of the next uncertainty too many are", more


def _at_least_answered(
    ascending: Float64[np.ndarray, " rows"], min_coverage: float, risk: float
) -> tuple[int, str, int | None]:
    """As `_at_most_wrong`. The k-th smallest uncertainty covers too little with probability P(Binomial >= k)."""
    rows = len(ascending)
    rank = int(binom.isf(risk, rows, min_coverage)) + 1
    if rank <= rows:
        return int(np.searchsorted(ascending, ascending[rank - 1], side="right")), "", None
    least = math.ceil(math.log(risk) / math.log(min_coverage))
    return 0, f"{rows} rows are too few: it takes {least}", least - rows


def least_rank(max_error: float, risk: float) -> int:
    """Return the first rank that passes a test at this risk if none of its answers is wrong."""
    return math.ceil(math.log(risk) / math.log1p(-max_error))


def starts(rows: int, max_error: float, risk: float) -> Ranks:
    """Return the ranks at which sequences start, ascending; each has an equal share of the risk.

    As many as fit: the first is the least rank that can pass, the last lies in the surer half of the rows (which fixes
    their number, as more starts have a smaller share of the risk each). Where only one fits, it may lie anywhere.
    """
    counts = np.arange(1, MAX_ROWS.bit_length() + 1)
    firsts = np.ceil(np.log(risk / counts) / math.log1p(-max_error))
    lasts = firsts * STRIDE ** (counts - 1)
    if lasts[0] >= rows:
        return np.empty(0, dtype=np.int64)
    count = max(1, int(np.searchsorted(lasts, rows / 2, side="right")))
    ranks: Ranks = (firsts[count - 1] * STRIDE ** np.arange(count)).astype(np.int64)
    return ranks


def certified_rank(wrong: Counts, ends: Ranks, max_error: float, risk: float) -> int:
    """Return the last rank certified to have an error rate of at most `max_error`, at this risk; 0 for none.

    Args:
        wrong: where uncertainties are equal, in an order drawn at random.
        ends: the ranks that a threshold can tell from the next, ascending: the last one of each uncertainty.
        max_error: between 0 and 1.
        risk: how probable it may be that the certified rank has a higher error rate.
    """
    rows = len(wrong)
    first_ranks = starts(rows, max_error, risk)
    if not len(first_ranks):
        return 0
    share = risk / len(first_ranks)
    at_starts = _p_values(wrong, first_ranks, max_error)
    at_ends = _p_values(wrong, ends, max_error)
    # A start's own rank is tested, never certified: of rows in order, those before a given one are a random sample.
    after = np.searchsorted(ends, first_ranks, side="right").tolist()
    furthest, level = 0, 0.0
    for p_value, place, next_place in zip(at_starts, after, [*after[1:], len(ends) - 1], strict=True):
        if level == 0 and p_value > share:
            continue
        # A sequence that has come so far has passed this start's uncertainty, and gets the start's share of the risk.
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
    """Return the start that came nearest to passing, and how many wrong answers would have let it pass.

    There must be a start.
    """
    ranks = starts(len(wrong), max_error, risk)
    nearest = int(ranks[np.argmin(_p_values(wrong, ranks, max_error))])
    return nearest, int(_most_wrong(np.array([nearest]), max_error, risk / len(ranks))[0])


def enough_rows(wrong: Counts, max_error: float, risk: float) -> int | None:
    """Estimate how many rows, these included, would certify a threshold; None where no number would.

    The least number of rows like these at which one of the starts passes with probability `ENOUGH_PROBABILITY`. The
    error rate of the surest answers, up to the share of rows at which a start then lies, is estimated from these rows
    by the rule of succession, (wrong + 1) / (rank + 2), so that three right answers don't count as an error rate of 0.
    """
    rows = len(wrong)

    def likely(total: int) -> bool:
        ranks = starts(total, max_error, risk)
        seen = np.clip(ranks * rows // total, 0, rows)
        rate = (np.where(seen > 0, wrong[seen - 1], 0) + 1) / (seen + 2)
        hopeful = rate < max_error
        allowed = _most_wrong(ranks[hopeful], max_error, risk / len(ranks))
        return bool((bdtr(allowed.astype(float), ranks[hopeful], rate[hopeful]) >= ENOUGH_PROBABILITY).any())

    too_few = max(rows, least_rank(max_error, risk))
    enough = too_few + 1
    while not likely(enough):
        too_few, enough = enough, 2 * enough
        if enough > MAX_ROWS:
            return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if likely(middle) else (middle, enough)
    return enough


def _guarantee(
    max_error: float | None,
    min_coverage: float | None,
    max_reviews_per_hour: float | None,
    requests_per_hour: float | None,
) -> tuple[Kind, float, float]:
    """Return the one guarantee, its bound, and the bound as a share."""
    given: dict[Kind, float] = {}
    if max_error is not None:
        given["max_error"] = max_error
    if min_coverage is not None:
        given["min_coverage"] = min_coverage
    if max_reviews_per_hour is not None:
        given["max_reviews_per_hour"] = max_reviews_per_hour
    if len(given) != 1:
        raise ScoringError(
            f"one of max_error, min_coverage and max_reviews_per_hour is certified at a time, got {sorted(given)!r}"
        )
    if (kind := next(iter(given))) != "max_reviews_per_hour":
        if requests_per_hour is not None:
            raise ScoringError(f"requests_per_hour={requests_per_hour!r} belongs to max_reviews_per_hour, not {kind}")
        return kind, given[kind], _share(kind, given[kind])
    reviews, requests = given[kind], requests_per_hour
    if requests is None or not (math.isfinite(requests) and 0 < reviews < requests):
        raise ScoringError(
            f"max_reviews_per_hour={reviews!r} must lie between 0 and requests_per_hour={requests!r}, the traffic that "
            "is expected: where all of it can be reviewed there is nothing to guarantee"
        )
    return kind, reviews, 1 - reviews / requests


def _share(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ScoringError(f"{name} must lie between 0 and 1, got {value!r}")
    return value


def one_of_each(groups: Labels) -> Bool[np.ndarray, " rows"]:
    """Draw one row of each group, at random and whatever its contents: such rows are independent if groups are."""
    drawn = np.random.default_rng(GROUP_SEED).random(len(groups))
    order = np.argsort(drawn, kind="stable")
    _, first = np.unique(groups[order], return_index=True)
    counted = np.zeros(len(groups), dtype=bool)
    counted[order[first]] = True
    return counted


def _one_of_each(groups: Sequence[Hashable] | np.ndarray | None, rows: int) -> Bool[np.ndarray, " rows"]:
    if groups is None:
        return np.ones(rows, dtype=bool)
    if len(groups) != rows:
        raise ScoringError(f"there are {rows} rows but {len(groups)} groups; give each row's")
    codes: dict[Hashable, int] = {}
    return one_of_each(np.array([codes.setdefault(group, len(codes)) for group in groups]))


def _checked_rows(
    uncertainty: Sequence[float] | np.ndarray, wrong: Sequence[bool] | np.ndarray
) -> tuple[Float64[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    values, outcomes = _values(uncertainty), _outcomes(wrong)
    if len(values) != len(outcomes):
        raise ScoringError(f"there are {len(values)} uncertainties but {len(outcomes)} outcomes")
    if not len(values):
        raise ScoringError("there are no calibration rows, so nothing can be said of the requests to come")
    return values, outcomes


def _in_order(
    values: Float64[np.ndarray, " rows"], outcomes: Bool[np.ndarray, " rows"]
) -> tuple[Float64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
    """Return the uncertainties in ascending order, and how many answers are wrong up to each."""
    # Sorted by outcome too before ties are shuffled, so that the order of the arguments changes nothing.
    known = np.lexsort((outcomes, values))
    drawn = np.random.default_rng(TIE_SEED).random(len(values))
    order = known[np.lexsort((drawn, values[known]))]
    return values[order], np.cumsum(outcomes[order], dtype=np.int64)


def _values(uncertainty: Sequence[float] | np.ndarray) -> Float64[np.ndarray, " rows"]:
    try:
        values = np.asarray(uncertainty, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ScoringError(f"the uncertainties aren't numbers: {error}") from error
    if values.ndim != 1:
        raise ScoringError(f"the uncertainties must be one number a row, got the shape {values.shape!r}")
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        first = int(np.argmax(bad))
        raise ScoringError(
            f"uncertainties lie between 0 and 1; {int(bad.sum())} don't, row {first} is {values[first]!r}"
        )
    return values


def _outcomes(wrong: Sequence[bool] | np.ndarray) -> Bool[np.ndarray, " rows"]:
    outcomes = np.asarray(wrong)
    if outcomes.ndim != 1:
        raise ScoringError(f"the outcomes must be one a row, got the shape {outcomes.shape!r}")
    bad = ~np.isin(outcomes, (0, 1))
    if bad.any():
        first = int(np.argmax(bad))
        raise ScoringError(
            f"outcomes are true (wrong) or false; {int(bad.sum())} aren't, row {first} is {outcomes[first]!r}"
        )
    return outcomes.astype(bool)


def _p_values(wrong: Counts, ranks: Ranks, max_error: float) -> Float64[np.ndarray, " ranks"]:
    """Compute the p-value of each rank: of so few wrong answers, if each is wrong with probability `max_error`."""
    p_values: Float64[np.ndarray, " ranks"] = bdtr(wrong[ranks - 1].astype(float), ranks, max_error)
    return p_values


def _most_wrong(ranks: Ranks, max_error: float, risk: float) -> Ranks:
    """Compute the most wrong answers with which each rank passes a test."""
    # Rounding may miss the exact integer by one, so its neighbours are checked.
    near = np.floor(bdtrik(risk, ranks, max_error))
    near = np.where(bdtr(near + 1, ranks, max_error) <= risk, near + 1, near)
    return np.where(bdtr(near, ranks, max_error) > risk, near - 1, near).astype(np.int64)
