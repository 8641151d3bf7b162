"""Measurements of pairs of guarded and bare runs."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.overhead.cases import Case
from benchmarks.overhead.models import prompts
from ilis_guard.models.local import LocalModel

FEWEST: Final = 7
FEWEST_LONG: Final = 5
"""Of runs of over `LONG` seconds, in which a moment's noise weighs little."""
LONG: Final = 8.0
MOST: Final = 40
RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds that one run took."""

    wall: float
    processor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One case's pairs."""

    case: Case
    layers: int
    hidden: int
    guarded: tuple[Spent, ...]
    bare: tuple[Spent, ...]
    """As many, pair by pair."""

    def ratio(self, clock: str) -> tuple[float, float, float]:
        """Median of guarded / bare by ``wall`` or ``processor``, with its 95 % bootstrap interval."""
        return median_ratio(self.guarded, self.bare, clock)

    @property
    def map_flops(self) -> int:
        """A token's map, by the matrix product alone: ``2 L L D``."""
        return 2 * self.layers**2 * self.hidden

    @property
    def seconds(self) -> float:
        """Median of the bare runs, by the wall clock."""
        return statistics.median(spent.wall for spent in self.bare)

    @property
    def milliseconds_a_token(self) -> float:
        """Processor time that guarding adds to each token of each answer, median of the pairs."""
        added = [on.processor - off.processor for on, off in zip(self.guarded, self.bare, strict=True)]
        return statistics.median(added) * 1000 / (self.case.tokens * self.case.prompts)


def median_ratio(over: Sequence[Spent], under: Sequence[Spent], clock: str) -> tuple[float, float, float]:
    """Median of the pairs' ratios by ``wall`` or ``processor``, with its 95 % bootstrap interval."""
    ratios = np.array([getattr(one, clock) / getattr(other, clock) for one, other in zip(over, under, strict=True)])
    drawn = np.random.default_rng(0).choice(ratios, size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(np.median(ratios)), float(low), float(high)


def timed(run: Callable[[], object]) -> Spent:
    """What a run takes."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return Spent(time.perf_counter() - wall, time.process_time() - processor)


def measure(case: Case, model: LocalModel, seconds: float, tell: Callable[[int, int], None]) -> Measured:
    """Run as many pairs as fit into the seconds, at least `FEWEST` (or `FEWEST_LONG`).

    Raises:
        SystemExit: guarded and bare runs don't answer alike.
    """
    conversations = prompts(model, case.prompts, case.prefill)
    first = time.perf_counter()
    bare = model.generate_bare_batch(conversations)
    took = time.perf_counter() - first
    guarded = model.generate_batch(conversations)
    if [each.text for each in guarded] != bare or {len(each.token_ids) for each in guarded} != {case.tokens}:
        raise SystemExit(f"{case}: guarded and bare runs don't give the same {case.tokens} tokens")
    pairs = max(FEWEST_LONG if took > LONG else FEWEST, min(MOST, int(seconds / (2 * took))))
    runs: tuple[Callable[[], object], ...] = (
        lambda: model.generate_batch(conversations),
        lambda: model.generate_bare_batch(conversations),
    )
    spent: tuple[list[Spent], list[Spent]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            spent[which].append(timed(runs[which]))
        tell(pair + 1, pairs)
    return Measured(
        case=case,
        layers=model.fingerprint.layers,
        hidden=model.fingerprint.hidden,
        guarded=tuple(spent[0]),
        bare=tuple(spent[1]),
    )


def worst(measured: Sequence[Measured], *, at_least: float = 0.0) -> float:
    """The largest median, by processor time, of cases whose bare run takes at least so many seconds."""
    return max((each.ratio("processor")[0] for each in measured if each.seconds >= at_least), default=math.nan)
