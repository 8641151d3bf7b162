"""The facts of many attempts at once, as columns: what `CascadeState` gives for one attempt.

They only serve to group attempts that no rule distinguishes; the engine gets its facts from `CascadeState`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ilis_guard.policy.equivalence import LABELS, Column
from ilis_guard.policy.policy import Policy
from ilis_guard.policy.recordings import UNKNOWN, Categorical, Recording, TierRecording
from ilis_guard.policy.state import OUT_OF_TIME
from ilis_guard.types import Stage, Statistics

Rows = Int64[np.ndarray, " rows"]
"""Indices of requests."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spent:
    """What each request's attempts have spent so far."""

    attempts: Int64[np.ndarray, " requests"]
    tokens: Float64[np.ndarray, " requests"]
    """NaN where not known, as in `seconds` and `cost`."""
    seconds: Float64[np.ndarray, " requests"]
    cost: Float64[np.ndarray, " requests"]

    @classmethod
    def nothing(cls, requests: int) -> Self:
        """Return what is spent before the first attempt."""
        real = np.zeros((3, requests))
        return cls(attempts=np.zeros(requests, dtype=np.int64), tokens=real[0], seconds=real[1], cost=real[2])

    def add(self, tier: TierRecording, stage: Stage, rows: Rows) -> None:
        """Add one attempt of these requests, which ended at this stage."""
        self.attempts[rows] += 1
        self.tokens[rows] += tier.tokens_at(stage)[rows]
        self.seconds[rows] += tier.seconds_at(stage)[rows]
        self.cost[rows] += tier.cost_at(stage)[rows]


class Columns:
    """The facts of one tier's attempts at one stage.

    Args:
        recording: all requests.
        index: of the tier.
        stage: of the rules.
        rows: the requests.
        spent: on the earlier attempts.
        policy: gives the budget.
        threshold: the tier's; None where there is none.
    """

    def __init__(
        self,
        recording: Recording,
        index: int,
        stage: Stage,
        rows: Rows,
        *,
        spent: Spent,
        policy: Policy,
        threshold: float | None,
    ) -> None:
        self._recording = recording
        self._tier = recording.tiers[index]
        self._is_largest = index == len(recording.tiers) - 1
        self._stage = stage
        self._rows = rows
        budget = policy.budget
        self._max_seconds = None if budget is None else budget.max_seconds
        self._max_attempts = None if budget is None else budget.max_attempts
        self._max_cost = None if budget is None else budget.max_cost
        self._threshold = np.nan if threshold is None else threshold
        self._attempt = spent.attempts[rows] + 1
        # Added up as `CascadeState` does, so that sums are equal to the last bit.
        self._tokens = self._tier.tokens_at(stage)[rows] + spent.tokens[rows]
        self._seconds = self._tier.seconds_at(stage)[rows] + spent.seconds[rows]
        self._cost = self._tier.cost_at(stage)[rows] + spent.cost[rows]

    def __getitem__(self, name: str) -> Column:
        """A fact, as conditions see it."""
        if name.startswith("statistics."):
            return self._of_answer(self._tier.statistics[:, Statistics.__slots__.index(name.partition(".")[2])], np.nan)
        return self._columns[name]()

    def unknown(self, name: str) -> Bool[np.ndarray, " rows"]:
        """Where a fact wasn't recorded, or depends on something that wasn't."""
        find = self._unknown.get(name)
        return np.zeros(len(self._rows), dtype=bool) if find is None else find()

    @property
    def _columns(self) -> Mapping[str, Callable[[], Column]]:
        return {
            "uncertainty": lambda: self._uncertainty,
            "typicality": lambda: (self._tier.typicality if self._stage == "answer" else self._tier.prompt_typicality)[
                self._rows
            ],
            "calibrated": lambda: self._calibrated,
            "rank": lambda: (self._tier.rank if self._stage == "answer" else self._tier.prompt_rank)[self._rows],
            "threshold": lambda: np.full(len(self._rows), self._threshold),
            "certified": lambda: ~self._error.is_true & self._calibrated & (self._uncertainty <= self._threshold),
            "tier": lambda: self._everywhere(self._tier.name),
            "last_tier": lambda: self._is_last,
            "attempt": lambda: self._attempt,
            "tokens": lambda: self._tokens,
            "seconds": lambda: self._seconds,
            "cost": lambda: self._cost,
            "prompt_length": lambda: self._recording.prompt_length[self._rows],
            "text_length": lambda: self._of_answer(self._tier.text_length, 0),
            "finish_reason": lambda: self._text_of_answer(self._tier.finish_reason),
            "error": lambda: self._error,
            LABELS: lambda: self._recording.labels.at(self._rows),
        }

    @property
    def _unknown(self) -> Mapping[str, Callable[[], Bool[np.ndarray, " rows"]]]:
        return {
            "uncertainty": lambda: self._is_unscored,
            "typicality": lambda: self._is_unscored,
            "calibrated": lambda: self._is_unscored,
            "rank": lambda: self._is_unscored,
            "tokens": lambda: np.isnan(self._tokens),
            "seconds": lambda: np.isnan(self._seconds),
            "cost": lambda: np.isnan(self._cost),
            "prompt_length": lambda: self._recording.prompt_length[self._rows] == UNKNOWN,
            "text_length": lambda: self._of_answer(self._tier.text_length, 0) == UNKNOWN,
            LABELS: lambda: self._labels_are_unknown,
            "error": lambda: self._time_is_unknown,
            "certified": lambda: self._time_is_unknown,
            "last_tier": lambda: self._time_is_unknown | self._price_is_unknown,
        }

    @property
    def _uncertainty(self) -> Float64[np.ndarray, " rows"]:
        column = self._tier.uncertainty if self._stage == "answer" else self._tier.prompt_uncertainty
        return np.asarray(column[self._rows])

    @property
    def _calibrated(self) -> Bool[np.ndarray, " rows"]:
        column = self._tier.calibrated if self._stage == "answer" else self._tier.prompt_calibrated
        return np.asarray(column[self._rows] & ~np.isnan(self._uncertainty))

    @property
    def _is_unscored(self) -> Bool[np.ndarray, " rows"]:
        """Where a tier that scores prompts has no score, since the policy at the time had no prompt rules."""
        is_missing = self._stage == "prompt" and self._tier.scores_prompts
        return np.isnan(self._uncertainty) if is_missing else np.zeros(len(self._rows), dtype=bool)

    @property
    def _error(self) -> Categorical[str]:
        known = self._text_of_answer(self._tier.error)
        if self._max_seconds is None:
            return known
        is_late = self._is_out_of_time & ~known.is_true
        return Categorical(
            values=(*known.values, OUT_OF_TIME),
            codes=np.where(is_late, len(known.values), known.codes),
        )

    @property
    def _is_out_of_time(self) -> Bool[np.ndarray, " rows"]:
        return np.asarray(self._seconds > _limit(self._max_seconds))

    @property
    def _is_last(self) -> Bool[np.ndarray, " rows"]:
        is_made = self._attempt >= _limit(self._max_attempts)
        is_paid = self._cost >= _limit(self._max_cost)
        return np.asarray(is_made | is_paid | self._is_out_of_time | self._is_largest)

    @property
    def _time_is_unknown(self) -> Bool[np.ndarray, " rows"]:
        return np.asarray(np.isnan(self._seconds) & (self._max_seconds is not None))

    @property
    def _price_is_unknown(self) -> Bool[np.ndarray, " rows"]:
        return np.asarray(np.isnan(self._cost) & (self._max_cost is not None))

    @property
    def _labels_are_unknown(self) -> Bool[np.ndarray, " rows"]:
        labels = self._recording.labels.at(self._rows)
        return np.asarray(np.array([value is None for value in labels.values], dtype=bool)[labels.codes])

    def _of_answer(self, column: np.ndarray, at_prompt: float) -> np.ndarray:
        return column[self._rows] if self._stage == "answer" else np.full(len(self._rows), at_prompt, column.dtype)

    def _text_of_answer(self, column: Categorical[Any]) -> Categorical[Any]:
        return column.at(self._rows) if self._stage == "answer" else self._everywhere("")

    def _everywhere(self, text: str) -> Categorical[str]:
        return Categorical(values=(text,), codes=np.zeros(len(self._rows), dtype=np.int64))


def _limit(given: float | None) -> float:
    return np.inf if given is None else given
