"""Targets for the score that were set before any measurement, and whether each is met."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ilis_guard.lab.baselines.estimator import Kind
from ilis_guard.lab.baselines.methods import methods
from ilis_guard.lab.evaluation.bootstrap import POOLED, Difference
from ilis_guard.lab.evaluation.evaluate import REFERENCE, Evaluation
from ilis_guard.lab.evaluation.trials import ProtocolName


def _of_kind(kind: Kind) -> tuple[str, ...]:
    return tuple(method.name for method in methods() if method.kind == kind)


OURS: Final = _of_kind("signature")
"""All others are baselines."""
STATISTICS: Final = _of_kind("statistics")
PROBES: Final = _of_kind("probe")
PRECISIONS: Final = ("auprc_correct", "auprc_wrong")
"""The two AUPRCs. Where a target says AUPRC and not which, the one that is harder to reach counts."""
SETS: Final = 8
ROWS: Final = 800


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One of them."""

    what: str
    wanted: str
    found: str
    """Empty where it wasn't measured."""
    is_reached: bool | None
    """None where it wasn't measured, or nothing was wanted but to measure it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lead:
    """How far the reference must be ahead of the strongest of some methods."""

    what: str
    protocol: ProtocolName
    over: Collection[str]
    metrics: Sequence[str]
    points: float
    """Hundredths."""
    of: Callable[[Difference], float] = lambda one: one.value


_LEADS: Final = (
    _Lead(
        what="in-distribution, AUROC over the best probe",
        protocol="in-distribution",
        over=PROBES,
        metrics=("auroc",),
        points=4,
    ),
    _Lead(
        what="in-distribution, AUPRC over the best probe, on the worst set",
        protocol="in-distribution",
        over=PROBES,
        metrics=PRECISIONS,
        points=-1.8,
        of=lambda one: one.worst,
    ),
    _Lead(
        what="leave-one-set-out, AUROC over the best probe",
        protocol="leave-one-set-out",
        over=PROBES,
        metrics=("auroc",),
        points=10,
    ),
    _Lead(
        what="leave-one-set-out, AUROC over output statistics",
        protocol="leave-one-set-out",
        over=STATISTICS,
        metrics=("auroc",),
        points=6,
    ),
    _Lead(
        what="refitted at the other precision, AUPRC over the best probe",
        protocol="refitted",
        over=PROBES,
        metrics=PRECISIONS,
        points=5,
    ),
)


def targets(evaluation: Evaluation) -> list[Target]:
    """All of them, in the order in which they were stated."""
    return [
        _enough_sets(evaluation),
        *(_led(evaluation, lead) for lead in _LEADS),
        _ahead_on_most_sets(evaluation),
        _calibrated(evaluation),
        _carried_over(evaluation),
    ]


def _enough_sets(evaluation: Evaluation) -> Target:
    large = sum(one.counts and one.rows >= ROWS for one in evaluation.sets)
    return Target(
        what=f"sets that count, of at least {ROWS} rows",
        wanted=f"at least {SETS}",
        found=str(large),
        is_reached=large >= SETS,
    )


def _led(evaluation: Evaluation, lead: _Lead) -> Target:
    """By how much the reference leads, over whom and by which metric it leads least."""
    wanted = f"at least {lead.points:+.1f}"
    found = [one for metric in lead.metrics for one in _differences(evaluation, lead.protocol, metric, lead.over)]
    if not found:
        return Target(what=lead.what, wanted=wanted, found="", is_reached=None)
    least = min(found, key=lead.of)
    metric = f", {least.metric}" if len(lead.metrics) > 1 else ""
    return Target(
        what=lead.what,
        wanted=wanted,
        found=f"{100 * lead.of(least):+.1f} ({least.method}{metric})",
        is_reached=100 * lead.of(least) >= lead.points,
    )


def _ahead_on_most_sets(evaluation: Evaluation) -> Target:
    what, wanted = "leave-one-set-out, AUROC ahead of every baseline", "on most sets"
    baselines = set(evaluation.methods).difference(OURS)
    found = list(_differences(evaluation, "leave-one-set-out", "auroc", baselines))
    if not found:
        return Target(what=what, wanted=wanted, found="", is_reached=None)
    least = min(found, key=lambda one: one.ahead)
    return Target(
        what=what,
        wanted=wanted,
        found=f"{least.ahead} of {len(least.of_each)} ({least.method})",
        is_reached=2 * least.ahead > len(least.of_each),
    )


def _calibrated(evaluation: Evaluation) -> Target:
    found = evaluation.estimate("in-distribution", REFERENCE, POOLED, "ece")
    return Target(
        what="in-distribution, ECE of all rows together",
        wanted="under .05",
        found="" if found is None else f"{found.value:.3f}".lstrip("0"),
        is_reached=None if found is None else found.value < 0.05,
    )


def _carried_over(evaluation: Evaluation) -> Target:
    """What is lost where a scorer isn't refitted: set by set, on the same rows."""
    named = {
        protocol: {
            one.tested_on: one.value
            for one in evaluation.estimates
            if (one.protocol, one.method, one.metric) == (protocol, REFERENCE, "auroc") and one.is_of_one_set
        }
        for protocol in ("applied", "refitted")
    }
    lost = [value - named["refitted"][name] for name, value in named["applied"].items()]
    return Target(
        what="applied at the other precision, AUROC less that of a refit",
        wanted="measured",
        found=f"{100 * sum(lost) / len(lost):+.1f}" if lost else "",
        is_reached=None,
    )


def _differences(
    evaluation: Evaluation, protocol: ProtocolName, metric: str, over: Collection[str]
) -> Iterator[Difference]:
    return (
        one for one in evaluation.differences if (one.protocol, one.metric) == (protocol, metric) and one.method in over
    )
