"""Bind policies to the tiers and the queue that a guard has, and certify their guarantees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.errors import ConfigError
from ilis_guard.policy.policy import Policy
from ilis_guard.policy.score_limits import Bundles
from ilis_guard.policy.state import CascadeState
from ilis_guard.scoring import Bundle, read_bundle
from ilis_guard.scoring.risk_control import Certificate
from ilis_guard.types import Action, Request


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
    """The policies of one request from its beginning to its end, whatever becomes of the files meanwhile."""

    enforced: BoundPolicy
    """The policy that decides, unless its mode is `shadow`."""
    shadow: BoundPolicy | None = None
    """guard.yaml's `shadow`, which is evaluated beside it."""

    @property
    def fingerprints(self) -> tuple[str, str | None]:
        """Of the policy in force, and of the one in shadow."""
        return self.enforced.policy.fingerprint, None if self.shadow is None else self.shadow.policy.fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyContext:
    """What policies are bound to: the tiers, and whether there is a queue."""

    tiers: tuple[str, ...]
    """Names, from small to large."""
    bundles: Callable[[], Mapping[str, Bundle]]
    """By tier: what scores its answers. Called only where a guarantee rests on them; reading them takes a while."""
    prompt_bundles: Callable[[], Mapping[str, Bundle]]
    """By tier: what scores its prompts."""
    prompts_scored_by: tuple[str, ...]
    """The tiers that have a prompt bundle."""
    without_cost: tuple[str, ...]
    """Those whose cost isn't known."""
    has_queue: bool

    @classmethod
    def of_config(cls, config: GuardConfig) -> Self:
        """Describe a guard.yaml whose models aren't loaded."""
        return cls(
            tiers=tuple(tier.name for tier in config.tiers),
            bundles=lambda: {tier.name: read_bundle(tier.bundle) for tier in config.tiers if tier.bundle is not None},
            prompt_bundles=lambda: {
                tier.name: read_bundle(tier.prompt_bundle) for tier in config.tiers if tier.prompt_bundle is not None
            },
            prompts_scored_by=tuple(tier.name for tier in config.tiers if tier.prompt_bundle is not None),
            without_cost=tuple(tier.name for tier in config.tiers if tier.cost is None),
            has_queue=config.review is not None,
        )

    def scored_by(self) -> Bundles:
        """Return the bundles that score at each stage."""
        return {"prompt": self.prompt_bundles(), "answer": self.bundles()}

    def bind(self, policy: Policy, *, is_shadow: bool = False) -> BoundPolicy:
        """Bind a policy to the tiers.

        Args:
            policy: the policy.
            is_shadow: guard.yaml's `shadow` makes no ticket, and so needs no queue.

        Raises:
            ConfigError, BundleError: as `check`.
        """
        certificates = self.check(policy, is_shadow=is_shadow)
        tiers = () if policy.guarantee is None else self.tiers
        thresholds = {tier: certificates[tier].threshold if tier in certificates else None for tier in tiers}
        return BoundPolicy(policy=policy, thresholds=thresholds)

    def check(self, policy: Policy, *, is_shadow: bool = False) -> Mapping[str, Certificate]:
        """Check that there is what a policy needs; returns its guarantee's certificates, by tier.

        Raises:
            ConfigError: there is no tier, two have one name, the policy retries on one that doesn't exist, reads a
                prompt's score that no tier gives, limits a cost that isn't known, escalates or audits and there is no
                queue, or guarantees what can't be certified. The message starts with the place in the policy.
            BundleError: a bundle that a guarantee rests on can't be read.
        """
        if not self.tiers:
            raise ConfigError("a guard needs at least one tier")
        if len(set(self.tiers)) < len(self.tiers):
            raise ConfigError(f"tiers must have different names, got {list(self.tiers)!r}")
        self._check_tiers(policy)
        if not is_shadow and policy.mode == "enforce" and not self.has_queue:
            _check_needs_no_queue(policy)
        return {} if policy.guarantee is None else certify_guarantee(policy, self.bundles())

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


def check_config(policy: Policy, config: GuardConfig, *, is_shadow: bool = False) -> Mapping[str, Certificate]:
    """Check that a policy goes with a guard.yaml, without loading its models; returns its certificates, by tier.

    Raises:
        ConfigError, BundleError: as `PolicyContext.check`.
    """
    return PolicyContext.of_config(config).check(policy, is_shadow=is_shadow)


def certify_guarantee(policy: Policy, bundles: Mapping[str, Bundle]) -> Mapping[str, Certificate]:
    """Certify a policy's guarantee, tier by tier.

    The confidence is for all tiers together: with n of them, each is certified with 1 - (1 - confidence) / n
    (Bonferroni), so that all the thresholds hold at once.

    Args:
        policy: one that gives a guarantee.
        bundles: by tier, what scores its answers. Tiers without one have no score, and so answer nothing anyway.

    Raises:
        ConfigError: a tier can't be certified, and the rules don't say what happens then.
    """
    guarantee = policy.guarantee
    assert guarantee is not None, "the caller has checked"
    confidence = 1 - (1 - guarantee.confidence) / max(1, len(bundles))
    limits = guarantee.model_dump(exclude={"confidence"})
    certificates = {tier: bundle.certify(confidence=confidence, **limits) for tier, bundle in bundles.items()}
    for tier, certificate in certificates.items():
        if certificate.threshold is None and (unhandled := policy.unhandled_uncertified(tier)):
            raise ConfigError(
                f"{policy.key_place('guarantee')}: the guarantee can't be certified on the tier {tier!r}: "
                f"{shortfall(certificate)}; {unhandled}"
            )
    return certificates


def shortfall(certificate: Certificate) -> str:
    """Why a guarantee can't be certified, and what would help; empty where it can."""
    parts = [certificate.reason]
    if certificate.threshold is None and certificate.floor:
        parts.append(f"whatever the score, {certificate.floor:.1%} of requests can't be answered")
    if certificate.threshold is None and certificate.rows_needed:
        parts.append(f"about {certificate.rows_needed} more labelled rows would do")
    return "; ".join(parts)


def _check_needs_no_queue(policy: Policy) -> None:
    remedy = "and there is no queue; give guard.yaml a `review` with its `storage`"
    escalating = [rule.id for rule in policy.rules if rule.do is Action.ESCALATE]
    if escalating:
        raise ConfigError(f"{policy.place(escalating[0], 'do')}: rule {escalating[0]!r} escalates, {remedy}")
    if policy.audit is not None:
        raise ConfigError(f"{policy.key_place('audit')}: the policy audits answers, {remedy}")
