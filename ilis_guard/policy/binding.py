"""What is in force: a policy that decides, maybe one that looks on, and their thresholds for the tiers there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ilis_guard.policy import Policy
from ilis_guard.policy.state import CascadeState
from ilis_guard.types import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundPolicy:
    """A policy that goes with the tiers."""

    policy: Policy
    thresholds: Mapping[str, float | None]
    """By tier, where the policy gives a guarantee: the uncertainty up to which it holds; None where it can't be
    certified."""

    def initial_state(self, request: Request, tiers: Sequence[str], *, sampling_key: str) -> CascadeState:
        """The state of a request before its first attempt."""
        return CascadeState(
            policy=self.policy,
            tiers=tuple(tiers),
            labels=request.labels,
            prompt_length=len(request.prompt),
            sampling_key=sampling_key,
            thresholds=self.thresholds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivePolicies:
    """What a request keeps from its beginning to its end, whatever becomes of the files meanwhile."""

    enforced: BoundPolicy
    """The policy that decides, unless its mode is `shadow`."""
    shadow: BoundPolicy | None = None
    """The one that looks on beside it."""

    @property
    def fingerprints(self) -> tuple[str, str | None]:
        """Of the policy in force, and of the one that looks on."""
        return self.enforced.policy.fingerprint, None if self.shadow is None else self.shadow.policy.fingerprint
