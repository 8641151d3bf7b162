"""What a policy asks of scores, against what the tiers' bundles can give: thresholds that are always passed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ilis_guard.policy.engine import BoundRule
from ilis_guard.policy.syntax import Kind, Node, compared_facts
from ilis_guard.types import Stage

if TYPE_CHECKING:  # with numpy, which reading policies doesn't need
    from ilis_guard.scoring.bundle import Bundle

Bundles = Mapping[Stage, Mapping[str, "Bundle"]]
"""What scores at each stage, by tier."""

_INCLUSIVE: Final = frozenset({">=", "<"})
"""Comparisons that also come out the same for every typicality where the threshold is the least there can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleThreshold:
    """A comparison of the typicality that has the same outcome for every answer of a tier."""

    rule: str
    tier: str
    threshold: float
    floor: float
    """The least typicality that the tier's bundle can give: 1 / (calibration rows + 1)."""
    is_always_true: bool
    rows: int
    """Calibration rows of the bundle."""


def least_typicality(bundle: "Bundle") -> float:
    """Return the least typicality that a bundle can give, however unlike its calibration rows an answer is."""
    return 1 / (len(bundle.calibration_set.typicality.distances) + 1)


def idle_thresholds(rules: Sequence[BoundRule], bundles: Bundles) -> Iterator[IdleThreshold]:
    """Find the comparisons with thresholds of typicality that no score of a tier can be on the other side of."""
    for bound in rules:
        tree = bound.condition.tree
        known = bundles.get(bound.rule.stage, {})
        named = _only_tier(tree)
        for tier in known if named is None else known.keys() & {named}:
            floor = least_typicality(known[tier])
            for compared in compared_facts(tree):
                operator, threshold = compared.operator, compared.literal
                if compared.fact != "typicality" or not isinstance(threshold, float):
                    continue
                if 0 < threshold < floor or (threshold == floor and operator in _INCLUSIVE):
                    yield IdleThreshold(
                        rule=bound.rule.id,
                        tier=tier,
                        threshold=threshold,
                        floor=floor,
                        is_always_true=operator in (">=", ">", "!="),
                        rows=len(known[tier].calibration_set.typicality.distances),
                    )


def describe_idle(found: IdleThreshold) -> str:
    """Say what an idle threshold does, and what to do, in a sentence without its end."""
    holds = "always passes" if found.is_always_true else "never acts"
    return (
        f"rule '{found.rule}': the typicality's threshold {found.threshold:g} {holds} on the tier {found.tier!r}, "
        f"whose bundle has {found.rows} calibration rows and gives no typicality below {found.floor:.3g}; raise the "
        "threshold, or fit or recalibrate the bundle on more rows"
    )


def _only_tier(condition: Node) -> str | None:
    """The only tier on which a condition can hold; None where it may hold on several."""
    if condition.operator == "&&":
        return next((tier for operand in condition.operands if (tier := _only_tier(operand)) is not None), None)
    if condition.kind is not Kind.CALL or condition.text != "_==_":
        return None
    names = {part.text for part in condition.parts if part.kind is Kind.NAME}
    values = [part.value for part in condition.parts if part.kind is Kind.CONSTANT]
    return values[0] if names == {"tier"} and values and isinstance(values[0], str) else None
