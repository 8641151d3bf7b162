"""Findings: what a fit's own figures say against its score. Each fit and recalibration ends with them."""

from collections.abc import Iterator
from typing import Final, Literal

from pydantic import Field

from ilis_guard.scoring.figures import Figure
from ilis_guard.scoring.typicality import BundlePart

FindingKind = Literal["by_chance", "no_skill", "few_held_out", "few_calibration", "constant_features"]
Severity = Literal["error", "warning"]

CHANCE: Final = 0.5
"""AUROC of an uninformative score."""
FEW_GROUPS: Final = (30, 100)
"""With fewer held-out groups the figures are no evidence; with fewer than the second number they are weak."""
FEW_CALIBRATION_GROUPS: Final = 99
"""With fewer the least typicality there can be, 1 / (groups + 1), is above 0.01."""
CONSTANT_SHARES: Final = (0.5, 0.9)
"""From the first share of constant features on there is a warning, from the second on the taps measure nothing."""


class BundleFinding(BundlePart):
    """One thing that a bundle's figures say against it."""

    kind: FindingKind
    severity: Severity
    """`error`: below the line, so that no bundle is written unless somebody accepts it."""
    value: float
    """What was found: a figure, a number of groups, a share of the features."""
    bound: float
    """What it would have to exceed, or for features, stay under."""
    low: float | None = Field(default=None)
    """Lower end of a figure's interval; so is the upper one."""
    high: float | None = Field(default=None)

    @property
    def is_error(self) -> bool:
        """Whether it is below the line."""
        return self.severity == "error"


def figure_findings(
    auroc: Figure, brier_skill: Figure, groups: int, *, least: int = FEW_GROUPS[0]
) -> Iterator[BundleFinding]:
    """Judge figures on rows that the score hasn't seen.

    Args:
        auroc: with its interval.
        brier_skill: with its interval.
        groups: independent rows behind them.
        least: with fewer, the figures are no evidence.
    """
    if auroc.low <= CHANCE:
        yield _of_figure("by_chance", "error", auroc, CHANCE)
    if brier_skill.low <= 0:
        yield _of_figure("no_skill", "error" if brier_skill.value <= 0 else "warning", brier_skill, 0.0)
    enough = FEW_GROUPS[1]
    if groups < enough:
        severity: Severity = "error" if groups < least else "warning"
        yield BundleFinding(
            kind="few_held_out", severity=severity, value=groups, bound=least if groups < least else enough
        )


def calibration_findings(groups: int) -> Iterator[BundleFinding]:
    """Judge the size of a calibration set.

    Args:
        groups: independent rows in it.
    """
    if groups < FEW_CALIBRATION_GROUPS:
        yield BundleFinding(kind="few_calibration", severity="warning", value=groups, bound=FEW_CALIBRATION_GROUPS)


def feature_findings(constant: float) -> Iterator[BundleFinding]:
    """Judge features.

    Args:
        constant: share of them that have one value in nearly all rows.
    """
    some, nearly_all = CONSTANT_SHARES
    if constant >= some:
        severity: Severity = "error" if constant >= nearly_all else "warning"
        yield BundleFinding(kind="constant_features", severity=severity, value=constant, bound=some)


def describe(finding: BundleFinding) -> str:
    """Say what was found, and what to do, in a sentence without its end."""
    match finding.kind:
        case "by_chance":
            return (
                f"the score isn't shown to rank wrong answers above right ones: its AUROC is {_interval(finding)}, and "
                "0.5 is chance; harvest more questions, or other ones"
            )
        case "no_skill":
            word = "is no better than" if finding.is_error else "may be no better than"
            return (
                f"the uncertainty {word} always saying the base rate: its Brier skill is {_interval(finding)}, and 0 "
                "is the base rate's; harvest more questions, or other ones"
            )
        case "few_held_out":
            return (
                f"{finding.value:.0f} independent rows are held out, and at least {finding.bound:.0f} are needed to "
                "trust the figures; harvest more questions (repeated ones don't count)"
            )
        case "few_calibration":
            return (
                f"{finding.value:.0f} independent rows calibrate it, so the typicality is never below "
                f"{1 / (finding.value + 1):.3g}: rules with a lower threshold never act; give more rows"
            )
        case "constant_features":
            return (
                f"{finding.value:.0%} of the features have one value in nearly all rows: the taps, or the provider's "
                "log-probabilities, measure next to nothing; look at the harvest"
            )


def _of_figure(kind: FindingKind, severity: Severity, figure: Figure, bound: float) -> BundleFinding:
    return BundleFinding(
        kind=kind, severity=severity, value=figure.value, bound=bound, low=figure.low, high=figure.high
    )


def _interval(finding: BundleFinding) -> str:
    return f"{finding.value:.3f} ({finding.low:.3f} to {finding.high:.3f})"
