"""The uncertainties at which a policy's rules change their minds, to be shown beside a ticket's own."""

from collections.abc import Sequence
from dataclasses import dataclass

from ilis_guard.policy import Policy
from ilis_guard.policy.cells import literals_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A rule that compares the uncertainty with a number."""

    at: float
    """From 0 to 1."""
    rule: str
    when: str
    do: str


def thresholds_of(policy: Policy) -> Sequence[Threshold]:
    """All of a policy's thresholds, from small to large; conditions that do more than compare have none."""
    found = [
        Threshold(at=float(at), rule=rule.id, when=rule.when, do=rule.do.value)
        for rule in policy.rules
        if rule.when
        for at in (literals_of(rule.when) or {}).get("uncertainty", ())
        if 0 < at < 1
    ]
    return sorted(found, key=lambda threshold: threshold.at)
