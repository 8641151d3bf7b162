"""The uncertainties at which a policy's rules change their minds, to be shown beside a ticket's own."""

from collections.abc import Sequence
from dataclasses import dataclass

from ilis_guard.policy import Policy
from ilis_guard.policy.syntax import literals
from ilis_guard.types import STAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A rule that compares the uncertainty with a number."""

    at: float
    """From 0 to 1."""
    rule: str
    when: str
    do: str


def thresholds_of(policy: Policy) -> Sequence[Threshold]:
    """The numbers that a policy's conditions compare the uncertainty with, from small to large."""
    found = [
        Threshold(at=float(at), rule=bound.rule.id, when=bound.condition.text, do=bound.rule.do.value)
        for stage in STAGES
        for bound in policy.bound_rules(stage)
        for at in literals(bound.condition.tree).get("uncertainty") or ()
        if 0 < float(at) < 1
    ]
    return sorted(found, key=lambda threshold: threshold.at)
