"""Risk control: from a stated risk to the uncertainty threshold that keeps it, or to why none does."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.stats import binom

from ilis_guard.errors import ScoringError
from ilis_guard.scoring.sequence import certified_rank, enough_rows, least_rank, nearest_start, starts

Kind = Literal["max_error", "min_coverage", "max_reviews_per_hour"]
TIE_SEED: Final = 0
"""Ties are put in a random order that is always the same, and that no row's outcome or place has a part in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The threshold that keeps a guarantee, or why none could be certified."""

    kind: Kind
    """What is guaranteed."""
    bound: float
    """The error rate, coverage or reviews an hour that was asked for."""
    confidence: float
    """How probable it is, over the draw of the calibration rows, that the guarantee holds or no threshold is named."""
    threshold: float | None
    """Answer where uncertainty is at most this; None where nothing can be certified."""
    reason: str
    """Why nothing can be certified; empty where something is."""
    rows: int
    """Calibration rows."""
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

    Raises:
        ScoringError: there are no rows, a row isn't an uncertainty and an outcome, or it isn't one guarantee that is
            asked for.
    """
    kind, bound, target = _guarantee(max_error, min_coverage, max_reviews_per_hour, requests_per_hour)
    risk = 1 - _share("confidence", confidence)
    ascending, wrong_so_far = _in_order(uncertainty, wrong)
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
        coverage=rank / rows,
        error=int(wrong_so_far[rank - 1]) / rank if rank else None,
        floor=max(0.0, (errors / rows - target) / (1 - target)) if kind == "max_error" else None,
        rows_needed=more,
    )


def _at_most_wrong(
    ascending: Float64[np.ndarray, " rows"], wrong: Int64[np.ndarray, " rows"], max_error: float, risk: float
) -> tuple[int, str, int | None]:
    """How many rows are answered, or why none, and how many more rows would probably do."""
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


def _guarantee(
    max_error: float | None,
    min_coverage: float | None,
    max_reviews_per_hour: float | None,
    requests_per_hour: float | None,
) -> tuple[Kind, float, float]:
    """The one guarantee, what was asked for, and the same as a share."""
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


def _in_order(
    uncertainty: Sequence[float] | np.ndarray, wrong: Sequence[bool] | np.ndarray
) -> tuple[Float64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
    """The uncertainties in ascending order, and how many answers are wrong up to each."""
    values, outcomes = _values(uncertainty), _outcomes(wrong)
    if len(values) != len(outcomes):
        raise ScoringError(f"there are {len(values)} uncertainties but {len(outcomes)} outcomes")
    if not len(values):
        raise ScoringError("there are no calibration rows, so nothing can be said of the requests to come")
    # Sorted by outcome too before ties are drawn for, so that the order in which rows are given changes nothing.
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
