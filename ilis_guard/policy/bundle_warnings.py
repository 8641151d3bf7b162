"""Log events about bundles that a guard relies on: what their fits found, and thresholds that they make idle."""

from ilis_guard import events
from ilis_guard.policy.binding import ActivePolicies
from ilis_guard.policy.score_limits import Bundles


def warn_of_findings(bundles: Bundles) -> None:
    """Repeat what the fits of the bundles found against them."""
    for stage, by_tier in bundles.items():
        for tier, bundle in by_tier.items():
            for finding in bundle.metadata.findings:
                events.log().warning(
                    events.BUNDLE_DOUBTED,
                    tier=tier,
                    stage=stage,
                    bundle=bundle.digest,
                    **finding.model_dump(include={"kind", "severity", "value", "bound"}),
                )


def warn_of_idle_thresholds(bundles: Bundles, active: ActivePolicies) -> None:
    """Name the thresholds of the policies that no score of these bundles can be on the other side of."""
    for bound in filter(None, (active.enforced, active.shadow)):
        for found in bound.policy.idle_thresholds(bundles):
            events.log().warning(
                events.THRESHOLD_IDLE,
                policy=bound.policy.name,
                rule=found.rule,
                tier=found.tier,
                threshold=found.threshold,
                least=found.floor,
                calibration_rows=found.rows,
            )
