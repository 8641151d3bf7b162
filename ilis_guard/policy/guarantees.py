"""From a policy's guarantee to a threshold for each tier, certified on the calibration rows of the tier's bundle."""

from collections.abc import Mapping

from ilis_guard.errors import ConfigError
from ilis_guard.policy import Policy
from ilis_guard.scoring import Bundle
from ilis_guard.scoring.risk_control import Certificate, certify


def resolve(policy: Policy, bundles: Mapping[str, Bundle]) -> Mapping[str, Certificate]:
    """Certify what a policy guarantees, tier by tier.

    The confidence is for all tiers together: with n of them, each is certified with 1 - (1 - confidence) / n
    (Bonferroni), so that all the thresholds hold at once.

    Args:
        policy: one that guarantees something.
        bundles: by tier, what scores its answers. Tiers without have no score, and so answer nothing anyway.

    Raises:
        ConfigError: a tier can't be certified, and the rules don't say what happens then.
    """
    guarantee = policy.guarantee
    assert guarantee is not None, "whoever calls it has looked"
    confidence = 1 - (1 - guarantee.confidence) / max(1, len(bundles))
    asked = guarantee.model_dump(exclude={"confidence"})
    certificates = {
        tier: certify(bundle.calibration_set.uncertainty, bundle.calibration_set.wrong, confidence=confidence, **asked)
        for tier, bundle in bundles.items()
    }
    for tier, certificate in certificates.items():
        if certificate.threshold is None and (unhandled := policy.unhandled_uncertified(tier)):
            raise ConfigError(_refusal(policy, tier, certificate, unhandled))
    return certificates


def shortfall(certificate: Certificate) -> str:
    """Why a guarantee can't be certified, and what would help; empty where it can."""
    told = [certificate.reason]
    if certificate.threshold is None and certificate.floor:
        told.append(f"whatever the score, {certificate.floor:.1%} of requests can't be answered")
    if certificate.threshold is None and certificate.rows_needed:
        told.append(f"about {certificate.rows_needed} more labelled rows would do")
    return "; ".join(told)


def _refusal(policy: Policy, tier: str, certificate: Certificate, unhandled: str) -> str:
    what = f"the guarantee can't be certified on the tier {tier!r}: {shortfall(certificate)}; {unhandled}"
    return f"{policy.key_place('guarantee')}: {what}"
