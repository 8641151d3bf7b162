"""Whether a policy goes with the tiers and the queue that there are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.errors import ConfigError
from ilis_guard.policy import Policy
from ilis_guard.policy.binding import BoundPolicy
from ilis_guard.policy.guarantees import resolve
from ilis_guard.scoring import Bundle, read_bundle
from ilis_guard.scoring.risk_control import Certificate
from ilis_guard.types import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyContext:
    """What policies find: the tiers, and whether there is a queue."""

    tiers: tuple[str, ...]
    """Names, from small to large."""
    bundles: Callable[[], Mapping[str, Bundle]]
    """By tier: what scores its answers. Asked only where a guarantee rests on them; reading them takes a while."""
    prompts_scored_by: tuple[str, ...]
    """The tiers that have a prompt bundle."""
    without_cost: tuple[str, ...]
    """Those whose cost isn't known."""
    has_queue: bool

    @classmethod
    def of_config(cls, config: GuardConfig) -> Self:
        """Of a guard.yaml whose models aren't loaded."""
        return cls(
            tiers=tuple(tier.name for tier in config.tiers),
            bundles=lambda: {tier.name: read_bundle(tier.bundle) for tier in config.tiers if tier.bundle is not None},
            prompts_scored_by=tuple(tier.name for tier in config.tiers if tier.prompt_bundle is not None),
            without_cost=tuple(tier.name for tier in config.tiers if tier.cost is None),
            has_queue=config.review is not None,
        )

    def wire(self, policy: Policy, *, looks_on: bool = False) -> BoundPolicy:
        """Bring a policy and its ground together.

        Args:
            policy: what decides.
            looks_on: as guard.yaml's `shadow`, it makes no ticket, and so needs no queue.

        Raises:
            ConfigError, BundleError: as `check`.
        """
        certificates = self.check(policy, looks_on=looks_on)
        tiers = () if policy.guarantee is None else self.tiers
        found = {tier: certificates[tier].threshold if tier in certificates else None for tier in tiers}
        return BoundPolicy(policy=policy, thresholds=found)

    def check(self, policy: Policy, *, looks_on: bool = False) -> Mapping[str, Certificate]:
        """See that there is what a policy asks for; what its guarantee comes to, by tier.

        Raises:
            ConfigError: there is no tier, two have one name, the policy retries on one that doesn't exist, looks at a
                prompt's score that no tier gives, limits a cost that isn't known, escalates or audits and there is no
                queue, or guarantees what can't be certified; what the policy asks for is named with its place.
            BundleError: a bundle that a guarantee rests on can't be read.
        """
        if not self.tiers:
            raise ConfigError("a guard needs at least one tier")
        if len(set(self.tiers)) < len(self.tiers):
            raise ConfigError(f"tiers must have different names, got {list(self.tiers)!r}")
        self._check_tiers(policy)
        if not looks_on and policy.mode == "enforce" and not self.has_queue:
            _check_needs_no_queue(policy)
        return {} if policy.guarantee is None else resolve(policy, self.bundles())

    def _check_tiers(self, policy: Policy) -> None:
        for rule, tier in policy.retry_targets.items():
            if tier not in self.tiers:
                raise ConfigError(
                    f"{policy.place(rule, 'to')}: rule {rule!r} retries on the tier {tier!r}, which doesn't exist; "
                    f"there are {list(self.tiers)!r}"
                )
        if policy.scored_prompt_rules and not self.prompts_scored_by:
            rule_id = policy.scored_prompt_rules[0].id
            raise ConfigError(
                f"{policy.place(rule_id, 'when')}: rule {rule_id!r} looks at a score at stage `prompt`, and no tier "
                "has a `prompt_bundle` that gives one; fit one (ilis-guard fit --stage prompt), or take the rule out"
            )
        if policy.budget is not None and policy.budget.max_cost is not None and self.without_cost:
            raise ConfigError(
                f"{policy.key_place('budget', 'max_cost')}: the budget limits the cost, and that of the tiers "
                f"{list(self.without_cost)!r} isn't known; give each a `cost` in guard.yaml (per_request: 0 where it "
                "is free)"
            )


def check_config(policy: Policy, config: GuardConfig, *, looks_on: bool = False) -> Mapping[str, Certificate]:
    """See that a policy goes with a guard.yaml, without loading its models; what its guarantee comes to, by tier.

    Raises:
        ConfigError, BundleError: as `PolicyContext.check`.
    """
    return PolicyContext.of_config(config).check(policy, looks_on=looks_on)


def _check_needs_no_queue(policy: Policy) -> None:
    remedy = "and there is no queue; give guard.yaml a `review` with its `storage`"
    escalating = [rule.id for rule in policy.rules if rule.do is Action.ESCALATE]
    if escalating:
        raise ConfigError(f"{policy.place(escalating[0], 'do')}: rule {escalating[0]!r} escalates, {remedy}")
    if policy.audit is not None:
        raise ConfigError(f"{policy.key_place('audit')}: the policy audits answers, {remedy}")
