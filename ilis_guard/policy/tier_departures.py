"""What a guard.yaml's tiers have that the rows of their bundles hadn't, told without their models."""

from collections.abc import Iterator
from pathlib import Path

from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.config.tiers import TierConfig, decoding_name
from ilis_guard.policy.explain import departures_text
from ilis_guard.policy.lint import Notice
from ilis_guard.policy.score_limits import Bundles
from ilis_guard.scoring.bundle import BundleMetadata
from ilis_guard.scoring.profile import read_profile
from ilis_guard.types import Departure, Fingerprint, Stage, in_order
from ilis_guard.types.generations import SOFT_ARGUMENTS


def departure_notices(config: GuardConfig, bundles: Bundles) -> Iterator[Notice]:
    """Name the tiers whose scores are calibrated for no request.

    Args:
        config: gives the tiers.
        bundles: what scores at each stage, by tier.

    Raises:
        ProfileError: a tier's traffic profile can't be read.
    """
    tiers = {tier.name: tier for tier in config.tiers}
    for stage, by_tier in bundles.items():
        for name, bundle in by_tier.items():
            if departures := in_order(_departures(tiers[name], stage, bundle.metadata)):
                what = (
                    f"no score is calibrated on this tier, so each only ranks answers, and none is certified: it has "
                    f"{departures_text(departures)} than the rows that the bundle was fitted to; configure it as they "
                    "were harvested, or harvest and fit or recalibrate a bundle for it"
                )
                yield Notice("warning", f"{'bundle' if stage == 'answer' else 'prompt_bundle'} of {name!r}", what)


def _departures(tier: TierConfig, stage: Stage, fitted: BundleMetadata) -> Iterator[Departure]:
    file = tier.profile_of(stage)
    if file is not None and set(fitted.wordings) <= set(read_profile(Path(file)).wordings):
        yield "traffic"
    fingerprint = fitted.fingerprint
    if isinstance(fingerprint, Fingerprint):
        if tier.prompt != fitted.prompt:
            yield "wording"
        if decoding_name(tier.decoding) != fingerprint.decoding:
            yield "decoding"
        if tier.max_new_tokens != fitted.max_new_tokens:
            yield "length"
    elif tier.remote is not None:
        for name, value in tier.remote.arguments.items():
            # What isn't given is the chat model's own, which is known once it is loaded.
            if isinstance(value, int | float) and name in SOFT_ARGUMENTS and fingerprint.arguments.get(name) != value:
                yield SOFT_ARGUMENTS[name]
