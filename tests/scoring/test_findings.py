"""Findings: where the line is, and what a person is told."""

import pytest

from ilis_guard.scoring.figures import Figure
from ilis_guard.scoring.findings import (
    BundleFinding,
    calibration_findings,
    describe,
    feature_findings,
    figure_findings,
)

GOOD = Figure(value=0.8, low=0.7, high=0.9)
SKILL = Figure(value=0.2, low=0.1, high=0.3)


def kinds(findings: list[BundleFinding]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.severity) for finding in findings]


@pytest.mark.parametrize(
    ("auroc", "skill", "groups", "expected"),
    [
        (GOOD, SKILL, 100, []),
        (GOOD.model_copy(update={"low": 0.5}), SKILL, 100, [("by_chance", "error")]),
        (GOOD.model_copy(update={"low": 0.5001}), SKILL, 100, []),
        (Figure(value=0.4, low=0.3, high=0.45), SKILL, 100, [("by_chance", "error")]),
        (GOOD, Figure(value=0.0, low=-0.1, high=0.1), 100, [("no_skill", "error")]),
        (GOOD, Figure(value=0.01, low=-0.1, high=0.1), 100, [("no_skill", "warning")]),
        (GOOD, SKILL, 99, [("few_held_out", "warning")]),
        (GOOD, SKILL, 30, [("few_held_out", "warning")]),
        (GOOD, SKILL, 29, [("few_held_out", "error")]),
    ],
)
def test_figures_are_judged_by_a_stated_line(
    auroc: Figure, skill: Figure, groups: int, expected: list[tuple[str, str]]
) -> None:
    assert kinds(list(figure_findings(auroc, skill, groups))) == expected


@pytest.mark.parametrize(("rows", "is_few"), [(32, True), (98, True), (99, False)])
def test_calibration_sets_that_cannot_tell_one_in_a_hundred_are_few(rows: int, *, is_few: bool) -> None:
    assert bool(list(calibration_findings(rows))) is is_few


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.49, []),
        (0.5, [("constant_features", "warning")]),
        (0.89, [("constant_features", "warning")]),
        (0.9, [("constant_features", "error")]),
        (1.0, [("constant_features", "error")]),
    ],
)
def test_features_that_do_not_vary_are_found(share: float, expected: list[tuple[str, str]]) -> None:
    assert kinds(list(feature_findings(share))) == expected


def test_each_finding_says_what_was_found_and_what_to_do() -> None:
    bad = Figure(value=-0.1, low=-0.2, high=0.05)
    found = [*figure_findings(bad, bad, 12), *calibration_findings(32), *feature_findings(0.95)]
    sentences = {finding.kind: describe(finding) for finding in found}
    assert "AUROC is -0.100 (-0.200 to 0.050), and 0.5 is chance; harvest more" in sentences["by_chance"]
    assert "is no better than always saying the base rate" in sentences["no_skill"]
    assert "12 independent rows are held out, and at least 30 are needed" in sentences["few_held_out"]
    assert "32 independent rows calibrate it, so the typicality is never below 0.0303" in sentences["few_calibration"]
    assert "95% of the features have one value in nearly all rows" in sentences["constant_features"]
