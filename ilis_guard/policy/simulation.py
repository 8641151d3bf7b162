"""Simulate a policy on recorded requests, with the code that decides live.

All requests pass through the tiers together. At each stage, requests that no rule distinguishes form a group
(`policy.equivalence`), and the engine is evaluated once for each group, on the facts of one of its requests. Nothing is
assumed of what wasn't recorded: a request whose outcome depends on it stays undecided, with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64

from ilis_guard.policy.columns import Columns, Rows, Spent
from ilis_guard.policy.equivalence import Codes, Partition, group_rows
from ilis_guard.policy.facts import is_sampled
from ilis_guard.policy.policy import Policy
from ilis_guard.policy.recordings import ANSWERED, NEVER_RUN, STOPPED_AT_PROMPT, UNKNOWN, Categorical, Recording
from ilis_guard.policy.state import CascadeState
from ilis_guard.types import STAGES, Action, Obstacle, Ruling, Stage

T = TypeVar("T")

OUTCOMES: Final = (Action.ANSWER, Action.ABSTAIN, Action.ESCALATE, None)
"""The outcomes of a request, in the order of `Outcomes.action`; None is undecided."""
FINISHED: Final = -1
"""In place of the next tier's index."""

Progress = Callable[[int], None]
"""Called with the number of requests that have just finished."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """One policy's outcome for each recorded request."""

    action: Int8[np.ndarray, " requests"]
    """Index into `OUTCOMES`."""
    rule: Categorical[str | None]
    """The rule that decided; None where none held, or nothing was decided."""
    undecided: Categorical[str]
    """Why nothing was decided; empty where something was."""
    tier: Int64[np.ndarray, " requests"]
    """Index of the last tier that was tried."""
    attempts: Int64[np.ndarray, " requests"]
    """Of all attempts together, as are `tokens`, `seconds` and `cost`."""
    tokens: Float64[np.ndarray, " requests"]
    """NaN where not known, as in `seconds` and `cost`."""
    seconds: Float64[np.ndarray, " requests"]
    cost: Float64[np.ndarray, " requests"]
    wrong: Float64[np.ndarray, " requests"]
    """1 where the given answer is wrong, 0 where it is right, NaN where that isn't known or nothing was answered."""
    audited: Bool[np.ndarray, " requests"]
    """Whether the given answer would have been audited."""

    def are(self, action: Action | None) -> Bool[np.ndarray, " requests"]:
        """Which requests have this outcome; None for undecided."""
        return np.asarray(self.action == OUTCOMES.index(action))


def simulate(
    policy: Policy,
    recording: Recording,
    *,
    thresholds: Mapping[str, float | None] | None = None,
    progress: Progress = lambda _more: None,
) -> Outcomes:
    """Evaluate a policy on recorded requests. A policy in shadow mode is simulated as if it was enforced.

    Args:
        policy: to evaluate.
        recording: each tier's attempts.
        thresholds: by tier, the thresholds of the policy's guarantee; None for a tier that can't be certified.
        progress: called as requests finish.
    """
    simulation = _Simulation(policy, recording, thresholds or {}, progress)
    for index in range(len(recording.tiers)):
        simulation.run_tier(index)
    return simulation.outcomes()


@dataclass(frozen=True, slots=True, kw_only=True)
class _StageResult:
    """The result of one stage for a group of requests."""

    action: Action | None = None
    """None where the model goes on to answer, or nothing was decided."""
    rule: str | None = None
    to: str | None = None
    answer_blocked_by: Obstacle | None = None
    undecided: str = ""


class _Simulation:
    """The state of all requests under one policy."""

    def __init__(
        self, policy: Policy, recording: Recording, thresholds: Mapping[str, float | None], progress: Progress
    ) -> None:
        self._policy = policy
        self._recording = recording
        self._thresholds = thresholds
        self._progress = progress
        self._tiers = tuple(tier.name for tier in recording.tiers)
        self._rules = {stage: policy.bound_rules(stage) for stage in STAGES}
        self._partitions = {stage: Partition.of(rules) for stage, rules in self._rules.items()}
        requests = len(recording)
        self._next = np.zeros(requests, dtype=np.int64)
        self._reached = [np.full(requests, NEVER_RUN, dtype=np.int8) for _ in recording.tiers]
        """By tier, where this policy's attempt ended; `NEVER_RUN` where it made none."""
        self._action = np.full(requests, OUTCOMES.index(None), dtype=np.int8)
        self._rule = _CategoricalBuilder[str | None](None, requests)
        self._undecided = _CategoricalBuilder("", requests)
        self._blocked_by: _CategoricalBuilder[Obstacle | None] = _CategoricalBuilder(None, requests)
        self._tier = np.zeros(requests, dtype=np.int64)
        self._spent = Spent.nothing(requests)

    def run_tier(self, index: int) -> None:
        """Apply the policy to a tier's attempts at the requests that have come to it."""
        tier = self._recording.tiers[index]
        self._tier[self._requests_at(index)] = index
        self._leave_undecided(
            self._requests_at(index, tier.reached == NEVER_RUN), f"the tier {tier.name!r} was never run"
        )
        if self._rules["prompt"]:
            self._run_stage(index, "prompt", self._requests_at(index, tier.has_prompt_ruling))
        stopped = f"the tier {tier.name!r} was stopped at the prompt, so its answer isn't known"
        self._leave_undecided(self._requests_at(index, tier.reached == STOPPED_AT_PROMPT), stopped)
        self._run_stage(index, "answer", self._requests_at(index))

    def outcomes(self) -> Outcomes:
        """The outcomes of all requests."""
        answered = self._action == OUTCOMES.index(Action.ANSWER)
        undecided = self._action == OUTCOMES.index(None)
        wrong = np.full(len(self._recording), np.nan)
        for index, tier in enumerate(self._recording.tiers):
            known = answered & (self._tier == index) & (tier.wrong != UNKNOWN)
            wrong[known] = tier.wrong[known]
        audited = np.zeros(len(self._recording), dtype=bool)
        if self._policy.audit is not None:
            audited[answered] = [
                self._policy.audits(self._recording.ids[row]) for row in np.flatnonzero(answered).tolist()
            ]
        return Outcomes(
            action=self._action,
            rule=self._rule.column,
            undecided=self._undecided.column,
            tier=self._tier,
            attempts=self._spent.attempts,
            tokens=self._spent.tokens,
            seconds=np.where(undecided, np.nan, self._spent.seconds),
            cost=np.where(undecided, np.nan, self._spent.cost),
            wrong=wrong,
            audited=audited,
        )

    def _requests_at(self, index: int, which: Bool[np.ndarray, " requests"] | None = None) -> Rows:
        here = self._next == index
        return np.flatnonzero(here if which is None else here & which)

    def _run_stage(self, index: int, stage: Stage, rows: Rows) -> None:
        results, which = self._evaluate_groups(index, stage, rows)
        for number, one in enumerate(results):
            self._apply(index, stage, rows[which == number], one)

    def _apply(self, index: int, stage: Stage, rows: Rows, result: _StageResult) -> None:
        """Apply a stage's result to requests."""
        if result.undecided:
            self._leave_undecided(rows, result.undecided)
        elif result.action is None:
            self._blocked_by.set(rows, result.answer_blocked_by)
        else:
            tier = self._recording.tiers[index]
            self._reached[index][rows] = STOPPED_AT_PROMPT if stage == "prompt" else ANSWERED
            self._spent.add(tier, stage, rows)
            if result.action is Action.RETRY:
                self._next[rows] = index + 1 if result.to is None else self._tiers.index(result.to)
                self._blocked_by.set(rows, None)
            else:
                self._end(rows, result)

    def _end(self, rows: Rows, result: _StageResult) -> None:
        self._next[rows] = FINISHED
        self._action[rows] = OUTCOMES.index(result.action)
        self._rule.set(rows, result.rule)

    def _leave_undecided(self, rows: Rows, why: str) -> None:
        self._next[rows] = FINISHED
        self._undecided.set(rows, why)
        self._progress(len(rows))

    def _evaluate_groups(self, index: int, stage: Stage, rows: Rows) -> tuple[list[_StageResult], Codes]:
        """Evaluate the engine on one request of each group: distinct results, and the index of each row's result."""
        rules, partition = self._rules[stage], self._partitions[stage]
        threshold = self._thresholds.get(self._tiers[index])
        columns = Columns(
            self._recording, index, stage, rows, spent=self._spent, policy=self._policy, threshold=threshold
        )
        unknown = {name: missing for name in partition.first if (missing := columns.unknown(name)).any()}
        samples = [self._in_sample(bound.rule.id, bound.rule.sample, rows) for bound in rules if bound.rule.sample]
        distinctions = [partition.codes(name, columns[name]) for name in partition.literals]
        answer_blocked_by = self._blocked_by.column.codes[rows]
        first, group, sizes = group_rows([answer_blocked_by, *distinctions, *unknown.values(), *samples])
        results: dict[_StageResult, int] = {}
        which = np.empty(len(first), dtype=np.int64)
        for number, at in enumerate(first.tolist()):
            unrecorded = [name for name, is_unknown in unknown.items() if is_unknown[at]]
            one = self._evaluate(index, stage, int(rows[at]), unrecorded)
            which[number] = results.setdefault(one, len(results))
            if one.action not in (None, Action.RETRY):
                self._progress(int(sizes[number]))
        return list(results), which[group]

    def _evaluate(self, index: int, stage: Stage, row: int, unrecorded: Sequence[str]) -> _StageResult:
        """Evaluate the policy on one request's attempt, unless the ruling depends on what wasn't recorded."""
        state, attempt = self._state(index, row), self._recording.tiers[index].attempt(row, stage)
        answer_blocked_by = self._blocked_by[row]
        ruling: Ruling | None
        if stage == "answer":
            ruling = state.evaluate_answer(attempt, answer_blocked_by=answer_blocked_by)
        else:
            early = state.evaluate_prompt(attempt)
            ruling, answer_blocked_by = early.ruling, early.answer_blocked_by
        ids = [bound.rule.id for bound in self._rules[stage]]
        decided = len(ids) if ruling is None or ruling.rule is None else ids.index(ruling.rule)
        for name in unrecorded:
            if (first := self._partitions[stage].first[name]) <= decided:
                return _StageResult(undecided=f"rule {ids[first]!r} looks at {name!r}, which wasn't recorded")
        if ruling is None:
            return _StageResult(answer_blocked_by=answer_blocked_by)
        return _StageResult(action=ruling.action, rule=ruling.rule, to=ruling.to)

    def _in_sample(self, rule: str, share: float, rows: Rows) -> Codes:
        ids = self._recording.ids
        return np.array([is_sampled(ids[row], rule, share) for row in rows.tolist()], dtype=np.int64)

    def _state(self, index: int, row: int) -> CascadeState:
        before = zip(self._recording.tiers[:index], self._reached[:index], strict=True)
        return CascadeState(
            policy=self._policy,
            tiers=self._tiers[index:],
            labels=self._recording.labels[row] or {},
            prompt_length=max(0, int(self._recording.prompt_length[row])),
            sampling_key=self._recording.ids[row],
            thresholds=self._thresholds,
            earlier=tuple(
                tier.attempt(row, "prompt" if reached[row] == STOPPED_AT_PROMPT else "answer")
                for tier, reached in before
                if reached[row] != NEVER_RUN
            ),
        )


class _CategoricalBuilder(Generic[T]):
    """A value for each request, of which few are distinct."""

    def __init__(self, default: T, requests: int) -> None:
        self._numbers: dict[T, int] = {default: 0}
        self._values = [default]
        self._codes = np.zeros(requests, dtype=np.int64)

    def set(self, rows: Rows, value: T) -> None:
        """Set the value of these requests."""
        if value not in self._numbers:
            self._numbers[value] = len(self._values)
            self._values.append(value)
        self._codes[rows] = self._numbers[value]

    def __getitem__(self, request: int) -> T:
        return self._values[int(self._codes[request])]

    @property
    def column(self) -> Categorical[T]:
        """The column."""
        return Categorical(values=tuple(self._values), codes=self._codes)
