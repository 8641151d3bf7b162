"""At its start a guard repeats what speaks against its scores."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ilis_guard import events
from ilis_guard.cascade.tier import Tier
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.scoring import Bundle, LightGBMScorer, read_bundle
from ilis_guard.scoring.findings import BundleFinding
from ilis_guard.testing import FakeModel

LAYERS = 30
FINDING = BundleFinding(kind="by_chance", severity="error", value=0.52, bound=0.5, low=0.45, high=0.6)
GUARDED = """version: 1
name: p
rules:
  - {id: odd, when: typicality < 0.01, do: abstain}
  - {id: rest, do: abstain}
"""


def doubted_bundle() -> Bundle:
    """The packaged bundle with 32 calibration rows, accepted though it ranks by chance."""
    packaged = read_bundle("packaged:smollm2-135m-instruct-full")
    known = packaged.calibration_set
    few = known.model_copy(
        update={"typicality": known.typicality.model_copy(update={"distances": known.typicality.distances[:32]})}
    )
    metadata = packaged.metadata.model_copy(update={"findings": (FINDING,)})
    return replace(packaged, metadata=metadata, calibration_set=few)


@pytest.fixture(scope="module")
def doubted() -> Bundle:
    return doubted_bundle()


def warned(start: Callable[[], Any]) -> list[dict[str, Any]]:
    with capture_logs() as entries:
        start()
    return [dict(entry) for entry in entries if entry["event"] in (events.BUNDLE_DOUBTED, events.THRESHOLD_IDLE)]


def test_a_guard_warns_of_findings_and_of_idle_thresholds_when_it_starts(doubted: Bundle) -> None:
    tier = Tier(name="small", model=FakeModel("yes", layers=LAYERS), scorer=LightGBMScorer(doubted))
    first, second = warned(lambda: Guard(tiers=[tier], policy=Policy.parse(GUARDED)))
    assert first == {
        "event": events.BUNDLE_DOUBTED,
        "log_level": "warning",
        "tier": "small",
        "stage": "answer",
        "bundle": doubted.digest,
        "kind": "by_chance",
        "severity": "error",
        "value": 0.52,
        "bound": 0.5,
    }
    assert second == {
        "event": events.THRESHOLD_IDLE,
        "log_level": "warning",
        "policy": "p",
        "rule": "odd",
        "tier": "small",
        "threshold": 0.01,
        "least": 1 / 33,
        "calibration_rows": 32,
    }


def test_a_policy_that_is_reloaded_is_compared_with_the_bundles_too(doubted: Bundle, tmp_path: Path) -> None:
    tier = Tier(name="small", model=FakeModel("yes", layers=LAYERS), scorer=LightGBMScorer(doubted))
    path = tmp_path / "policy.yaml"
    path.write_text(GUARDED.replace("0.01", "0.05"))
    guard = Guard(tiers=[tier], policy=Policy.load(path))
    assert warned(lambda: guard.follow(path)) == []
    path.write_text(GUARDED)
    assert [entry["event"] for entry in warned(lambda: guard.follow(path))] == [events.THRESHOLD_IDLE]


def test_a_bundle_without_findings_starts_in_silence() -> None:
    packaged = read_bundle("packaged:smollm2-135m-instruct-full")
    tier = Tier(name="small", model=FakeModel("yes", layers=LAYERS), scorer=LightGBMScorer(packaged))
    assert warned(lambda: Guard(tiers=[tier], policy=Policy.parse(GUARDED))) == []
