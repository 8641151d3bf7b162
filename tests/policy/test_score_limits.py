"""Thresholds of typicality below the least one that a tier's bundle can give."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ilis_guard.policy import Policy
from ilis_guard.policy.score_limits import describe_idle, least_typicality
from ilis_guard.scoring import Bundle, read_bundle
from ilis_guard.types import Stage

RULES = """version: 1
name: p
rules:
  - {{id: one, {stage}when: "{when}", do: escalate}}
  - {{id: rest, do: abstain}}
"""


@pytest.fixture(scope="session")
def calibrated() -> Callable[[int], Bundle]:
    """The packaged bundle with so many calibration rows."""
    packaged = read_bundle("packaged:smollm2-135m-instruct-full")

    def make(rows: int) -> Bundle:
        known = packaged.calibration_set
        typicality = known.typicality.model_copy(update={"distances": known.typicality.distances[:rows]})
        return replace(packaged, calibration_set=known.model_copy(update={"typicality": typicality}))

    return make


def found(when: str, bundles: dict[str, Bundle], stage: Stage = "answer") -> list[tuple[str, bool]]:
    text = RULES.format(when=when, stage="stage: prompt, " if stage == "prompt" else "")
    return [(one.tier, one.is_always_true) for one in Policy.parse(text).idle_thresholds({stage: bundles})]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("typicality >= 0.01", [True]),
        ("typicality < 0.01", [False]),
        ("0.01 <= typicality", [True]),
        ("0.01 > typicality", [False]),
        ("uncertainty < 0.2 && typicality >= 0.02", [True]),
        ("uncertainty > 0.2 || !(typicality > 0.02)", [True]),
        ("tokens > 5 ? typicality < 0.02 : false", [False]),
        ("typicality >= 0.05", []),
        ("typicality > 0.0", []),
        ("uncertainty < 0.01", []),
        ("typicality >= 0.01 && typicality < 0.5", [True]),
    ],
)
def test_with_32_calibration_rows_low_thresholds_are_idle(
    when: str, expected: list[bool], calibrated: Callable[[int], Bundle]
) -> None:
    assert [always for _, always in found(when, {"small": calibrated(32)})] == expected


@pytest.mark.parametrize(
    ("when", "is_idle"),
    [("typicality >= {}", True), ("typicality < {}", True), ("typicality > {}", False), ("typicality <= {}", False)],
)
def test_the_least_typicality_itself_can_be_told_from_the_others(
    when: str, *, is_idle: bool, calibrated: Callable[[int], Bundle]
) -> None:
    bundle = calibrated(31)
    assert least_typicality(bundle) == 1 / 32
    assert bool(found(when.format(1 / 32), {"small": bundle})) is is_idle


def test_each_tier_is_compared_with_its_own_bundle(calibrated: Callable[[int], Bundle]) -> None:
    bundles = {"small": calibrated(32), "large": calibrated(500)}
    assert found("typicality >= 0.01", bundles) == [("small", True)]
    assert found("tier == 'large' && typicality >= 0.01", bundles) == []
    assert found("tier == 'small' && typicality >= 0.001", bundles) == [("small", True)]
    assert {tier for tier, _ in found("typicality >= 0.001", bundles)} == {"small", "large"}


def test_rules_at_the_prompt_are_compared_with_the_prompt_bundle(calibrated: Callable[[int], Bundle]) -> None:
    assert found("typicality < 0.02", {"small": calibrated(32)}, stage="prompt") == [("small", False)]
    text = RULES.format(when="typicality < 0.02", stage="")
    assert Policy.parse(text).idle_thresholds({"prompt": {"small": calibrated(32)}, "answer": {}}) == ()


def test_the_sentence_names_rule_tier_and_rows(calibrated: Callable[[int], Bundle]) -> None:
    policy = Policy.parse(RULES.format(when="typicality < 0.01", stage=""))
    (idle,) = policy.idle_thresholds({"answer": {"small": calibrated(32)}})
    assert describe_idle(idle) == (
        "rule 'one': the typicality's threshold 0.01 never acts on the tier 'small', whose bundle has 32 calibration "
        "rows and gives no typicality below 0.0303; raise the threshold, or fit or recalibrate the bundle on more rows"
    )
    (notice,) = policy.score_notices({"answer": {"small": calibrated(32)}})
    assert (notice.level, notice.place, notice.what) == ("warning", "<string>:4:21", describe_idle(idle))
