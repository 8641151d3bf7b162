"""What a comparison's reader must know before trusting it, in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from ilis_guard.lab.comparison import Comparison
from ilis_guard.lab.recording import Recording
from ilis_guard.lab.scored import Split
from ilis_guard.policy import Policy
from ilis_guard.types import Action

_SEEN: Final[Mapping[Split, str]] = {
    "train": "trained a bundle",
    "validation": "stopped a bundle's training",
    "calibration": "calibrated a bundle",
    "unknown": "may have done so, which the bundle doesn't say",
}


def caveats(recording: Recording, comparison: Comparison, old: Policy, new: Policy) -> tuple[str, ...]:
    """All that hold of this comparison."""
    return tuple(_caveats(recording, comparison, old, new))


def _caveats(recording: Recording, comparison: Comparison, old: Policy, new: Policy) -> Iterator[str]:
    if recording.left_out:
        yield (
            f"{sum(recording.left_out.values())} requests are left out, because a score flatters itself on rows that "
            f"it has seen: {_listed(recording.left_out)}."
        )
    if recording.flattering:
        yield (
            f"{sum(recording.flattering.values())} of the {comparison.requests} requests flatter the score, which has "
            f"seen them: {_listed(recording.flattering)}. Expect more errors on new ones, and no guarantee from these."
        )
    if recording.manifest.origin == "verdicts":
        yield (
            "These requests are those that people gave a verdict on, which a policy chose: they aren't your traffic, "
            "and shares of them aren't shares of it."
        )
    for index, (policy, which) in enumerate(((old, "old"), (new, "new"))):
        yield from _of_policy(comparison, policy, which, index, _scored_by_untold(recording))
    if recording.manifest.origin == "decisions":
        yield (
            "These requests were decided before: what a larger tier would have said to those that never reached it "
            "isn't known."
        )
    if unknown := [row.name for row in comparison.rows if row.old is None and row.new is None]:
        yield f"Not recorded, and so not told: {', '.join(unknown)}."
    if old.fingerprint == new.fingerprint:
        yield "The two policies are the same."


def _scored_by_untold(recording: Recording) -> list[str]:
    """The tiers whose answers have scores of which nobody knows the bundle."""
    tiers = zip(recording.manifest.tiers, recording.recorded.tiers, strict=True)
    return [tier.name for tier, made in tiers if tier.bundle is None and not np.isnan(made.uncertainty).all()]


def _of_policy(comparison: Comparison, policy: Policy, which: str, index: int, untold: Sequence[str]) -> Iterator[str]:
    if policy.guarantee is not None and untold:
        yield (
            f"Which bundle scored the tiers {untold!r} isn't on record, or it was more than one: the thresholds of the "
            f"{which} policy's guarantee are those of guard.yaml's bundles, and may not go with these scores."
        )
    if policy.mode == "shadow":
        yield f"The {which} policy is in shadow mode, in which it only looks on; it is shown as if it decided."
    if undecided := sum(comparison.undecided[index].values()):
        reasons = "; ".join(f"{why} ({count})" for why, count in comparison.undecided[index].items())
        share = undecided / comparison.requests
        answered = sum(count for pair, count in comparison.became.items() if pair[index] is Action.ANSWER)
        coverage = answered / comparison.requests
        yield (
            f"The {which} policy leaves {undecided} of {comparison.requests} requests undecided "
            f"({share:.1%}), and nothing is made up for them: {reasons}. Its coverage is at least {coverage:.1%} and "
            f"at most {coverage + share:.1%}; its error, retries, cost and seconds are those of the others, which may "
            "be the easier ones."
        )
    if unlabelled := comparison.unlabelled[index]:
        yield (
            f"Of {unlabelled} answers of the {which} policy nobody knows whether they are wrong; its error is that of "
            "the others, whom somebody chose to look at."
        )


def _listed(requests: Mapping[Split, int]) -> str:
    return ", ".join(f"{requests[split]} {what}" for split, what in _SEEN.items() if split in requests)
