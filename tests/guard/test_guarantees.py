"""From a policy's guarantee to thresholds: certified on bundles' calibration rows, in every decision."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilis_guard.cascade.tier import Tier
from ilis_guard.config.guard_yaml import read_config
from ilis_guard.errors import ConfigError
from ilis_guard.guard import Guard
from ilis_guard.policy import Policy
from ilis_guard.policy.binding import certify_guarantee, check_config
from ilis_guard.scoring import Bundle, LightGBMScorer, read_bundle
from ilis_guard.scoring.risk_control import certify
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue
from ilis_guard.types import Action

QUESTION = "What is the boiling point of gallium?"
LAYERS = 30
"""Of the packaged model that the bundle was fitted to."""
HANDLED = """
version: 1
name: p
guarantee: {max_error: 0.1}
rules:
  - {id: covered, when: certified, do: answer}
  - {id: failed, when: error != '', do: abstain, say: Sorry.}
  - {id: person, do: escalate}
"""
UNHANDLED = HANDLED.replace("  - {id: person, do: escalate}\n", "")


@pytest.fixture(scope="session")
def packaged() -> Bundle:
    return read_bundle("packaged:smollm2-135m-instruct-full")


@pytest.fixture(scope="session")
def calibrated(packaged: Bundle) -> Callable[..., Bundle]:
    """The packaged bundle with other calibration rows: the surest are right, and wrong ones begin at a rank."""

    def make(rows: int, right: int, *, top: float = 1.0) -> Bundle:
        known = packaged.calibration_set.model_copy(
            update={
                "uncertainty": tuple(np.linspace(0, top, rows).tolist()),
                "wrong": (False,) * right + (True,) * (rows - right),
            }
        )
        return replace(packaged, calibration_set=known)

    return make


def tier(name: str, bundle: Bundle) -> Tier:
    fitted = bundle.metadata
    model = FakeModel("yes", layers=LAYERS, fingerprint=fitted.fingerprint, max_new_tokens=fitted.max_new_tokens)
    return Tier(name=name, model=model, scorer=LightGBMScorer(bundle))


def test_a_policy_that_guarantees_nothing_has_no_thresholds(packaged: Bundle) -> None:
    policy = Policy.parse("version: 1\nname: p\nrules:\n  - {id: person, do: escalate}\n")
    made = Guard(tiers=[tier("small", packaged)], policy=policy, review=InMemoryQueue()).decide(QUESTION)
    assert (made.thresholds, made.bundles) == ({}, {"small": packaged.digest})


@pytest.mark.parametrize(
    "guarantee",
    [
        {"max_error": 0.1},
        {"max_error": 0.1, "confidence": 0.9},
        {"min_coverage": 0.6},
        {"max_reviews_per_hour": 20.0, "requests_per_hour": 100.0, "confidence": 0.5},
    ],
)
def test_the_confidence_is_for_all_tiers_together(calibrated: Callable[..., Bundle], guarantee: dict[str, Any]) -> None:
    bundles = {"small": calibrated(2000, 1500), "large": calibrated(1000, 900)}
    policy = Policy.parse(HANDLED.replace("{max_error: 0.1}", str(guarantee).replace("'", "")))
    kind = {key: value for key, value in guarantee.items() if key != "confidence"}
    each = 1 - (1 - guarantee.get("confidence", 0.95)) / 2
    assert certify_guarantee(policy, bundles) == {
        name: certify(known.uncertainty, known.wrong, confidence=each, **kind)
        for name, known in ((name, bundle.calibration_set) for name, bundle in bundles.items())
    }
    assert all(found.threshold is not None for found in certify_guarantee(policy, bundles).values())


@pytest.mark.parametrize(
    ("rows", "right", "helps"),
    [
        (20, 15, "; whatever the score, 16.7% of requests can't be answered; no rule"),
        (
            40,
            30,
            "; whatever the score, 16.7% of requests can't be answered; about {} more labelled rows would do; no rule",
        ),
        (20, 20, "; no rule"),
    ],
)
def test_message_says_why_nothing_can_be_certified(
    calibrated: Callable[..., Bundle], rows: int, right: int, helps: str
) -> None:
    bundles = {"small": calibrated(400, 400), "large": calibrated(rows, right)}
    with pytest.raises(ConfigError) as refused:
        certify_guarantee(Policy.parse(UNHANDLED, "p.yaml"), bundles)
    known = calibrated(rows, right).calibration_set
    certificate = certify(known.uncertainty, known.wrong, max_error=0.1, confidence=0.975)
    assert certificate.threshold is None
    assert str(refused.value).startswith(
        f"p.yaml:4:12: the guarantee can't be certified on the tier 'large': {certificate.reason}"
        f"{helps.format(certificate.rows_needed)} surely decides where nothing is certified"
    )


def test_handled_lack_of_certification_answers_nothing(calibrated: Callable[..., Bundle]) -> None:
    bundle = calibrated(20, 15)
    with InMemoryQueue() as queue:
        guard = Guard(tiers=[tier("small", bundle)], policy=Policy.parse(HANDLED), review=queue)
        made = guard.decide(QUESTION)
    assert (made.action, made.rule, made.thresholds) == (Action.ESCALATE, "person", {"small": None})
    assert made.attempts[0].uncertainty is not None


def test_certified_answers_are_given_with_their_threshold(
    calibrated: Callable[..., Bundle],
) -> None:
    with InMemoryQueue() as queue:

        def decided(bundle: Bundle) -> Any:
            return Guard(tiers=[tier("small", bundle)], policy=Policy.parse(HANDLED), review=queue).decide(QUESTION)

        first = decided(calibrated(2000, 2000))
        uncertainty = first.attempts[0].uncertainty
        assert 0.01 < uncertainty < 0.99
        # Everything up to there was right, and just below it everything was wrong.
        covered = decided(calibrated(2000, int(2000 * uncertainty) + 100))
        beyond = decided(calibrated(2000, int(2000 * uncertainty) // 2))
    assert (covered.action, covered.rule, covered.text) == (Action.ANSWER, "covered", "yes")
    assert covered.thresholds["small"] >= uncertainty
    assert (beyond.action, beyond.rule) == (Action.ESCALATE, "person")
    assert beyond.thresholds["small"] < uncertainty
    for made in (covered, beyond):
        told = made.to_dict()
        assert told["thresholds"] == made.thresholds
        assert told["bundles"] == made.bundles == {"small": calibrated(1, 1).digest}
        assert told["policy"] == Policy.parse(HANDLED).fingerprint


def test_a_tier_without_a_bundle_has_no_threshold_and_answers_nothing(calibrated: Callable[..., Bundle]) -> None:
    unscored = Tier(name="remote", model=FakeModel("yes"), scorer=FixedScorer(0.0))
    policy = Policy.parse(HANDLED)
    with InMemoryQueue() as queue:
        made = Guard(tiers=[unscored, tier("small", calibrated(2000, 2000))], policy=policy, review=queue).decide("?")
    # The other tier bears the whole confidence alone.
    known = calibrated(2000, 2000).calibration_set
    alone = certify(known.uncertainty, known.wrong, max_error=0.1, confidence=0.95).threshold
    assert made.thresholds == {"remote": None, "small": alone}
    assert (made.action, made.rule) == (Action.ESCALATE, "person")


def write(folder: Path, policy: str, tiers: Mapping[str, str]) -> Path:
    listed = "".join(
        f"  - {{name: {name}, model: packaged:smollm2-135m-instruct, max_new_tokens: 16, bundle: {bundle}}}\n"
        for name, bundle in tiers.items()
    )
    (folder / "policy.yaml").write_text(policy, "utf-8")
    config = folder / "guard.yaml"
    config.write_text(
        f"version: 1\npolicy: policy.yaml\ntiers:\n{listed}review: {{storage: sqlite:///tickets.db}}\n", "utf-8"
    )
    return config


def test_guard_yaml_is_checked_from_bundles_alone(tmp_path: Path, packaged: Bundle) -> None:
    tiers = {"small": "packaged:smollm2-135m-instruct-full", "large": "packaged:gemma-3-270m-full"}
    config = write(tmp_path, HANDLED, tiers)
    found = check_config(Policy.load(tmp_path / "policy.yaml"), read_config(config))
    assert set(found) == {"small", "large"}
    assert found["small"].rows == len(packaged.calibration_set.wrong)
    assert found["small"].confidence == pytest.approx(0.975)
