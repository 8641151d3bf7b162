"""Simulation: what a policy would have decided on recorded requests, by the very code that decides live.

All requests walk side by side, tier by tier. At each stage those that no rule can tell apart are put together
(`policy.equivalence`), and the real engine is asked once for each such group, with the facts of one of its requests.
What wasn't recorded isn't made up: a request whose way depends on it stays undecided, with the reason.
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
from ilis_guard.policy.recordings import ANSWERED, NEVER_RUN, STOPPED_AT_PROMPT, UNKNOWN, Few, Recorded
from ilis_guard.policy.state import CascadeState
from ilis_guard.types import STAGES, Action, Obstacle, Ruling, Stage

T = TypeVar("T")

OUTCOMES: Final = (Action.ANSWER, Action.ABSTAIN, Action.ESCALATE, None)
"""What becomes of a request, in the order of `Outcomes.action`; None is undecided."""
ENDED: Final = -1
"""In place of the next tier's index."""

Progress = Callable[[int], None]
"""Told how many more requests have come to their end."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """What one policy made of each recorded request."""

    action: Int8[np.ndarray, " requests"]
    """Index into `OUTCOMES`."""
    rule: Few[str | None]
    """The rule that decided; None where none held, or nothing was decided."""
    undecided: Few[str]
    """Why nothing was decided; empty where something was."""
    tier: Int64[np.ndarray, " requests"]
    """Index of the tier that was asked last."""
    attempts: Int64[np.ndarray, " requests"]
    """Those that were made; so are `tokens`, `seconds` and `cost`."""
    tokens: Int64[np.ndarray, " requests"]
    seconds: Float64[np.ndarray, " requests"]
    """NaN where they aren't known; so is `cost`."""
    cost: Float64[np.ndarray, " requests"]
    wrong: Float64[np.ndarray, " requests"]
    """1 where what was answered is wrong, 0 where it is right, NaN where that isn't known or nothing was answered."""
    audited: Bool[np.ndarray, " requests"]
    """Whether a person would have looked at what was answered."""

    def are(self, action: Action | None) -> Bool[np.ndarray, " requests"]:
        """Of which requests this became; None for undecided."""
        return np.asarray(self.action == OUTCOMES.index(action))


def simulate(
    policy: Policy,
    recorded: Recorded,
    *,
    thresholds: Mapping[str, float | None] | None = None,
    progress: Progress = lambda _more: None,
) -> Outcomes:
    """Let a policy decide recorded requests. One in shadow mode is simulated as if it was enforced.

    Args:
        policy: what decides.
        recorded: what the tiers did with each request.
        thresholds: by tier, what the policy's guarantee resolves to; None for a tier that can't be certified.
        progress: told as requests come to their end.
    """
    walks = _Walks(policy, recorded, thresholds or {}, progress)
    for index in range(len(recorded.tiers)):
        walks.pass_tier(index)
    return walks.outcomes()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What became of requests at one stage."""

    action: Action | None = None
    """None where the way goes on to the answer, or nothing was decided."""
    rule: str | None = None
    to: str | None = None
    answer_blocked_by: Obstacle | None = None
    undecided: str = ""


class _Walks:
    """All requests' ways under one policy, side by side."""

    def __init__(
        self, policy: Policy, recorded: Recorded, thresholds: Mapping[str, float | None], progress: Progress
    ) -> None:
        self._policy = policy
        self._recorded = recorded
        self._thresholds = thresholds
        self._progress = progress
        self._tiers = tuple(tier.name for tier in recorded.tiers)
        self._rules = {stage: policy.bound_rules(stage) for stage in STAGES}
        self._partitions = {stage: Partition.of(rules) for stage, rules in self._rules.items()}
        requests = len(recorded)
        self._next = np.zeros(requests, dtype=np.int64)
        self._came_to = [np.full(requests, NEVER_RUN, dtype=np.int8) for _ in recorded.tiers]
        """By tier, where this policy's attempt ended; `NEVER_RUN` where it made none."""
        self._action = np.full(requests, OUTCOMES.index(None), dtype=np.int8)
        self._rule = _Remembered[str | None](None, requests)
        self._undecided = _Remembered("", requests)
        self._blocked_by: _Remembered[Obstacle | None] = _Remembered(None, requests)
        self._tier = np.zeros(requests, dtype=np.int64)
        self._spent = Spent.nothing(requests)

    def pass_tier(self, index: int) -> None:
        """Let the requests that stand at a tier attempt it, and go where the policy says."""
        tier = self._recorded.tiers[index]
        self._tier[self._standing_at(index)] = index
        self._give_up(self._standing_at(index, tier.came_to == NEVER_RUN), f"the tier {tier.name!r} was never run")
        if self._rules["prompt"]:
            self._pass_stage(index, "prompt", self._standing_at(index, tier.asks_at_prompt))
        stopped = f"the tier {tier.name!r} was stopped at the prompt, so its answer isn't known"
        self._give_up(self._standing_at(index, tier.came_to == STOPPED_AT_PROMPT), stopped)
        self._pass_stage(index, "answer", self._standing_at(index))

    def outcomes(self) -> Outcomes:
        """What became of all requests."""
        answered = self._action == OUTCOMES.index(Action.ANSWER)
        undecided = self._action == OUTCOMES.index(None)
        wrong = np.full(len(self._recorded), np.nan)
        for index, tier in enumerate(self._recorded.tiers):
            known = answered & (self._tier == index) & (tier.wrong != UNKNOWN)
            wrong[known] = tier.wrong[known]
        audited = np.zeros(len(self._recorded), dtype=bool)
        if self._policy.audit is not None:
            audited[answered] = [
                self._policy.audits(self._recorded.ids[row]) for row in np.flatnonzero(answered).tolist()
            ]
        return Outcomes(
            action=self._action,
            rule=self._rule.few,
            undecided=self._undecided.few,
            tier=self._tier,
            attempts=self._spent.attempts,
            tokens=self._spent.tokens,
            seconds=np.where(undecided, np.nan, self._spent.seconds),
            cost=np.where(undecided, np.nan, self._spent.cost),
            wrong=wrong,
            audited=audited,
        )

    def _standing_at(self, index: int, which: Bool[np.ndarray, " requests"] | None = None) -> Rows:
        standing = self._next == index
        return np.flatnonzero(standing if which is None else standing & which)

    def _pass_stage(self, index: int, stage: Stage, rows: Rows) -> None:
        said, which = self._ask(index, stage, rows)
        for number, one in enumerate(said):
            self._follow(index, stage, rows[which == number], one)

    def _follow(self, index: int, stage: Stage, rows: Rows, said: _Said) -> None:
        """Take requests where a ruling leads."""
        if said.undecided:
            self._give_up(rows, said.undecided)
        elif said.action is None:
            self._blocked_by.set(rows, said.answer_blocked_by)
        else:
            tier = self._recorded.tiers[index]
            self._came_to[index][rows] = STOPPED_AT_PROMPT if stage == "prompt" else ANSWERED
            self._spent.add(tier, stage, rows)
            if said.action is Action.RETRY:
                self._next[rows] = index + 1 if said.to is None else self._tiers.index(said.to)
                self._blocked_by.set(rows, None)
            else:
                self._end(rows, said)

    def _end(self, rows: Rows, said: _Said) -> None:
        self._next[rows] = ENDED
        self._action[rows] = OUTCOMES.index(said.action)
        self._rule.set(rows, said.rule)

    def _give_up(self, rows: Rows, why: str) -> None:
        self._next[rows] = ENDED
        self._undecided.set(rows, why)
        self._progress(len(rows))

    def _ask(self, index: int, stage: Stage, rows: Rows) -> tuple[list[_Said], Codes]:
        """Ask the engine of one request of each group that is alike: what it said, and what was said of each row."""
        rules, partition = self._rules[stage], self._partitions[stage]
        threshold = self._thresholds.get(self._tiers[index])
        columns = Columns(
            self._recorded, index, stage, rows, spent=self._spent, policy=self._policy, threshold=threshold
        )
        unknown = {name: missing for name in partition.first if (missing := columns.unknown(name)).any()}
        drawn_for = [self._drawn(bound.rule.id, bound.rule.sample, rows) for bound in rules if bound.rule.sample]
        told_apart = [partition.codes(name, columns[name]) for name in partition.literals]
        answer_blocked_by = self._blocked_by.few.codes[rows]
        first, group, sizes = group_rows([answer_blocked_by, *told_apart, *unknown.values(), *drawn_for])
        said: dict[_Said, int] = {}
        which = np.empty(len(first), dtype=np.int64)
        for number, at in enumerate(first.tolist()):
            unrecorded = [name for name, is_unknown in unknown.items() if is_unknown[at]]
            one = self._say(index, stage, int(rows[at]), unrecorded)
            which[number] = said.setdefault(one, len(said))
            if one.action not in (None, Action.RETRY):
                self._progress(int(sizes[number]))
        return list(said), which[group]

    def _say(self, index: int, stage: Stage, row: int, unrecorded: Sequence[str]) -> _Said:
        """What the policy says to one request's attempt, unless that depends on what wasn't recorded."""
        way, attempt = self._way(index, row), self._recorded.tiers[index].attempt(row, stage)
        answer_blocked_by = self._blocked_by[row]
        ruling: Ruling | None
        if stage == "answer":
            ruling = way.evaluate_answer(attempt, answer_blocked_by=answer_blocked_by)
        else:
            early = way.evaluate_prompt(attempt)
            ruling, answer_blocked_by = early.ruling, early.answer_blocked_by
        ids = [bound.rule.id for bound in self._rules[stage]]
        decided = len(ids) if ruling is None or ruling.rule is None else ids.index(ruling.rule)
        for name in unrecorded:
            if (first := self._partitions[stage].first[name]) <= decided:
                return _Said(undecided=f"rule {ids[first]!r} looks at {name!r}, which wasn't recorded")
        if ruling is None:
            return _Said(answer_blocked_by=answer_blocked_by)
        return _Said(action=ruling.action, rule=ruling.rule, to=ruling.to)

    def _drawn(self, rule: str, share: float, rows: Rows) -> Codes:
        ids = self._recorded.ids
        return np.array([is_sampled(ids[row], rule, share) for row in rows.tolist()], dtype=np.int64)

    def _way(self, index: int, row: int) -> CascadeState:
        before = zip(self._recorded.tiers[:index], self._came_to[:index], strict=True)
        return CascadeState(
            policy=self._policy,
            tiers=self._tiers[index:],
            labels=self._recorded.labels[row] or {},
            prompt_length=max(0, int(self._recorded.prompt_length[row])),
            sampling_key=self._recorded.ids[row],
            thresholds=self._thresholds,
            earlier=tuple(
                tier.attempt(row, "prompt" if came_to[row] == STOPPED_AT_PROMPT else "answer")
                for tier, came_to in before
                if came_to[row] != NEVER_RUN
            ),
        )


class _Remembered(Generic[T]):
    """A text for each request, of which there are few different ones."""

    def __init__(self, default: T, requests: int) -> None:
        self._numbers: dict[T, int] = {default: 0}
        self._values = [default]
        self._codes = np.zeros(requests, dtype=np.int64)

    def set(self, rows: Rows, value: T) -> None:
        """Remember a value for these requests."""
        if value not in self._numbers:
            self._numbers[value] = len(self._values)
            self._values.append(value)
        self._codes[rows] = self._numbers[value]

    def __getitem__(self, request: int) -> T:
        return self._values[int(self._codes[request])]

    @property
    def few(self) -> Few[T]:
        """All that is remembered."""
        return Few(values=tuple(self._values), codes=self._codes)
